"""Calls that most tests of the KV make."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager

from node.kv import KV, Changes, Entry, Failed, Guard, Ok, Op, Put, Range, only


async def commit(kv: KV, *ops: Op, guards: Sequence[Guard] = ()) -> int:
    """Apply the operations, which must succeed; the revision they got."""
    outcome = await kv.txn(guards, ops)
    assert isinstance(outcome, Ok), outcome
    return outcome.revision


async def put(kv: KV, **values: bytes) -> int:
    """Write each value under its name, in one transaction."""
    return await commit(kv, *(Put(name.encode(), value) for name, value in values.items()))


async def refused(kv: KV, guard: Guard) -> Entry | None:
    """What stood there, of a guard that must not hold."""
    outcome = await kv.txn([guard], [])
    assert isinstance(outcome, Failed), outcome
    (found,) = outcome.found
    return found


async def get(kv: KV, key: bytes) -> Entry | None:
    """The entry at a key."""
    ((*entries,),) = (await kv.read([only(key)])).ranges
    return entries[0] if entries else None


async def must_get(kv: KV, key: bytes) -> Entry:
    """The entry at a key that is there."""
    entry = await get(kv, key)
    assert entry is not None, key
    return entry


async def keys(kv: KV, within: Range) -> list[bytes]:
    """The keys of a range."""
    (entries,) = (await kv.read([within])).ranges
    return [entry.key for entry in entries]


@asynccontextmanager
async def following(
    kv: KV, within: Range, after: int, *, deadline_s: float = 10.0
) -> AsyncIterator[AsyncIterator[Changes]]:
    """Follow a range inside the block, which may take so long."""
    stream = kv.changes(within, after)
    try:
        async with asyncio.timeout(deadline_s):
            yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def next_entries(stream: AsyncIterator[Changes]) -> tuple[Entry, ...]:
    """The next entries told; batches that only say how far the store has gone are passed over."""
    async for batch in stream:
        if batch.entries:
            return batch.entries
    raise AssertionError("changes ended")
