"""When a peer was heard last, and since when it is away: two things, of which one may not be."""

from __future__ import annotations

from replicator.measures import State
from replicator.reach import Reach
from tests.clock import Clock


def _times(reach: Reach) -> tuple[int, int]:
    return reach.unheard_since_ms, reach.heard_ms


def test_a_peer_that_was_never_heard_has_no_time_of_it() -> None:
    """It is away since following it began."""
    clock = Clock(1_000)
    reach = Reach("fra", clock)
    clock.advance(500)
    reach.turn(State.UNREACHABLE, "no route")
    clock.advance(500)
    reach.turn(State.REFUSED, "who are you?")
    assert _times(reach) == (1_500, 0)


def test_a_peer_that_went_away_was_heard_until_then() -> None:
    """Nothing is said of one that is followed; one that answers, and no more, was heard then."""
    clock = Clock(1_000)
    reach = Reach("fra", clock)
    reach.turn(State.SCANNING)
    reach.turn(State.FOLLOWING)
    clock.advance(500)
    assert _times(reach) == (0, 0)
    reach.turn(State.UNREACHABLE, "cut")
    assert _times(reach) == (1_500, 1_500)
    clock.advance(500)
    reach.heard()
    reach.turn(State.UNREACHABLE, "cut")
    assert _times(reach) == (1_500, 2_000)
