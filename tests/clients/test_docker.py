"""Docker at one real site: its engine keeps unpacked layers, and packs them again to push them."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.clients.images import Layer, docker_archive, large_layer, tar_layer
from tests.clients.programs import Client
from tests.clients.site import BREAKS_AFTER, MIB, answered, broken_once, mounted, uploaded, whole
from tests.clients.tools import LONG_S, interrupt
from tests.faults.registry import Registry
from tests.faults.wanlink import linked
from tests.ports import free_port
from tests.sites import Site

pytestmark = pytest.mark.slow


async def test_push_and_pull(site: Site, docker: Client, tmp_path: Path) -> None:
    """Without a login an image is pushed, and pulled by its tag and by its digest."""
    repository = f"{site.http}/docker/app"
    await _load(docker, tmp_path, f"{repository}:v1")
    kept = await _id(docker, f"{repository}:v1")
    digest = await _push(docker, f"{repository}:v1")
    assert await whole(site, f"{repository}:v1") == digest
    for name in (f"{repository}:v1", f"{repository}@{digest}"):
        await docker.run("rmi", "--force", kept)
        await docker.run("pull", name)
        # An image's ID is the digest of its configuration, which names all layers' contents.
        assert await _id(docker, name) == kept


async def test_a_list_is_put_together_and_pulled(
    site: Site, docker: Client, tmp_path: Path
) -> None:
    """`docker manifest` pushes a list of what was pushed before; `pull` takes the platform's."""
    repository = f"{site.http}/docker/list"
    names = {arch: f"{repository}:{arch}" for arch in ("amd64", "arm64")}
    kept = {}
    for arch, name in names.items():
        await _load(docker, tmp_path, name)
        kept[arch] = await _id(docker, name)
        await _push(docker, name)
    whole_list = f"{repository}:all"
    await docker.run("manifest", "create", "--insecure", whole_list, *names.values())
    await docker.run("manifest", "annotate", whole_list, names["arm64"], "--arch", "arm64")
    digest = (await docker.run("manifest", "push", "--insecure", "--purge", whole_list)).strip()
    assert await whole(site, whole_list) == digest
    for arch, image in kept.items():
        await docker.run("rmi", "--force", *kept.values())
        await docker.run("pull", "--platform", f"linux/{arch}", whole_list)
        assert await _id(docker, whole_list) == image


async def test_layers_are_mounted_from_another_repository(
    site: Site, docker: Client, tmp_path: Path
) -> None:
    """A second repository gets the layers of the first without their bytes."""
    first, second = f"{site.http}/docker/source:v1", f"{site.http}/docker/target:v1"
    await _load(docker, tmp_path, first)
    await docker.run("push", first)
    await docker.run("tag", first, second)
    mounts, uploads = await mounted(site), await uploaded(site)
    said = await docker.run("push", second)
    assert said.count("Mounted from docker/source") == 2
    assert await mounted(site) == mounts + 2
    assert await uploaded(site) == uploads + 1  # the configuration, which Docker never mounts
    assert await whole(site, second) == await whole(site, first)


async def test_pushing_again_uploads_nothing(site: Site, docker: Client, tmp_path: Path) -> None:
    """What finds all layers there already sends the manifest only."""
    name = f"{site.http}/docker/again:v1"
    await _load(docker, tmp_path, name)
    digest = await _push(docker, name)
    uploads = await answered(site, "start-upload", 202)
    said = await docker.run("push", name)
    assert said.count("Layer already exists") == 2
    assert await answered(site, "start-upload", 202) == uploads
    assert await whole(site, name) == digest


