"""skopeo at a real site: it copies straight between a folder and the registry.

The site is one gateway over SQLite, or two nodes over an etcd of three members, to which its
connections go in turn.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from tests.clients.images import Image, large_image, oci_index, oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import (
    BREAKS_AFTER,
    MIB,
    Front,
    answered,
    broken_once,
    fronted,
    mounted,
    uploaded,
    whole,
)
from tests.clients.tools import LONG_S
from tests.faults.registry import Registry, digest_of
from tests.faults.stopped import check
from tests.nodes import nodes
from tests.sites import Site, running

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module", params=["one gateway", "two nodes"])
def gateways(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Site]]:
    """The processes of the site; they have to end well, and leave it sound."""
    folder = tmp_path_factory.mktemp("skopeo")
    if request.param == "one gateway":
        found = [Site("fra", folder / "fra", programs=("gateway",))]
    else:
        found = nodes("fra", folder, request.getfixturevalue("cluster"))
    with running(*found):
        yield found
    if len(found) == 1:
        check(found[0])
    shutil.rmtree(folder)  # it may be gigabytes, which pytest would keep


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(gateways: list[Site]) -> AsyncIterator[Front]:
    """Where skopeo finds the site."""
    async with fronted(gateways) as front:
        yield front


async def test_push_and_pull(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """Without a login an image is pushed, and pulled by its tag and by its digest."""
    image = _small(tmp_path)
    repository = f"{site.http}/skopeo/app"
    await _push(skopeo, image, f"{repository}:v1")
    assert await whole(site, f"{repository}:v1") == image.digest
    for number, name in enumerate((f"{repository}:v1", f"{repository}@{image.digest}")):
        assert await _pull(skopeo, name, tmp_path / f"pulled{number}") == image.digest


@pytest.mark.parametrize("options", [(), ("--format", "v2s2")], ids=["oci", "docker-format"])
async def test_a_pushed_index_is_pulled_whole(
    site: Front, skopeo: Client, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A multi-platform image, in either format, comes back with all of its platforms."""
    index = oci_index(tmp_path / "image", tag="multi")
    name = f"{site.http}/skopeo/multi:{'docker' if options else 'oci'}"
    push = ("copy", "--all", *options, "--dest-tls-verify=false", index.source, f"docker://{name}")
    await skopeo.run(*push)
    shown = await whole(site, name)
    assert (shown == index.digest) is (not options)
    assert await _pull(skopeo, name, tmp_path / "pulled") == shown
    assert len(list((tmp_path / "pulled").glob("*.manifest.json"))) == len(index.images)


