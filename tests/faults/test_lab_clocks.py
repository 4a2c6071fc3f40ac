"""F13: sites whose clocks are wrong by a day and by a quarter of an hour.

ENTREPOT_SEED replays which site pushes when.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Final

import pytest

from node.keys import TagName
from node.reference import parse_repository, parse_tag
from tests.faults.lab import lab
from tests.faults.netns import require
from tests.faults.pusher import SHARED, Load
from tests.faults.registry import Registry
from tests.faults.stopped import check
from tests.faults.story import Story
from tests.scenario.checker import State
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(600)

CLOCKS_S: Final = {"nyc": 86_400, "sgp": -900}
ARRIVES_S: Final = 120.0


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.mark.slow
async def test_fifty_later_pushes_are_shown(tmp_path: Path, seed: int) -> None:
    """F13, I8: who pushes after having seen a push replaces it everywhere, whatever the clocks."""
    await _later_pushes_are_shown(tmp_path, random.Random(seed), 50)


@pytest.mark.torture
@pytest.mark.timeout(3600)
async def test_two_thousand_later_pushes_are_shown(tmp_path: Path, seed: int) -> None:
    """F13, for longer."""
    await _later_pushes_are_shown(tmp_path, random.Random(seed), 2_000)


async def _later_pushes_are_shown(folder: Path, chance: random.Random, pushes: int) -> None:
    require()
    async with lab(folder, clocks_s=CLOCKS_S) as mesh:
        mesh.join(combinations(mesh.sites, 2))
        await mesh.start()
        story = Story(mesh, "clocks", chance, Load(shared=0))
        names = [(repo, tag) for repo in story.load.repositories for tag in SHARED]
        try:
            async with story.watched():
                await story.push(1)
                async with asyncio.TaskGroup() as group:
                    for number, name in enumerate(names):
                        some = len(range(number, pushes, len(names)))
                        turns = random.Random(chance.random())
                        group.create_task(_one_after_the_other(story, turns, *name, some))
                story.tell(f"all say so {await story.agreed():.1f} s later")
            await story.check()
        finally:
            story.write(folder)
            mesh.show_logs()
        shown = sum(push.shared for push in story.history.acknowledged)
        story.tell(f"{shown} of {pushes} later pushes were shown")
        await mesh.stop()
        for site in mesh.sites.values():
            _clocks_differ(story, check(site))


async def _one_after_the_other(
    story: Story, chance: random.Random, repository: str, tag: str, count: int
) -> None:
    """Push to one tag by turns; each push is shown everywhere before the next."""
    for _ in range(count):
        pushed = await story.push_to(chance.choice(list(story.lab.sites)), repository, tag)
        for site, at in story.lab.at.items():

            async def shows(at: Registry = at, pushed: str = pushed) -> bool:
                return await at.shows(repository, tag) == pushed

            await eventually(shows, ARRIVES_S, f"{site} shows the latest push to {tag}")


def _clocks_differ(story: Story, state: State) -> None:
    """See that the clocks were wrong: each site's first push says when it was, by them."""
    now_ms = time.time_ns() // 1_000_000
    for push in story.history.acknowledged[: len(story.lab.sites)]:
        register = state.tags[TagName(parse_repository(push.repository), parse_tag(push.tag))]
        ((_, pushed),) = register.siblings.items()
        wrong_ms = 1000 * CLOCKS_S.get(push.site, 0)
        assert abs(pushed.ms - now_ms - wrong_ms) < 600_000
