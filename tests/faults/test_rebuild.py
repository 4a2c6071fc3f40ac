"""A site that lost its metadata and kept its blobs: rebuilt from its peer, and from its own files.

F25: the states of both are equal afterwards, and of the blobs' bytes none crosses the link but of
those files that were damaged.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from node.keys import Name
from node.kv import prefix
from node.records import Pushed
from node.register import Register
from tests.etcd import Etcd, opened, running
from tests.faults.registry import Blob, Image, Registry, new_image
from tests.faults.stopped import check, entries
from tests.faults.wanlink import linked
from tests.nodes import metrics, nodes, prefix_of
from tests.ports import free_port
from tests.scenario.checker import read_state
from tests.sites import Site, ended
from tests.waiting import eventually

LAYERS: Final = (1 << 10, 4 << 10)
LARGE: Final = 3 << 20
AT_ONCE: Final = 8
# What holds back each chunk of the first time, so that it can be watched.
SLOW_S: Final = 0.02


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@dataclass
class Rebuilt:
    """Site `nyc`, whose `blobs` these are, follows `fra`, where these images are `pushed`."""

    fra: Site
    nyc: Site
    blobs: Path
    chance: random.Random
    pushed: dict[str, Image] = field(default_factory=dict)

    @property
    def blob_bytes(self) -> int:
        """Of all blobs that are pushed, and of the manifests."""
        images = self.pushed.values()
        blobs = sum(len(blob.content) for image in images for blob in image.blobs)
        return blobs + sum(len(image.manifest.content) for image in images)

    async def push(self, count: int) -> None:
        """Push images at fra, one of them large and one with a manifest that is; delete some."""
        images = {
            "large": new_image(self.chance, (LARGE,)),
            "annotated": _annotated(new_image(self.chance)),
            **{f"app-{n}": new_image(self.chance, LAYERS) for n in range(count - 2)},
        }
        places = asyncio.Semaphore(AT_ONCE)
        async with Registry.at(self.fra.url) as registry, asyncio.TaskGroup() as group:

            async def push(repository: str, image: Image) -> None:
                async with places:
                    await registry.push(repository, image, "v1", "gone")
                    await registry.delete(repository, "gone")

            for repository, image in images.items():
                group.create_task(push(f"team/{repository}", image))
        self.pushed = {f"team/{repository}": image for repository, image in images.items()}

    async def is_whole(self) -> None:
        """See that nyc has all, every byte."""
        async with Registry.at(self.nyc.url) as registry:
            for repository, image in self.pushed.items():
                assert await registry.pull(repository, "v1") == image.digest
                assert await registry.shows(repository, "gone") is None

    def damage(self, repository: str, length: int) -> int:
        """Leave only so many bytes of the last blob of an image in nyc's files; its size."""
        blob = self.pushed[repository].blobs[-1]
        (file,) = self.blobs.rglob(f"{blob.digest.partition(':')[2]}.*")
        with file.open("r+b") as content:
            content.truncate(length)
        return len(blob.content)

    async def received(self) -> dict[str, float]:
        """The bytes of blobs that nyc's replicator has fetched, and has taken from files."""
        text = await metrics(self.nyc, "replicator")
        found = re.findall(
            r"^entrepot_(received|salvaged)_bytes_total\S* (\S+)$", text, re.MULTILINE
        )
        return {name: float(number) for name, number in found}


def _annotated(image: Image) -> Image:
    """The image with a manifest that is too large to travel in a change."""
    document = json.loads(image.manifest.content)
    document["annotations"] = {"org.example.notes": "n" * (100 << 10)}
    manifest = Blob(image.manifest.media_type, json.dumps(document).encode())
    return Image(manifest, image.blobs)


def _registers(held: Mapping[bytes, bytes]) -> dict[Name, Register[Pushed]]:
    state = read_state(held)
    return dict([*state.manifests.items(), *state.tags.items()])


async def _held(site: Site, etcd: Etcd | None) -> dict[bytes, bytes]:
    if etcd is None:
        return await asyncio.to_thread(entries, site)
    async with opened(*etcd.endpoints, at=prefix_of(site)) as kv:
        ranges = [prefix(b"M/"), prefix(b"T/")]
        snapshot = await kv.read(ranges)
        return {entry.key: entry.value for found in snapshot.ranges for entry in found}


