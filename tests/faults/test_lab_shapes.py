"""Sites that don't all know each other: what one of them takes comes to all, and then all is quiet.

ENTREPOT_SEED replays what is pushed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.faults.lab import Lab, lab
from tests.faults.netns import require
from tests.faults.pusher import Load
from tests.faults.stopped import check
from tests.faults.story import Story
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

NAMES: Final = ("fra", "nyc", "sgp", "syd")
CHAIN: Final = (("fra", "nyc"), ("nyc", "sgp"), ("sgp", "syd"))
STAR: Final = (("fra", "nyc"), ("fra", "sgp"), ("fra", "syd"))
QUIET_S: Final = 3.0


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.mark.slow
async def test_what_one_takes_goes_along_a_chain(tmp_path: Path, seed: int) -> None:
    """6.3: pushes and deletes go by sites in between, and end: then nobody writes any more."""
    await _goes_round(tmp_path, CHAIN, random.Random(seed))


@pytest.mark.torture
async def test_what_one_takes_goes_round_a_star(tmp_path: Path, seed: int) -> None:
    """6.3, with one site in the middle."""
    await _goes_round(tmp_path, STAR, random.Random(seed))


async def _goes_round(
    folder: Path, pairs: tuple[tuple[str, str], ...], chance: random.Random
) -> None:
    require()
    async with lab(folder, NAMES) as four:
        four.join(pairs)
        await four.start()
        story = Story(four, "shape", chance, Load(shared=0))
        try:
            await _pushed_and_deleted(story)
        finally:
            story.write(folder)
            four.show_logs()
        await four.stop()
        for site in four.sites.values():
            check(site)


async def _pushed_and_deleted(story: Story) -> None:
    async with story.watched():
        await story.push(4)
        pushed_s = await story.converged()
        seen = time.monotonic()
    for number, push in enumerate(story.history.acknowledged[: 2 * len(NAMES)]):
        site = NAMES[number % len(NAMES)]
        reference = (push.tag, push.digest)[number // len(NAMES)]
        await story.delete(site, push.repository, reference, seen)
    deleted_s = await story.converged()
    await story.check()
    story.tell(f"pushes came to all in {pushed_s:.1f} s, deletes in {deleted_s:.1f} s")
    await _is_quiet(story.lab)


async def _is_quiet(lab: Lab) -> None:
    """Wait until no site has written anything for some seconds."""
    last = await lab.revisions()
    since = time.monotonic()

    async def nothing_new() -> bool:
        nonlocal last, since
        now = await lab.revisions()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since >= QUIET_S

    await eventually(nothing_new, 60.0, "nobody writes any more")
