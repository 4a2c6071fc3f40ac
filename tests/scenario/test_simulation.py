"""Three sites, thousands of histories: whatever happens, they converge and no push is lost.

`ENTREPOT_SEEDS=50000` plays more of them, `ENTREPOT_SEED=17` plays one and prints its trace.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.scenario.deletes import ARCHIVE, DELETES
from tests.scenario.sameness import SAMENESS_STORIES
from tests.scenario.stories import STORIES
from tests.scenario.world import World

_CHUNK = 100
_CHUNKS = -(-int(os.environ.get("ENTREPOT_SEEDS", "2000")) // _CHUNK)
_SEED = os.environ.get("ENTREPOT_SEED")


@pytest.mark.skipif(_SEED is not None, reason="ENTREPOT_SEED asks for one seed")
@pytest.mark.parametrize("chunk", range(_CHUNKS))
def test_every_history_converges(chunk: int) -> None:
    """Cuts, crashes, lost replies, races, wrong clocks: sound at each step, equal at the end."""
    for seed in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
        World(seed).run()


@pytest.mark.skipif(_SEED is None, reason="ENTREPOT_SEED names no seed")
def test_the_seed_converges() -> None:
    """One history, to look at."""
    world = World(int(_SEED or 0))
    world.run()
    pytest.skip("\n".join(["it converges:", *world.trace]))


@pytest.mark.parametrize("seed", [3, 29, 64])
def test_a_seed_replays_exactly(seed: int) -> None:
    """What failed once fails again, step by step, to the last byte."""
    first, second = World(seed), World(seed)
    first.run()
    second.run()
    assert first.trace == second.trace
    for one, other in zip(first.sites, second.sites, strict=True):
        assert one.kv.entries() == other.kv.entries()


@pytest.mark.parametrize(
    "story", [*STORIES, *DELETES, *ARCHIVE, *SAMENESS_STORIES], ids=lambda story: story.__name__
)
def test_the_story_ends_well(story: Callable[[], None]) -> None:
    """A turn of events that once broke a promise, or would without one rule, does not."""
    story()
