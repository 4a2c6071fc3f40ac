"""What is said of a store: each trouble is named, and none that is not there."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from node.errors import MetadataUnavailable
from node.kv import Member, Snapshot
from node.telemetry import Metrics
from node.weather import Trouble, Weather, judge
from tests.fake_kv import MemoryKV

UP = Member("a:1", is_leader=True)
DOWN = Member("b:1", ("refused",), is_up=False, has_leader=False)
UNLED = Member("a:1", ("etcdserver: no leader",), has_leader=False)
FULL = Member("a:1", ("memberID:1 alarm:NOSPACE",), is_full=True)
CORRUPT = Member("a:1", ("memberID:1 alarm:CORRUPT",), is_corrupt=True)


@pytest.mark.parametrize(
    ("members", "reason", "read_ms", "troubles"),
    [
        ((), "", 10, []),
        ((UP, UP, UP), "", 499, []),
        ((UP,), "", 500, [Trouble.SLOW]),
        ((UP, DOWN, UP), "", 10, [Trouble.MEMBER_DOWN]),
        ((UNLED, DOWN, DOWN), "no leader", 2000, [Trouble.LEADERLESS, Trouble.MEMBER_DOWN]),
        ((DOWN, DOWN), "gone", 2000, [Trouble.UNAVAILABLE, Trouble.MEMBER_DOWN]),
        ((), "the disk", 10, [Trouble.UNAVAILABLE]),
        ((UP,), "timeout", 2000, [Trouble.UNAVAILABLE]),
        ((FULL, UP), "", 10, [Trouble.FULL]),
        ((CORRUPT, FULL), "", 600, [Trouble.SLOW, Trouble.FULL, Trouble.CORRUPT]),
    ],
)
def test_each_trouble_is_named(
    members: tuple[Member, ...], reason: str, read_ms: int, troubles: list[Trouble]
) -> None:
    """What is found says what is wrong, and nothing else."""
    assert list(judge(members, reason, read_ms / 1000)) == troubles


class Slow(MemoryKV):
    """A store of which each read takes a second, by the clock."""

    now = 0.0

    async def read(self, ranges: object, *, may_be_stale: bool = False) -> Snapshot:
        """Answer after a second, or not at all."""
        self.now += 1
        if self.down:
            raise MetadataUnavailable("it is down")
        assert not may_be_stale
        return Snapshot(((),), 1)


def _value(registry: CollectorRegistry, trouble: Trouble) -> float | None:
    return registry.get_sample_value("entrepot_store_trouble", {"trouble": trouble})


async def test_what_is_wrong_is_shown_until_it_is_over() -> None:
    """Words and metrics follow what each look finds."""
    kv, metrics = Slow(), Metrics("gateway")
    weather = Weather(kv, metrics, clock=lambda: kv.now)
    assert not weather.problems
    assert _value(metrics.registry, Trouble.SLOW) == 0
    await weather.look()
    assert list(weather.problems) == ["slow: a read takes 1.0 s"]
    assert _value(metrics.registry, Trouble.SLOW) == 1
    assert metrics.registry.get_sample_value("entrepot_store_read_seconds") == 1
    kv.down = True
    await weather.look()
    gone = "member_down: memory:1 (it is down)"
    assert list(weather.problems) == ["unavailable: it is down", gone]
    assert _value(metrics.registry, Trouble.SLOW) == 0
    assert _value(metrics.registry, Trouble.UNAVAILABLE) == 1


async def test_a_look_is_taken_again_and_again() -> None:
    """What happens later is found by itself."""
    kv, metrics = Slow(), Metrics("gateway")
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await Weather(kv, metrics, clock=lambda: kv.now, sleep=sleep).run()
    assert slept == [5.0] * 3
    assert kv.now == 3
