"""Joined reads: what a store says that went back in time decides nothing."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import MetadataUnavailable
from node.kv import Put, only
from node.reads import JoinedReads
from tests.fake_kv import MemoryKV


@pytest.fixture
async def kv() -> MemoryKV:
    """A store that was written to."""
    kv = MemoryKV()
    for n in range(5):
        await kv.txn([], [Put(b"a", str(n).encode())])
    return kv


async def test_a_store_that_is_restored_under_a_process_is_refused(kv: MemoryKV) -> None:
    """Else dots that were used would be used again, until somebody compares marks (6.4)."""
    old = kv.copy()
    await kv.txn([], [Put(b"a", b"new")])
    reads = JoinedReads(kv)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reads.run())
        assert (await reads.read([only(b"a")])).ranges[0][0].value == b"new"
        kv.restore(old)
        for _ in range(2):
            with pytest.raises(MetadataUnavailable, match="went back in time"):
                await reads.read([only(b"a")])
        await kv.txn([], [Put(b"a", b"later")])
        assert (await reads.read([only(b"a")])).ranges[0][0].value == b"later"
        running.cancel()


async def test_a_store_that_is_behind_its_mark_is_refused(kv: MemoryKV) -> None:
    """A process that could not compare at its start decides nothing on less than the mark."""
    reads = JoinedReads(kv, 1000)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(reads.run())
        with pytest.raises(MetadataUnavailable, match="went back in time"):
            await reads.read([only(b"a")])
        running.cancel()
