"""podman and buildah at one real site: both keep images in a store and understand these commands.

The store has layers unpacked, and a push compresses them anew: so it makes a manifest of its own.
Of the two only podman lists what a registry has, and neither deletes there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.images import Image, large_image, oci_index, oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import BREAKS_AFTER, MIB, answered, broken_once, mounted, uploaded, whole
from tests.clients.tools import LONG_S
from tests.faults.registry import Registry
from tests.faults.wanlink import linked
from tests.ports import free_port
from tests.sites import Site

pytestmark = pytest.mark.slow


@pytest.fixture(params=["podman", "buildah"])
def tool(request: pytest.FixtureRequest) -> Client:
    """Each of the two."""
    found: Client = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def partial(podman: Client, tmp_path: Path) -> Client:
    """podman with an empty store of its own that gets of a layer only the files that it lacks.

    Of the kinds of stores only "overlay" can.
    """
    old, new = str(podman.folder), str(tmp_path)
    settings = {}
    for variable in ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        path = Path(podman.environment[variable])
        text = path.read_text().replace(old, new).replace('"vfs"', '"overlay"')
        if variable == "CONTAINERS_STORAGE_CONF":
            text += '[storage.options]\npull_options = {enable_partial_images = "true"}\n'
        (tmp_path / path.name).write_text(text)
        settings[variable] = str(tmp_path / path.name)
    return replace(podman, environment={**podman.environment, **settings})


async def test_push_and_pull(site: Site, tool: Client, tmp_path: Path) -> None:
    """Without a login an image is pushed, and pulled by its tag and by its digest."""
    repository = _name(site, tool, "app")
    async with _stored(tool, _small(tmp_path)) as image:
        digest = await _push(tool, image, f"{repository}:v1", tmp_path)
    assert await whole(site, f"{repository}:v1") == digest
    for name in (f"{repository}:v1", f"{repository}@{digest}"):
        assert await _pull(tool, name) == (image, digest)


async def test_pushing_again_uploads_nothing(site: Site, tool: Client, tmp_path: Path) -> None:
    """What finds all layers there already sends the manifest only."""
    name = _name(site, tool, "again:v1")
    async with _stored(tool, _small(tmp_path)) as image:
        digest = await _push(tool, image, name, tmp_path)
        before = await answered(site, "start-upload", 202)
        assert await _push(tool, image, name, tmp_path) == digest
        assert await answered(site, "start-upload", 202) == before


@pytest.mark.parametrize("row", ["U7"])
async def test_layers_are_mounted_from_another_repository(
    site: Site, tool: Client, tmp_path: Path, row: str
) -> None:
    """It knows where it pushed a layer to: a second repository gets it without its bytes."""
    small = _small(tmp_path)
    async with _stored(tool, small) as image:
        digest = await _push(tool, image, _name(site, tool, "source:v1"), tmp_path)
        mounts, uploads = await mounted(site), await uploaded(site)
        second = _name(site, tool, "target:v1")
        assert await _push(tool, image, second, tmp_path) == digest
    assert await mounted(site) == mounts + len(small.layers)
    assert await uploaded(site) == uploads + 1  # the configuration, which it never mounts
    assert await whole(site, second) == digest


async def test_a_list_is_pushed_and_each_platform_pulled(
    site: Site, tool: Client, tmp_path: Path
) -> None:
    """`manifest push --all` takes all images along, and a pull gets that of its platform."""
    index = oci_index(tmp_path / "image", tag="multi")
    name = _name(site, tool, "multi:v1")
    await tool.run("manifest", "create", "several")
    await tool.run("manifest", "add", "--all", "several", index.source)
    file = tmp_path / "digest"
    push = ("manifest", "push", "--all", "--tls-verify=false", f"--digestfile={file}")
    await tool.run(*push, "several", f"docker://{name}")
    await tool.run("manifest", "rm", "several")
    assert await whole(site, name) == file.read_text()
    for platform, image in index.images.items():
        expected = (image.config.digest.removeprefix("sha256:"), file.read_text())
        assert await _pull(tool, name, "--platform", platform) == expected


async def test_a_deleted_image_is_not_pulled(site: Site, tool: Client, tmp_path: Path) -> None:
    """An image is pulled and inspected; when it is deleted from the site, a pull fails."""
    name = _name(site, tool, "deleted:v1")
    async with _stored(tool, _small(tmp_path)) as image:
        digest = await _push(tool, image, name, tmp_path)
    await tool.run("pull", "--quiet", "--tls-verify=false", name)
    assert digest in await tool.run("inspect", "--type", "image", name)
    await tool.run("rmi", "--force", name)
    async with Registry.at(site.url) as registry:
        await registry.delete(name.partition("/")[2].removesuffix(":v1"), digest)
    assert (await tool.attempt("pull", "--tls-verify=false", name)).exit_code != 0


@pytest.mark.parametrize("row", ["TL10"])
async def test_repositories_and_tags_are_found(
    site: Site, podman: Client, tmp_path: Path, row: str
) -> None:
    """`podman search` finds a repository by a part of its name, and lists its tags."""
    repository = _name(site, podman, "found")
    async with _stored(podman, _small(tmp_path)) as image:
        for tag in ("v1", "v2"):
            await _push(podman, image, f"{repository}:{tag}", tmp_path)
    search = ("search", "--tls-verify=false")
    found = await podman.run(*search, "--format", "{{.Name}}", f"{site.http}/podman/fou")
    assert found.split() == [repository]
    tags = await podman.run(*search, "--list-tags", repository)
    assert [line.split() for line in tags.splitlines()[1:]] == [
        [repository, "v1"],
        [repository, "v2"],
    ]


async def test_a_broken_push_is_done_again(site: Site, tool: Client, tmp_path: Path) -> None:
    """A push that breaks in the middle of a layer may be done again, and is whole then.

    Mostly the tool has done so itself, a second after it was cut.
    """
    name = _name(site, tool, "cut-push:v1")
    large = large_image(tmp_path / "image", tag="large", size=4 * BREAKS_AFTER)
    async with _stored(tool, large) as image, broken_once(site) as link:
        target = f"docker://{name.replace(site.http, link.address)}"
        await tool.attempt("push", "--tls-verify=false", image, target)
        await tool.run("push", "--tls-verify=false", image, target)
        shown = await whole(site, name)
    assert await _pull(tool, name) == (image, shown)


async def test_a_broken_pull_is_done_again(site: Site, tool: Client, tmp_path: Path) -> None:
    """A pull that breaks in the middle of a layer fails, and the next one has every byte."""
    large = large_image(tmp_path / "image", tag="large", size=4 * BREAKS_AFTER)
    name = _name(site, tool, "cut-pull:v1")
    async with _stored(tool, large) as image:
        digest = await _push(tool, image, name, tmp_path)
    async with broken_once(site) as link:
        name = name.replace(site.http, link.address)
        assert (await tool.attempt("pull", "--tls-verify=false", name)).exit_code != 0
        assert await _pull(tool, name) == (image, digest)


@pytest.mark.parametrize("row", ["B7"])
async def test_only_the_missing_files_of_a_layer_are_pulled(
    site: Site, podman: Client, partial: Client, tmp_path: Path, row: str
) -> None:
    """zstd:chunked: of a layer that shares files with one in the store, the others are got.

    They lie apart, so one request asks for several ranges.
    """
    files = {f"file-{number}": os.urandom(MIB // 16) for number in range(32)}
    repository = _name(site, podman, "chunked")
    for tag in ("v1", "v2"):
        layout = oci_layout(tmp_path / tag, layers=[tar_layer(files)], tag=tag)
        async with _stored(podman, layout) as image:
            options = ("--compression-format", "zstd:chunked")
            digest = await _push(podman, image, f"{repository}:{tag}", tmp_path, *options)
        assert await whole(site, f"{repository}:{tag}") == digest
        files |= {f"file-{number}": os.urandom(MIB // 16) for number in range(0, 32, 4)}

    received = bytearray()

    def seen(content: bytes) -> bytes:
        received.extend(content)
        return content

    async with linked(site.http, free_port()) as link:
        mirror = repository.replace(site.http, link.address)
        await partial.run("pull", "--tls-verify=false", f"{mirror}:v1")
        link.change = seen
        before = await answered(site, "get-blob", 206)
        await partial.run("pull", "--tls-verify=false", f"{mirror}:v2")
    assert await answered(site, "get-blob", 206) == before + 2  # the list of files, then these
    assert b"multipart/byteranges" in received
    assert len(received) < 32 * MIB // 16 // 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
async def test_layers_may_be_compressed_so(
    site: Site, podman: Client, tmp_path: Path, compression: str
) -> None:
    """Layers of either compression are pushed, and pulled into a store."""
    name = _name(site, podman, f"compressed:{compression}")
    async with _stored(podman, _small(tmp_path)) as image:
        options = ("--compression-format", compression)
        digest = await _push(podman, image, name, tmp_path, *options)
    async with Registry.at(site.url) as registry:
        answer = await registry.call("GET", f"/v2/podman/compressed/manifests/{compression}")
    types = {layer["mediaType"] for layer in json.loads(answer.body)["layers"]}
    assert types == {f"application/vnd.oci.image.layer.v1.tar+{compression}"}
    assert await _pull(podman, name) == (image, digest)


async def test_a_layer_of_256_mebibytes(site: Site, tool: Client, tmp_path: Path) -> None:
    """A large layer goes there and back."""
    await _large(site, tool, tmp_path, 256 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes(site: Site, tool: Client, tmp_path: Path) -> None:
    """A very large layer goes there and back."""
    await _large(site, tool, tmp_path, 2048 * MIB)


async def _large(site: Site, tool: Client, folder: Path, size: int) -> None:
    name = _name(site, tool, f"large:v{size}")
    large = await asyncio.to_thread(large_image, folder / "image", tag="large", size=size)
    async with _stored(tool, large) as image:
        shutil.rmtree(large.folder)
        digest = await _push(tool, image, name, folder)
    assert await _pull(tool, name) == (image, digest)


@asynccontextmanager
async def _stored(tool: Client, image: Image) -> AsyncIterator[str]:
    """Take an image into the store for a while, under the id that it has there."""
    pull = ("pull", "--quiet", image.source)
    stored = (await tool.run(*pull, timeout_s=LONG_S)).strip()
    yield stored
    await tool.run("rmi", "--force", stored)


async def _push(tool: Client, image: str, name: str, folder: Path, *options: str) -> str:
    """Push an image from the store, and return the digest of what is there now."""
    file = folder / "digest"
    push = ("push", "--tls-verify=false", f"--digestfile={file}", *options)
    await tool.run(*push, image, f"docker://{name}", timeout_s=LONG_S)
    return file.read_text()


async def _pull(tool: Client, name: str, *options: str) -> tuple[str, str]:
    """Pull an image into the store, and return its id and its digest; nothing stays of it."""
    pull = ("pull", "--quiet", "--tls-verify=false", *options, name)
    stored = (await tool.run(*pull, timeout_s=LONG_S)).strip()
    images = ("images", "--digests", "--no-trunc", "--format", "{{.ID}} {{.Digest}}")
    lines = (await tool.run(*images)).splitlines()
    (digest,) = {line.split()[1] for line in lines if stored in line}
    await tool.run("rmi", "--force", stored)
    return stored, digest


def _name(site: Site, tool: Client, name: str) -> str:
    """Return the full name of an image, in a repository that only this tool uses."""
    return f"{site.http}/{tool.command[0]}/{name}"


def _small(folder: Path) -> Image:
    return oci_layout(folder / "small", layers=[tar_layer(), tar_layer()], tag="small")
