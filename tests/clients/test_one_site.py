"""Real clients at one real site: what they push is what they and others pull."""

from __future__ import annotations

import shutil
import urllib.request
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.clients.conftest import Client
from tests.clients.images import Image, empty_layer_image, large_image, oci_index
from tests.clients.tools import Docker, Skopeo
from tests.faults.registry import Registry
from tests.faults.stopped import check
from tests.sites import Site, ended

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MIB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway of its own."""
    folder = tmp_path_factory.mktemp("one-site")
    one = Site("fra", folder / "fra", programs=("gateway",))
    with ended(one):
        await one.start()
        yield one
        await one.stop_all()
        check(one)
    shutil.rmtree(folder)  # it may be gigabytes, which pytest would keep


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(site: Site) -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow.  Logs are shown."""
    yield
    site.show_logs()


async def _whole(site: Site, name: str) -> str:
    """Pull a name with our own client, check every byte, and return its digest."""
    repository, _, tag = name.partition("/")[2].rpartition(":")
    async with Registry.at(site.url) as registry:
        digest = await registry.pull(repository, tag)
        assert digest is not None
        return digest


def _count(site: Site, endpoint: str, status: int) -> float:
    """How many requests to an endpoint were answered so."""
    with urllib.request.urlopen(f"http://127.0.0.1:{site.port + 2}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = ("http_requests_total{", f'endpoint="{endpoint}"', f'status="{status}"')
    return sum(
        float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in wanted)
    )


@pytest.mark.parametrize("options", [(), ("--format", "v2s2")], ids=["oci", "docker-format"])
async def test_a_pushed_index_is_pulled_whole(
    site: Site, skopeo: Client, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A multi-platform image, in either format, comes back with all of its platforms."""
    tool = Skopeo(skopeo, tmp_path)
    index = oci_index(tmp_path / "image", tag="multi")
    name = f"{site.http}/multi:{'docker' if options else 'oci'}"
    await tool.push_all(index.source, name, *options)
    shown = await _whole(site, name)
    assert (shown == index.digest) is (not options)
    assert await tool.pull(name) == shown


async def test_pushing_again_uploads_nothing(site: Site, skopeo: Client, tmp_path: Path) -> None:
    """A client that finds all layers there already sends the manifest only."""
    tool = Skopeo(skopeo, tmp_path)
    image = empty_layer_image(tmp_path / "image", tag="again")
    name = f"{site.http}/again:v1"
    await tool.push(image, name)
    before = await to_thread(_count, site, "finish-upload", 201)
    await tool.push(image, name)
    assert await to_thread(_count, site, "finish-upload", 201) == before
    assert await _whole(site, name) == image.digest


async def test_layers_are_mounted_from_another_repository(
    site: Site, docker: Client, tmp_path: Path
) -> None:
    """Docker pushes an image to a second repository without sending its layers again."""
    image = _small(tmp_path)
    first, second = f"{site.http}/mount/source:v1", f"{site.http}/mount/target:v1"
    await Docker(docker, tmp_path).push(image, first)
    await docker.run("pull", first)
    await docker.run("tag", first, second)
    mounted = await to_thread(_count, site, "start-upload", 201)
    await docker.run("push", second)
    assert await to_thread(_count, site, "start-upload", 201) > mounted
    assert await _whole(site, second) == await _whole(site, first)
    await docker.run("rmi", "--force", first, second)


async def test_docker_puts_a_list_together(site: Site, docker: Client, tmp_path: Path) -> None:
    """`docker manifest` makes and pushes a list of what was pushed before."""
    names = [f"{site.http}/list:part{number}" for number in range(2)]
    for name in names:
        await Docker(docker, tmp_path).push(_small(tmp_path), name)
    whole = f"{site.http}/list:whole"
    await docker.run("manifest", "create", "--insecure", whole, *names)
    await docker.run("manifest", "annotate", whole, names[1], "--arch", "arm64")
    digest = (await docker.run("manifest", "push", "--insecure", "--purge", whole)).strip()
    assert await _whole(site, whole) == digest
    assert await Docker(docker, tmp_path).pull(whole) == digest


async def test_skopeo_deletes_what_it_pushed(site: Site, skopeo: Client, tmp_path: Path) -> None:
    """MD6: `skopeo delete` takes the manifest away with its tags."""
    name = f"{site.http}/deleted:v1"
    await Skopeo(skopeo, tmp_path).push(_small(tmp_path), name)
    await skopeo.run("delete", "--tls-verify=false", f"docker://{name}")
    assert (await skopeo.attempt("inspect", "--tls-verify=false", f"docker://{name}")).exit_code
    listed = await skopeo.attempt(
        "list-tags", "--tls-verify=false", f"docker://{site.http}/deleted"
    )
    assert "v1" not in listed.stdout


async def test_a_layer_of_64_mebibytes(site: Site, skopeo: Client, tmp_path: Path) -> None:
    """A large layer goes there and back."""
    await _large(site, skopeo, tmp_path, 64 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes(site: Site, skopeo: Client, tmp_path: Path) -> None:
    """A very large layer goes there and back."""
    await _large(site, skopeo, tmp_path, 2048 * MIB)


async def _large(site: Site, skopeo: Client, folder: Path, size: int) -> None:
    tool = Skopeo(skopeo, folder)
    image = await to_thread(large_image, folder / "image", tag="large", size=size)
    name = f"{site.http}/large:v{size}"
    await tool.push_all(image.source, name)
    assert await tool.pull(name) == image.digest
    shutil.rmtree(folder)


def _small(folder: Path) -> Image:
    return empty_layer_image(folder / "small", tag="small")
