"""Sites that come back with an old state: an etcd's snapshot, an old disk, a peer taken out.

What had reached a peer comes back (P5), and what was deleted does not (P6), whoever returns.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from node import keys
from node.life import FILE
from tests.etcd import Etcd, running
from tests.faults.registry import Image, Registry, new_image
from tests.faults.stopped import entries
from tests.nodes import nodes
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

REPOSITORY: Final = "team/app"
WITHIN_S: Final = 120.0


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@dataclass
class Pair:
    """Two sites that follow each other, and what each tag is to show at both."""

    fra: Site
    nyc: Site
    chance: random.Random
    shown: dict[str, Image | None] = field(default_factory=dict)

    async def push(self, site: Site, *tags: str) -> None:
        """Push a new image to each tag."""
        async with Registry.at(site.url) as registry:
            for tag in tags:
                image = new_image(self.chance)
                await registry.push(REPOSITORY, image, tag)
                self.shown[tag] = image

    async def delete(self, site: Site, *tags: str) -> None:
        """Delete each tag, and what it shows."""
        async with Registry.at(site.url) as registry:
            for tag in tags:
                image = self.shown[tag]
                assert image is not None
                await registry.delete(REPOSITORY, image.digest)
                self.shown[tag] = None

    async def settle(self, *sites: Site) -> None:
        """Wait until the sites show just what they are to, whole."""
        for site in sites or (self.fra, self.nyc):
            async with Registry.at(site.url) as registry:
                for tag, image in self.shown.items():

                    async def same(
                        at: Registry = registry, tag: str = tag, image: Image | None = image
                    ) -> bool:
                        return await at.pull(REPOSITORY, tag) == (image and image.digest)

                    await eventually(same, WITHIN_S, f"{tag} at {site.name}")


@asynccontextmanager
async def started(fra: Site, nyc: Site, chance: random.Random) -> AsyncIterator[Pair]:
    """Both sites while they run; they have to end well."""
    fra.follow(nyc)
    nyc.follow(fra)
    with ended(fra, nyc):
        await asyncio.gather(fra.start(), nyc.start())
        yield Pair(fra, nyc, chance)
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        fra.show_logs()
        nyc.show_logs()


# --- etcd


def _etcdctl(*command: str) -> None:
    subprocess.run(
        ("etcdctl", *command),
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        timeout=60,
    )


async def _restore(etcd: Etcd, snapshot: Path) -> None:
    """Put a snapshot in the place of the only member's data, as an operator does."""
    etcd.kill(0)
    await to_thread(shutil.rmtree, etcd.folder / "m0")
    await to_thread(_etcdctl, "snapshot", "restore", str(snapshot), *etcd.identity(0))
    etcd.spawn(0)
    await etcd.healthy()


async def _restored(folder: Path, chance: random.Random, pushes: int) -> None:
    """F24, once: an old snapshot under a site whose peer has heard of what came after it."""
    with running(1) as etcd:
        (fra, _), nyc = nodes("fra", folder, etcd), Site("nyc", folder / "nyc")
        async with started(fra, nyc, chance) as pair:
            old = [f"old-{n}" for n in range(pushes)]
            await pair.push(fra, *old, "moved", "gone-here", "gone-there")
            await pair.settle()
            snapshot = folder / "snapshot.db"
            await to_thread(
                _etcdctl, f"--endpoints={etcd.endpoints[0]}", "snapshot", "save", str(snapshot)
            )
            await pair.push(fra, "moved", *(f"new-{n}" for n in range(pushes)))
            await pair.push(nyc, "from-nyc")
            await pair.delete(fra, "gone-here")
            await pair.delete(nyc, "gone-there")
            await pair.settle()

            await fra.stop_all()
            await _restore(etcd, snapshot)
            await fra.start()
            await pair.settle()
            await pair.push(fra, old[0], "after")
            await pair.settle()


@pytest.mark.slow
async def test_an_etcd_restored_from_an_old_snapshot(tmp_path: Path, chance: random.Random) -> None:
    """F24: what had reached the peer comes back, what was deleted stays so, and pushes win."""
    await _restored(tmp_path, chance, 5)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_an_etcd_restored_again_and_again(tmp_path: Path, chance: random.Random) -> None:
    """F24, for longer."""
    for number in range(20):
        await _restored(tmp_path / str(number), chance, 20)


# --- peers with an old state


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["metadata.db", "."], ids=["metadata", "disk"])
async def test_a_peer_with_a_month_old_state_brings_nothing_back(
    tmp_path: Path, chance: random.Random, kept: str
) -> None:
    """Its metadata alone is old, or its whole disk, the mark beside the blobs too."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    async with started(fra, nyc, chance) as pair:
        await pair.push(fra, "gone-1", "moved", "kept")
        await pair.push(nyc, "gone-2", "from-nyc")
        await pair.settle()
        await nyc.stop_all()
        copy = tmp_path / "copy"
        await to_thread(shutil.copytree, nyc.folder, copy)
        await nyc.start()
        await pair.delete(fra, "gone-1", "gone-2")
        await pair.push(nyc, "moved", "new")
        await pair.settle()

        await nyc.stop_all()
        await to_thread(_put_back, copy, nyc, kept)
        if kept == ".":
            await _learn_from_the_peer(nyc)
        await nyc.start()
        await pair.settle()
        # Dots that its old state would have used a second time would lose these.
        await pair.push(nyc, "kept", "after")
        await pair.settle()


async def _learn_from_the_peer(site: Site) -> None:
    """Run until the site has begun a new life; a supervisor would start its processes again."""
    before = _incarnation(site)
    for program in site.programs:
        site.spawn(program)

    async def anew() -> bool:
        return await to_thread(_incarnation, site) != before

    await eventually(anew, WITHIN_S, f"{site.name} begins a new life")
    site.end()


def _incarnation(site: Site) -> str:
    return str(json.loads((site.blobs / FILE).read_text())["incarnation"])


def _put_back(copy: Path, site: Site, kept: str) -> None:
    if kept == ".":
        shutil.rmtree(site.folder)
        shutil.copytree(copy, site.folder)
        return
    for file in site.folder.glob("metadata.db*"):
        file.unlink()
    shutil.copyfile(copy / kept, site.metadata)


@pytest.mark.slow
async def test_a_peer_that_was_taken_out_comes_back(tmp_path: Path, chance: random.Random) -> None:
    """It is forgotten meanwhile, is read from its beginning, and brings nothing deleted back."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    async with started(fra, nyc, chance) as pair:
        await pair.push(fra, "gone", "moved")
        await pair.push(nyc, "from-nyc")
        await pair.settle()
        await nyc.stop_all()
        await fra.stop_all()
        fra.leave(nyc)
        await fra.start()

        async def forgotten() -> bool:
            held = await to_thread(entries, fra)
            return not {keys.cursor("nyc"), keys.ack("nyc"), keys.status("nyc")} & held.keys()

        await eventually(forgotten, WITHIN_S, "nothing is known of nyc")
        await pair.delete(fra, "gone")
        await pair.push(fra, "moved", "alone")

        await fra.stop_all()
        fra.follow(nyc)
        await asyncio.gather(fra.start(), nyc.start())
        await pair.settle()