async def _equal(rebuilt: Rebuilt, etcd: Etcd | None, within_s: float) -> None:
    """Wait until nyc holds what fra does: the same registers, tombstones too."""
    wanted = _registers(await _held(rebuilt.fra, None))
    assert wanted

    async def same() -> bool:
        return _registers(await _held(rebuilt.nyc, etcd)) == wanted

    await eventually(same, within_s, "nyc holds what fra does")


async def _rebuild(
    folder: Path, chance: random.Random, count: int, etcd: Etcd | None = None
) -> None:
    within_s = 60 + count / 5
    fra = Site("fra", folder / "fra")
    nyc = Site("nyc", folder / "nyc") if etcd is None else nodes("nyc", folder, etcd)[0]
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        link = await stack.enter_async_context(linked(fra.http, free_port()))
        nyc.follow(fra, http=link.address)
        fra.follow(nyc)
        rebuilt = Rebuilt(fra, nyc, folder / "nyc" / "blobs", chance)
        await fra.start()
        await rebuilt.push(count)
        link.line.delay_s = SLOW_S
        await nyc.start()
        stack.callback(nyc.show_logs)
        await _tells_its_progress(nyc, within_s)
        await _equal(rebuilt, etcd, within_s)
        link.line.delay_s = 0.0

        await nyc.stop_all()
        lost = rebuilt.damage("team/app-0", 1) + rebuilt.damage("team/app-1", 0)
        await _lose_metadata(nyc, etcd)
        link.passed_bytes, began = 0, time.monotonic()
        await nyc.start()
        await _equal(rebuilt, etcd, within_s)
        took_s = time.monotonic() - began
        received = await rebuilt.received()
        sys.stderr.write(
            f"{count} manifests, {rebuilt.blob_bytes} bytes: rebuilt in {took_s:.1f} s;"
            f" {received}, {link.passed_bytes} bytes of HTTP\n"
        )
        assert received["received"] == lost
        assert link.passed_bytes <= 0.01 * rebuilt.blob_bytes
        await rebuilt.is_whole()
        await asyncio.gather(nyc.stop_all(), fra.stop_all())
        if etcd is None:
            check(nyc)


async def _tells_its_progress(nyc: Site, within_s: float) -> None:
    """Wait until nyc has read all of fra; where it says how far that is, it is never less."""
    told: list[tuple[int, int]] = []

    async def followed() -> bool:
        peer = await nyc.peer("fra")
        if (progress := peer["progress"]) is None:
            return bool(peer["state"] == "following" and peer["cursor"] > 0)
        told.append((progress["items_done"], progress["bytes_done"]))
        assert peer["state"] == "scanning"
        assert progress["items"] is None or progress["items_done"] <= progress["items"]
        return False

    await eventually(followed, within_s, "nyc has read all of fra")
    assert told == sorted(told)


async def _lose_metadata(nyc: Site, etcd: Etcd | None) -> None:
    if etcd is None:
        for file in nyc.folder.glob("metadata.db*"):
            file.unlink()
    else:
        etcd.kill(0)
        shutil.rmtree(etcd.folder / "m0")
        etcd.spawn(0)
        await etcd.healthy()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_site_is_rebuilt_from_its_peer_and_its_own_files(
    tmp_path: Path, chance: random.Random
) -> None:
    """F25: what its files still have does not cross the link, and what they lost does."""
    await _rebuild(tmp_path, chance, 200)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_site_whose_etcd_is_lost_is_rebuilt_likewise(
    tmp_path: Path, chance: random.Random
) -> None:
    """F25, where the metadata was an etcd that begins anew."""
    with running(1) as etcd:
        await _rebuild(tmp_path, chance, 50, etcd)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_a_site_of_thousands_of_manifests_is_rebuilt(
    tmp_path: Path, chance: random.Random
) -> None:
    """F25, with 5,000 manifests."""
    await _rebuild(tmp_path, chance, 5000)
