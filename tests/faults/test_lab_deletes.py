"""F12: what was deleted stays so, through cuts, resyncs and sites that come back from the past.

ENTREPOT_SEED replays what is pushed and deleted.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from node.life import EVERY_S, FILE
from tests.faults.lab import keep, lab, put_back
from tests.faults.netns import require
from tests.faults.pusher import Load
from tests.faults.stopped import check
from tests.faults.story import Story
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

NOTICED_S: Final = 3 * EVERY_S


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.mark.slow
async def test_sixty_deletes_stay(tmp_path: Path, seed: int) -> None:
    """F12, P6: nothing deleted comes back and nothing else goes, whoever returns from whenever."""
    await _deletes_stay(tmp_path, random.Random(seed), 60)


@pytest.mark.torture
@pytest.mark.timeout(3 * 3600)
async def test_five_thousand_deletes_stay(tmp_path: Path, seed: int) -> None:
    """F12, for longer."""
    await _deletes_stay(tmp_path, random.Random(seed), 5_000)


async def _deletes_stay(folder: Path, chance: random.Random, deletes: int) -> None:
    require()
    async with lab(folder) as mesh:
        mesh.join(combinations(mesh.sites, 2))
        await mesh.start()
        story = Story(mesh, "deletes", chance, Load(shared=0, largest_bytes=1 << 14))
        try:
            await _pushed(story, 2 * deletes // 5, folder / "old")
            await _deleted_during_a_cut(story, chance, deletes)
            await _told_again(story)
            await _back_from_the_past(story, folder / "old", metadata_only=False)
            await _back_from_the_past(story, folder / "old", metadata_only=True)
            async with story.watched():
                story.tell(f"all say so {await story.agreed():.1f} s later")
        finally:
            story.write(folder)
            mesh.show_logs()
        await mesh.stop()
        for site in mesh.sites.values():
            check(site)


async def _pushed(story: Story, count: int, old: Path) -> None:
    """Push images enough at all sites; keep what sgp has of them."""
    sgp = story.lab.sites["sgp"]
    await story.push(count)
    await story.converged()
    await sgp.stop_all()
    keep(sgp, old)
    await sgp.start()


async def _deleted_during_a_cut(story: Story, chance: random.Random, count: int) -> None:
    """Delete tags and digests at any site, some at two, some while another pushes them again."""
    seen = time.monotonic()
    names = list(story.lab.sites)
    async with story.watched():
        story.lab.cut_all()
        for push in chance.sample(story.history.acknowledged, count):
            site, other = chance.sample(names, 2)
            reference = chance.choice((push.tag, push.digest))
            await story.delete(site, push.repository, reference, seen)
            also = chance.random()
            if also < 0.2:
                await story.delete(other, push.repository, reference, seen)
            elif also < 0.4:
                await story.push_again(other, push)
        story.lab.heal()
        took_s = await story.converged()
    await story.check()
    gone = len(story.history.gone)
    story.tell(f"{count} deletes during a cut: the same {took_s:.1f} s after it; {gone} are gone")


async def _told_again(story: Story) -> None:
    """Make each site take all that its peers have once more, as if it had never heard of it."""
    async with asyncio.TaskGroup() as group:
        for site, peer in story.lab.pairs:
            group.create_task(story.lab.resync(site, peer))
    await _ends_well(story, "told all again")


async def _back_from_the_past(story: Story, old: Path, *, metadata_only: bool) -> None:
    """Give sgp back what it had before the deletes: all of it, or only its metadata."""
    sgp = story.lab.sites["sgp"]
    life = _life(sgp)
    await sgp.stop_all()
    put_back(sgp, old, metadata_only=metadata_only)
    if not metadata_only:
        await _learns_from_peers(sgp)
    await sgp.start()
    assert _life(sgp) != life or not metadata_only, "no new life has begun"
    what = "metadata is" if metadata_only else "data are"
    await _ends_well(story, f"sgp's {what} from before the deletes")


async def _learns_from_peers(site: Site) -> None:
    """Run until the site has begun a new life, as nothing but its peers can tell it to.

    It may have overtaken what they know by the time they tell, and need none.
    """
    for program in site.programs:
        site.spawn(program)
    with suppress(AssertionError):
        await eventually(lambda: not any(map(site.running, site.programs)), NOTICED_S, "it ends")


def _life(site: Site) -> str:
    return str(json.loads((site.blobs / FILE).read_text())["incarnation"])


async def _ends_well(story: Story, what: str) -> None:
    """See that all sites show what they have to, and go on."""
    async with story.watched():
        await story.push(1)
        took_s = await story.converged()
    await story.check()
    story.tell(f"{what}: the same {took_s:.1f} s later; 0 of {len(story.history.gone)} came back")
