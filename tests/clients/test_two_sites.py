"""Real clients at two real sites: each pushes an image at one and pulls it from the other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from tests.clients.images import (
    empty_layer_image,
    large_image,
    oci_index,
    oci_layout,
    tar_layer,
)
from tests.clients.programs import Client
from tests.clients.tools import Ctr, Docker, Podman, Skopeo, Tool
from tests.faults.registry import Registry
from tests.faults.stopped import check
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARRIVES_S: Final = 120.0
TOOLS: Final[dict[str, Callable[[Client, Path], Tool]]] = {
    "skopeo": Skopeo,
    "docker": Docker,
    "podman": Podman,
    "buildah": Podman,
    "ctr": Ctr,
}
DIRECTIONS: Final = ("fra to nyc", "nyc to fra")


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sites that follow each other."""

    fra: Site
    nyc: Site

    def ends(self, direction: str) -> tuple[Site, Site]:
        """Where to push and where to pull."""
        return (self.fra, self.nyc) if direction == DIRECTIONS[0] else (self.nyc, self.fra)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Both sites; sound when they are stopped."""
    folder = tmp_path_factory.mktemp("clients")
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    fra.follow(nyc)
    nyc.follow(fra)
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        await asyncio.gather(fra.start(), nyc.start())
        yield Pair(fra, nyc)
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        for site in (fra, nyc):
            check(site)
    shutil.rmtree(folder)  # it may be gigabytes, which pytest would keep


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(pair: Pair) -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow.  Logs are shown."""
    yield
    pair.fra.show_logs()
    pair.nyc.show_logs()


async def _arrives(here: Site, there: Site, repository: str, tag: str) -> str:
    """Wait until a tag shows the same at both sites, whole; its digest."""
    async with Registry.at(here.url) as one, Registry.at(there.url) as other:
        pushed = await one.pull(repository, tag)
        assert pushed is not None

        async def same() -> bool:
            return await other.pull(repository, tag) == pushed

        await eventually(same, ARRIVES_S, f"{repository}:{tag} arrives at {there.name}")
        return pushed


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", TOOLS)
async def test_an_image_pushed_here_is_pulled_there(
    pair: Pair, request: pytest.FixtureRequest, tmp_path: Path, name: str, direction: str
) -> None:
    """Every tool gets from one site what it pushed to the other, by the same digest."""
    tool = TOOLS[name](request.getfixturevalue(name), tmp_path)
    here, there = pair.ends(direction)
    repository = f"tools/{name}"
    image = oci_layout(tmp_path / "image", layers=[tar_layer(), tar_layer()], tag="image")
    pushed = await tool.push(image, f"{here.http}/{repository}:{here.name}")
    assert await _arrives(here, there, repository, here.name) == pushed
    assert await tool.pull(f"{there.http}/{repository}:{here.name}") == pushed


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_every_tool_pulls_what_another_pushed(
    pair: Pair, request: pytest.FixtureRequest, tmp_path: Path, direction: str
) -> None:
    """An image with an empty layer, pushed by skopeo at one site, is pulled by all at the other."""
    here, there = pair.ends(direction)
    image = empty_layer_image(tmp_path / "image", tag="empty")
    tag = f"from-{here.name}"
    await Skopeo(request.getfixturevalue("skopeo"), tmp_path).push(
        image, f"{here.http}/shared:{tag}"
    )
    assert await _arrives(here, there, "shared", tag) == image.digest
    for name, make in TOOLS.items():
        tool = make(request.getfixturevalue(name), tmp_path)
        assert await tool.pull(f"{there.http}/shared:{tag}") == image.digest, name


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_an_index_pushed_by_skopeo_is_pulled_there(
    pair: Pair, skopeo: Client, tmp_path: Path, direction: str
) -> None:
    """A multi-platform image goes over with all of its platforms."""
    here, there = pair.ends(direction)
    tool = Skopeo(skopeo, tmp_path)
    index = oci_index(tmp_path / "image", tag="multi", shared=[tar_layer()])
    await tool.push_all(index.source, f"{here.http}/multi/skopeo:{here.name}")
    assert await _arrives(here, there, "multi/skopeo", here.name) == index.digest
    assert await tool.pull(f"{there.http}/multi/skopeo:{here.name}") == index.digest


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_an_index_pushed_by_containerd_is_pulled_there(
    pair: Pair, ctr: Client, tmp_path: Path, direction: str
) -> None:
    """A multi-platform image goes over with all of its platforms."""
    here, there = pair.ends(direction)
    tool = Ctr(ctr, tmp_path)
    index = oci_index(tmp_path / "image", tag="multi")
    await tool.push_all(index, f"{here.http}/multi/ctr:{here.name}")
    assert await _arrives(here, there, "multi/ctr", here.name) == index.digest
    assert await tool.pull(f"{there.http}/multi/ctr:{here.name}") == index.digest


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_an_image_in_dockers_format_is_pulled_there(
    pair: Pair, skopeo: Client, docker: Client, tmp_path: Path, direction: str
) -> None:
    """A multi-platform list of Docker's types goes over, and Docker takes its part of it."""
    here, there = pair.ends(direction)
    tool = Skopeo(skopeo, tmp_path)
    index = oci_index(tmp_path / "image", tag="multi")
    tag = f"from-{here.name}"
    await tool.push_all(index.source, f"{here.http}/multi/docker:{tag}", "--format", "v2s2")
    digest = await _arrives(here, there, "multi/docker", tag)
    assert await tool.pull(f"{there.http}/multi/docker:{tag}") == digest
    assert await Docker(docker, tmp_path).pull(f"{there.http}/multi/docker:{tag}") == digest


async def test_a_layer_of_64_mebibytes_goes_over(
    pair: Pair, skopeo: Client, tmp_path: Path
) -> None:
    """A large layer is at the other site soon, and its bytes are equal."""
    await _large(pair, skopeo, tmp_path, 64 << 20, ARRIVES_S)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes_goes_over(pair: Pair, skopeo: Client, tmp_path: Path) -> None:
    """A very large layer is at the other site in the end, and its bytes are equal."""
    await _large(pair, skopeo, tmp_path, 2 << 30, 900)


async def _large(pair: Pair, skopeo: Client, folder: Path, size: int, deadline_s: float) -> None:
    here, there = pair.fra, pair.nyc
    tool = Skopeo(skopeo, folder)
    image = await asyncio.to_thread(large_image, folder / "image", tag="large", size=size)
    name = f"large:v{size}"
    await tool.push_all(image.source, f"{here.http}/{name}")
    async with Registry.at(there.url) as registry:

        async def shown() -> bool:
            return await registry.shows("large", f"v{size}") == image.digest

        await eventually(shown, deadline_s, "the image is at the other site")
    # skopeo hashes every byte that it pulls.
    assert await tool.pull(f"{there.http}/{name}") == image.digest
    shutil.rmtree(folder)