async def test_a_manifest_is_inspected_and_deleted(
    site: Site, docker: Client, tmp_path: Path
) -> None:
    """`docker manifest inspect` shows what is there, and fails like `pull` after a deletion."""
    name = f"{site.http}/docker/deleted:v1"
    await _load(docker, tmp_path, name)
    digest = await _push(docker, name)
    inspect = ("manifest", "inspect", "--insecure", "--verbose", name)
    shown = json.loads(await docker.run(*inspect))
    assert shown["Descriptor"]["digest"] == digest
    async with Registry.at(site.url) as registry:
        await registry.delete("docker/deleted", digest)
    assert (await docker.attempt(*inspect)).exit_code != 0
    assert (await docker.attempt("pull", name)).exit_code != 0


async def test_an_interrupted_push_is_done_again(
    site: Site, docker: Client, tmp_path: Path
) -> None:
    """A push that is ended in the middle of a layer leaves nothing to see; the next is whole."""
    layer = await asyncio.to_thread(large_layer, tmp_path / "layer.tar", size=2 * BREAKS_AFTER)
    async with linked(site.http, free_port()) as link:
        name = f"{link.address}/docker/ended:v1"
        await _load(docker, tmp_path, name, layer)
        await interrupt(docker, link, "push", name)
        async with Registry.at(site.url) as registry:
            assert await registry.shows("docker/ended", "v1") is None
        digest = await _push(docker, name)
    assert await whole(site, name) == digest


@pytest.mark.parametrize("row", ["B6"])
async def test_a_broken_pull_goes_on_where_it_broke(
    site: Site, docker: Client, tmp_path: Path, row: str
) -> None:
    """The engine tries again by itself, and asks only for the bytes that it lacks."""
    layer = await asyncio.to_thread(large_layer, tmp_path / "layer.tar", size=4 * BREAKS_AFTER)
    name = f"{site.http}/docker/broken:v1"
    await _load(docker, tmp_path, name, layer)
    kept = await _id(docker, name)
    await _push(docker, name)
    await docker.run("rmi", "--force", kept)
    before = await answered(site, "get-blob", 206)
    async with broken_once(site) as link:
        slow = name.replace(site.http, link.address)
        await docker.run("pull", slow)
        assert await _id(docker, slow) == kept
    assert await answered(site, "get-blob", 206) > before


async def test_a_layer_of_256_mebibytes(site: Site, docker: Client, tmp_path: Path) -> None:
    """A large layer goes there and back."""
    await _large(site, docker, tmp_path, 256 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_layer_of_2_gibibytes(site: Site, docker: Client, tmp_path: Path) -> None:
    """A very large layer goes there and back."""
    await _large(site, docker, tmp_path, 2048 * MIB)


async def _large(site: Site, docker: Client, folder: Path, size: int) -> None:
    layer = await asyncio.to_thread(large_layer, folder / "layer.tar", size=size)
    name = f"{site.http}/docker/large:v{size}"
    await _load(docker, folder, name, layer)
    kept = await _id(docker, name)
    await _push(docker, name)
    await docker.run("rmi", "--force", kept)
    await docker.run("pull", name, timeout_s=LONG_S)
    assert await _id(docker, name) == kept
    await docker.run("rmi", "--force", kept)
    shutil.rmtree(folder)


async def _load(docker: Client, folder: Path, name: str, *layers: Layer) -> None:
    """Take an image into the engine: of the layers given, or of two small ones."""
    path = folder / "image.tar"
    chosen = layers or (tar_layer(), tar_layer())
    await asyncio.to_thread(docker_archive, path, layers=chosen, tag=name)
    await docker.run("load", "--input", path, timeout_s=LONG_S)
    path.unlink()


async def _push(docker: Client, name: str) -> str:
    """Push an image, and return the digest that the engine now knows it by."""
    await docker.run("push", name, timeout_s=LONG_S)
    known = await docker.run("image", "inspect", "--format", "{{json .RepoDigests}}", name)
    repository = name.rpartition(":")[0]
    (found,) = [one for one in json.loads(known) if one.startswith(f"{repository}@")]
    return str(found.partition("@")[2])


async def _id(docker: Client, name: str) -> str:
    return (await docker.run("image", "inspect", "--format", "{{.Id}}", name)).strip()
