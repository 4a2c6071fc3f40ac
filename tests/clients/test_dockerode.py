"""dockerode at one real site: it drives a Docker engine as tools written for Node do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.images import docker_archive, large_layer, oci_index, tar_layer
from tests.clients.programs import Client
from tests.clients.site import BREAKS_AFTER, mounted, uploaded, whole
from tests.clients.tools import Ctr, interrupt
from tests.faults.registry import Registry
from tests.faults.wanlink import linked
from tests.ports import free_port
from tests.sites import Site

pytestmark = pytest.mark.slow


async def test_push_and_pull(site: Site, dockerode: Client, tmp_path: Path) -> None:
    """Without a login an image is pushed, and pulled by its tag and by its digest."""
    repository = f"{site.http}/dockerode/app"
    kept = await _load(dockerode, tmp_path, f"{repository}:v1")
    await _do(dockerode, "push", f"{repository}:v1")
    digest = await whole(site, f"{repository}:v1")
    for name in (f"{repository}:v1", f"{repository}@{digest}"):
        await _do(dockerode, "remove", kept)
        await _do(dockerode, "pull", name)
        assert (await _do(dockerode, "inspect", name))["Id"] == kept


async def test_the_engine_asks_the_registry_what_a_name_is(
    site: Site, dockerode: Client, ctr: Client, tmp_path: Path
) -> None:
    """`distribution` shows an index's digest and platforms; each platform's image is pulled."""
    index = oci_index(tmp_path / "image", tag="multi", platforms=("linux/amd64", "linux/arm64"))
    name = f"{site.http}/dockerode/multi:v1"
    await Ctr(ctr, tmp_path).push_all(index, name)
    shown = await _do(dockerode, "distribution", name)
    assert shown["Descriptor"]["digest"] == index.digest
    assert [one["architecture"] for one in shown["Platforms"]] == ["amd64", "arm64"]
    for platform, image in index.images.items():
        await _do(dockerode, "pull", name, platform)
        assert (await _do(dockerode, "inspect", name))["Id"] == image.config.digest
        await _do(dockerode, "remove", name)


async def test_layers_are_mounted_or_there_already(
    site: Site, dockerode: Client, tmp_path: Path
) -> None:
    """The same layers are sent to no second repository, and not again to the first."""
    first, second = (f"{site.http}/dockerode/{name}" for name in ("source", "target"))
    await _load(dockerode, tmp_path, f"{first}:v1")
    await _do(dockerode, "push", f"{first}:v1")
    await _do(dockerode, "tag", f"{first}:v1", second, "v1")
    mounts, uploads = await mounted(site), await uploaded(site)
    said = await _do(dockerode, "push", f"{second}:v1")
    assert "Mounted from dockerode/source" in _statuses(said)
    assert await mounted(site) == mounts + 1
    assert await uploaded(site) == uploads + 1  # the configuration, which Docker never mounts
    said = await _do(dockerode, "push", f"{second}:v1")
    assert "Layer already exists" in _statuses(said)
    assert await uploaded(site) == uploads + 1


async def test_a_deleted_image_is_an_error(site: Site, dockerode: Client, tmp_path: Path) -> None:
    """What was deleted is neither pulled nor shown, and the caller is told."""
    name = f"{site.http}/dockerode/deleted:v1"
    await _load(dockerode, tmp_path, name)
    await _do(dockerode, "push", name)
    async with Registry.at(site.url) as registry:
        await registry.delete("dockerode/deleted", await whole(site, name))
    for operation in ("pull", "distribution"):
        refused = await dockerode.attempt(operation, name)
        assert refused.exit_code == 1, refused
        assert "manifest unknown" in refused.stderr


async def test_an_interrupted_push_is_done_again(
    site: Site, dockerode: Client, tmp_path: Path
) -> None:
    """A push whose caller goes away leaves nothing to see; the next is whole."""
    layer = await asyncio.to_thread(large_layer, tmp_path / "layer.tar", size=2 * BREAKS_AFTER)
    async with linked(site.http, free_port()) as link:
        name = f"{link.address}/dockerode/ended:v1"
        await _load(dockerode, tmp_path, name, layer)
        await interrupt(dockerode, link, "push", name)
        async with Registry.at(site.url) as registry:
            assert await registry.shows("dockerode/ended", "v1") is None
        await _do(dockerode, "push", name)
    assert await whole(site, name)


async def _load(dockerode: Client, folder: Path, name: str, *layers: Path) -> str:
    """Take an image into the engine, of the layers given or of a small one, and return its ID."""
    path = folder / "image.tar"
    chosen = layers or (tar_layer(),)
    archive = await asyncio.to_thread(docker_archive, path, layers=chosen, tag=name)
    await _do(dockerode, "load", path)
    return archive.image_id


async def _do(dockerode: Client, operation: str, *given: str | Path) -> Any:
    """Do one thing by dockerode, and return what it answers."""
    return json.loads(await dockerode.run(operation, *given))


def _statuses(events: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in events if "status" in event]
