"""containerd at one real site, through `ctr`: it keeps manifests and layers as they are."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.clients.images import Image, Index, large_image, oci_index, oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import BREAKS_AFTER, MIB, answered, broken_once, mounted, uploaded, whole
from tests.clients.tools import Ctr, interrupt
from tests.faults.registry import Registry, digest_of
from tests.faults.wanlink import linked
from tests.ports import free_port
from tests.sites import Site

pytestmark = pytest.mark.slow

PUSH = ("images", "push", "--plain-http")
PULL = ("images", "pull", "--plain-http")


async def test_push_and_pull(site: Site, ctr: Client, tmp_path: Path) -> None:
    """Without a login an image is pushed, and pulled by its tag and by its digest."""
    image = _small(tmp_path)
    repository = f"{site.http}/ctr/app"
    await Ctr(ctr, tmp_path).push(image, f"{repository}:v1")
    assert await whole(site, f"{repository}:v1") == image.digest
    for name in (f"{repository}:v1", f"{repository}@{image.digest}"):
        await ctr.run(*PULL, name)
        assert await _held(ctr, image)
        await Ctr(ctr, tmp_path).forget(name)
        assert not await _held(ctr, image)


async def test_a_pushed_index_is_pulled_whole_or_by_platform(
    site: Site, ctr: Client, tmp_path: Path
) -> None:
    """A multi-platform image comes back with all of its platforms, or with one of them."""
    index = oci_index(tmp_path / "image", tag="multi")
    name = f"{site.http}/ctr/multi:v1"
    tool = Ctr(ctr, tmp_path)
    await tool.push_all(index, name)
    assert await whole(site, name) == index.digest
    assert await tool.pull(name) == index.digest
    for wanted in index.images:
        await ctr.run(*PULL, "--platform", wanted, name)
        held = {one for one, image in index.images.items() if await _held(ctr, image)}
        assert held == {wanted}
        await tool.forget(name)


@pytest.mark.parametrize("row", ["U7"])
async def test_layers_are_mounted_from_another_repository(
    site: Site, ctr: Client, tmp_path: Path, row: str
) -> None:
    """containerd knows where it pulled a blob from: a second repository gets it without bytes."""
    image = _small(tmp_path)
    first, second = f"{site.http}/ctr/source:v1", f"{site.http}/ctr/target:v1"
    tool = Ctr(ctr, tmp_path)
    await tool.push(image, first)
    await ctr.run(*PULL, first)
    await ctr.run("images", "tag", first, second)
    mounts, uploads = await mounted(site), await uploaded(site)
    await ctr.run(*PUSH, second)
    assert await mounted(site) == mounts + len(image.layers) + 1
    assert await uploaded(site) == uploads
    assert await whole(site, second) == image.digest
    await tool.forget(first)
    await tool.forget(second)


async def test_pushing_again_uploads_nothing(site: Site, ctr: Client, tmp_path: Path) -> None:
    """What finds everything there already sends nothing."""
    image = _small(tmp_path)
    name = f"{site.http}/ctr/again:v1"
    tool = Ctr(ctr, tmp_path)
    await tool.push(image, name)
    begun = await answered(site, "start-upload", 202)
    await tool.push(image, name)
    assert await answered(site, "start-upload", 202) == begun
    assert await whole(site, name) == image.digest


async def test_a_deleted_image_is_not_pulled(site: Site, ctr: Client, tmp_path: Path) -> None:
    """What was deleted is not found, neither by its tag nor by its digest."""
    image = _small(tmp_path)
    repository = f"{site.http}/ctr/deleted"
    await Ctr(ctr, tmp_path).push(image, f"{repository}:v1")
    async with Registry.at(site.url) as registry:
        await registry.delete("ctr/deleted", image.digest)
    for name in (f"{repository}:v1", f"{repository}@{image.digest}"):
        assert (await ctr.attempt(*PULL, name)).exit_code != 0


async def test_an_image_is_inspected(site: Site, ctr: Client, tmp_path: Path) -> None:
    """What was pulled is listed with its digest, and its index has the bytes that were pushed."""
    index = oci_index(tmp_path / "image", tag="multi")
    name = f"{site.http}/ctr/inspected:v1"
    tool = Ctr(ctr, tmp_path)
    await tool.push_all(index, name)
    await ctr.run(*PULL, "--all-platforms", name)
    listed = await ctr.run("images", "list", f"name=={name}")
    assert index.digest in listed
    assert "linux/arm64" in listed
    assert digest_of((await ctr.run("content", "get", index.digest)).encode()) == index.digest
    await tool.forget(name)


async def test_a_broken_push_is_done_again(site: Site, ctr: Client, tmp_path: Path) -> None:
    """A push that breaks in the middle of a layer leaves nothing to see; the next one is whole."""
    image = await asyncio.to_thread(large_image, tmp_path / "i", tag="i", size=4 * BREAKS_AFTER)
    async with broken_once(site) as link:
        name = f"{link.address}/ctr/cut-push:v1"
        tool = Ctr(ctr, tmp_path)
        await tool.take(image, name)
        assert (await ctr.attempt(*PUSH, name)).exit_code != 0
        async with Registry.at(site.url) as registry:
            assert await registry.shows("ctr/cut-push", "v1") is None
        await ctr.run(*PUSH, name)
        await tool.forget(name)
    assert await whole(site, name) == image.digest


@pytest.mark.parametrize("row", ["B4"])
async def test_an_interrupted_pull_goes_on_where_it_was_ended(
    site: Site, ctr: Client, tmp_path: Path, row: str
) -> None:
    """A pull that was ended in the middle of a layer leaves what came; the next gets the rest."""
    image = await asyncio.to_thread(large_image, tmp_path / "i", tag="i", size=2 * BREAKS_AFTER)
    tool = Ctr(ctr, tmp_path)
    await tool.push(image, f"{site.http}/ctr/ended:v1")
    before = await answered(site, "get-blob", 206)
    async with linked(site.http, free_port()) as link:
        name = f"{link.address}/ctr/ended:v1"
        await interrupt(ctr, link, *PULL, name)
        assert not await _held(ctr, image)
        await ctr.run(*PULL, name)
    assert await _held(ctr, image)
    assert await answered(site, "get-blob", 206) == before + 1
    await tool.forget(name)


async def test_a_layer_of_256_mebibytes(site: Site, ctr: Client, tmp_path: Path) -> None:
    """A large layer goes there and back."""
    await _large(site, ctr, tmp_path, 256 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes(site: Site, ctr: Client, tmp_path: Path) -> None:
    """A very large layer goes there and back."""
    await _large(site, ctr, tmp_path, 2048 * MIB)


async def _large(site: Site, ctr: Client, folder: Path, size: int) -> None:
    image = await asyncio.to_thread(large_image, folder / "image", tag="large", size=size)
    name = f"{site.http}/ctr/large:v{size}"
    tool = Ctr(ctr, folder)
    assert await tool.push(image, name) == image.digest
    assert not await _held(ctr, image)
    assert await tool.pull(name) == image.digest
    shutil.rmtree(folder)


async def _held(ctr: Client, image: Image | Index) -> bool:
    """Whether containerd has all of an image; it has verified what it has."""
    listed = set((await ctr.run("content", "list", "--quiet")).split())
    parts = [image.manifest]
    if isinstance(image, Image):
        parts += [image.config, *image.layers]
    return {part.digest for part in parts} <= listed


def _small(folder: Path) -> Image:
    return oci_layout(folder / "small", layers=[tar_layer(), tar_layer()], tag="small")
