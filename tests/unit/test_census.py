"""The number of tags in conflict, as a metric."""

from __future__ import annotations

import asyncio

import pytest

from node import keys
from node.election import Candidate
from node.errors import MetadataUnavailable
from node.kv import Delete, Put
from node.reference import Repository, Tag
from node.telemetry import Metrics
from replicator.census import Census
from tests.fake_kv import MemoryKV

APP = Repository("team/app")


def _shown(metrics: Metrics) -> float:
    (metric,) = metrics.registry.restricted_registry(["entrepot_conflicts"]).collect()
    return metric.samples[0].value


async def _conflicts(kv: MemoryKV, count: int) -> None:
    for number in range(count):
        await kv.txn([], [Put(keys.conflict(APP, Tag(f"t{number}")), b"")])


async def _watched(kv: MemoryKV, metrics: Metrics, looks: int, most: int = 10_000) -> list[float]:
    """What the metric shows at each look, after which one conflict is resolved."""
    seen: list[float] = []

    async def sleep(_: float) -> None:
        seen.append(_shown(metrics))
        await kv.txn([], [Delete(keys.conflict(APP, Tag(f"t{len(seen)}")))])
        if len(seen) == looks:
            raise asyncio.CancelledError

    leadership = await Candidate(kv, "census", "worker", await kv.grant(60)).enter()
    with pytest.raises(asyncio.CancelledError):
        await Census(kv, metrics, most=most, sleep=sleep).run(leadership)
    return seen


async def test_the_metric_follows_the_conflicts() -> None:
    """All are counted, of whatever number, again and again; who stops counting shows none."""
    kv, metrics = MemoryKV(), Metrics("test")
    await _conflicts(kv, 1001)
    assert await _watched(kv, metrics, looks=3) == [1001, 1000, 999]
    assert _shown(metrics) == 0


async def test_counting_is_bounded() -> None:
    """A flood of conflicts does not keep the replicator busy: it counts to a number and no more."""
    kv, metrics = MemoryKV(), Metrics("test")
    await _conflicts(kv, 1200)
    assert await _watched(kv, metrics, looks=1, most=600) == [600]


async def test_a_count_that_fails_is_the_duty_s_failure() -> None:
    """Without metadata nothing is shown as if it were known."""
    kv, metrics = MemoryKV(), Metrics("test")
    leadership = await Candidate(kv, "census", "worker", await kv.grant(60)).enter()
    kv.down = True
    with pytest.raises(MetadataUnavailable):
        await Census(kv, metrics).run(leadership)
    assert _shown(metrics) == 0