async def test_tags_and_images_are_shown(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """`list-tags` has every tag, and `inspect` the image's digest and layers."""
    image = _small(tmp_path)
    repository = f"{site.http}/skopeo/shown"
    for tag in ("v2", "v1"):
        await _push(skopeo, image, f"{repository}:{tag}")
    listed = await skopeo.run("list-tags", "--tls-verify=false", f"docker://{repository}")
    assert json.loads(listed)["Tags"] == ["v1", "v2"]
    shown = json.loads(
        await skopeo.run("inspect", "--tls-verify=false", f"docker://{repository}:v1")
    )
    assert shown["Digest"] == image.digest
    assert shown["Layers"] == [layer.digest for layer in image.layers]


async def test_pushing_again_uploads_nothing(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """What finds all layers there already sends the manifest only."""
    image = _small(tmp_path)
    name = f"{site.http}/skopeo/again:v1"
    await _push(skopeo, image, name)
    before = await answered(site, "start-upload", 202)
    await _push(skopeo, image, name)
    assert await answered(site, "start-upload", 202) == before
    assert await whole(site, name) == image.digest


@pytest.mark.parametrize("row", ["U7"])
async def test_layers_are_mounted_from_another_repository(
    site: Front, skopeo: Client, tmp_path: Path, row: str
) -> None:
    """skopeo knows where a layer is already: other repositories get it without its bytes."""
    image = _small(tmp_path)
    names = [f"{site.http}/skopeo/mount{number}:v1" for number in range(3)]
    await _push(skopeo, image, names[0])
    mounts, uploads = await mounted(site), await uploaded(site)
    await _push(skopeo, image, names[1])
    options = ("--src-tls-verify=false", "--dest-tls-verify=false")
    await skopeo.run("copy", *options, f"docker://{names[1]}", f"docker://{names[2]}")
    assert await mounted(site) == mounts + 2 * len(image.layers)
    assert await uploaded(site) == uploads + 2  # the configurations, which skopeo never mounts
    for name in names:
        assert await whole(site, name) == image.digest


@pytest.mark.parametrize("row", ["MD6"])
async def test_an_image_is_deleted(site: Front, skopeo: Client, tmp_path: Path, row: str) -> None:
    """`skopeo delete` takes the manifest away with all of its tags."""
    image = _small(tmp_path)
    repository = f"{site.http}/skopeo/deleted"
    for tag in ("v1", "v2"):
        await _push(skopeo, image, f"{repository}:{tag}")
    await skopeo.run("delete", "--tls-verify=false", f"docker://{repository}:v1")
    async with Registry.at(site.url) as registry:
        for reference in ("v1", "v2", image.digest):
            assert await registry.shows("skopeo/deleted", reference) is None


async def test_a_repository_is_synchronized(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """`skopeo sync` finds all tags of a repository, and copies each."""
    image = _small(tmp_path)
    repository = f"{site.http}/skopeo/synchronized"
    for tag in ("v1", "v2"):
        await _push(skopeo, image, f"{repository}:{tag}")
    options = ("--src", "docker", "--dest", "dir", "--src-tls-verify=false")
    await skopeo.run("sync", *options, repository, tmp_path / "copied")
    copied = sorted((tmp_path / "copied").iterdir())
    assert [folder.name for folder in copied] == ["synchronized:v1", "synchronized:v2"]
    assert {_digest(folder) for folder in copied} == {image.digest}


async def test_a_broken_push_is_done_again(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """A push that breaks in the middle of a layer leaves nothing to see; the next one is whole."""
    image = large_image(tmp_path / "image", tag="large", size=4 * BREAKS_AFTER)
    async with broken_once(site) as link:
        name = f"{link.address}/skopeo/cut-push:v1"
        push = ("copy", "--dest-tls-verify=false", image.source, f"docker://{name}")
        assert (await skopeo.attempt(*push)).exit_code != 0
        async with Registry.at(site.url) as registry:
            assert await registry.shows("skopeo/cut-push", "v1") is None
        await skopeo.run(*push)
    assert await whole(site, name) == image.digest


async def test_a_broken_pull_is_done_again(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """A pull that breaks in the middle of a layer fails, and the next one has every byte."""
    image = large_image(tmp_path / "image", tag="large", size=4 * BREAKS_AFTER)
    await _push(skopeo, image, f"{site.http}/skopeo/cut-pull:v1")
    async with broken_once(site) as link:
        name = f"{link.address}/skopeo/cut-pull:v1"
        pull = ("copy", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path / 'cut'}")
        assert (await skopeo.attempt(*pull)).exit_code != 0
        assert await _pull(skopeo, name, tmp_path / "pulled") == image.digest


@pytest.mark.parametrize("row", ["B8"])
async def test_a_broken_body_goes_on_where_it_broke(site: Front, tmp_path: Path, row: str) -> None:
    """The rest of a blob is got as skopeo and podman do from containers/image 5.25 on.

    Debian 12 has older ones, which begin anew; so the request is made by hand.
    """
    content = random.Random(0).randbytes(4 * BREAKS_AFTER)
    async with Registry.at(site.url) as registry:
        path = f"/v2/skopeo/resumed/blobs/{await registry.push_blob('skopeo/resumed', content)}"
        async with broken_once(site) as link:
            begun = await _until_it_breaks(registry.http, f"http://{link.address}{path}")
        before = await answered(site, "get-blob", 206)
        rest = await registry.call("GET", path, headers={"Range": f"bytes={len(begun)}-"})
    rest.require(206, "get the rest")
    assert await answered(site, "get-blob", 206) == before + 1
    total = len(content)
    assert BREAKS_AFTER // 2 < len(begun) < total
    assert rest.headers["Content-Range"] == f"bytes {len(begun)}-{total - 1}/{total}"
    assert begun + rest.body == content


async def _until_it_breaks(http: aiohttp.ClientSession, url: str) -> bytes:
    """Return what came of a body before its connection was cut."""
    begun = bytearray()
    async with http.get(url) as answer:
        with suppress(aiohttp.ClientError):
            async for chunk in answer.content.iter_any():
                begun += chunk
    return bytes(begun)


async def test_a_layer_of_256_mebibytes(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """A large layer goes there and back."""
    await _large(site, skopeo, tmp_path, 256 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes(site: Front, skopeo: Client, tmp_path: Path) -> None:
    """A very large layer goes there and back."""
    await _large(site, skopeo, tmp_path, 2048 * MIB)


async def _large(site: Front, skopeo: Client, folder: Path, size: int) -> None:
    image = await asyncio.to_thread(large_image, folder / "image", tag="large", size=size)
    name = f"{site.http}/skopeo/large:v{size}"
    await _push(skopeo, image, name)
    assert await _pull(skopeo, name, folder / "pulled") == image.digest
    shutil.rmtree(folder)


async def _push(skopeo: Client, image: Image, name: str) -> None:
    """Copy an image as it is."""
    command = ("copy", "--dest-tls-verify=false", image.source, f"docker://{name}")
    await skopeo.run(*command, timeout_s=LONG_S)


async def _pull(skopeo: Client, name: str, folder: Path) -> str:
    """Copy all that a name needs into a folder, which keeps the manifest as it came."""
    command = ("copy", "--all", "--src-tls-verify=false", f"docker://{name}", f"dir:{folder}")
    await skopeo.run(*command, timeout_s=LONG_S)
    return _digest(folder)


def _digest(folder: Path) -> str:
    """Return the digest of the image that a folder was copied to."""
    return digest_of((folder / "manifest.json").read_bytes())


def _small(folder: Path) -> Image:
    return oci_layout(folder / "small", layers=[tar_layer(), tar_layer()], tag="small")
