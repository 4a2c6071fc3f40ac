"""Leases that many transactions share."""

from __future__ import annotations

import asyncio

from node.kv import Lease
from node.stamps import Stamps
from tests.fake_kv import MemoryKV


class _Kv(MemoryKV):
    """A KV that counts the leases it is asked for."""

    grants = 0

    async def grant(self, ttl_s: float) -> Lease:
        """See KV."""
        self.grants += 1
        return await super().grant(ttl_s)


def _stamps(kv: MemoryKV) -> Stamps:
    return Stamps(kv, "fra#1", grace_ms=1, clock_ms=lambda: 1_000_000, granting=asyncio.Lock())


async def _all_at_once(stamps: Stamps) -> None:
    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(stamps.now())


async def test_many_who_need_a_lease_cause_one_grant() -> None:
    """A store that is back after a pause is asked once for each kind of lease."""
    kv = _Kv()
    await _all_at_once(_stamps(kv))
    assert kv.grants == 2


async def test_a_lease_that_was_granted_since_is_kept() -> None:
    """Many transactions fail on one lease that is gone: they cause one new one, not one each."""
    kv = _Kv()
    stamps = _stamps(kv)
    old = await stamps.now()
    stamps.forget(old)
    new = await stamps.now()
    for _ in range(10):
        stamps.forget(old)
        assert await stamps.now() == new
    assert kv.grants == 4
    assert {new.operations, new.events}.isdisjoint({old.operations, old.events})
