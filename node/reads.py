"""Joined reads: what many requests ask at the same moment becomes one read of the KV.

Idle, a read is sent at once.  While two batches are on their way, further reads gather, and go
together when one of the two returns; there is no timer.  A read never joins a batch that was sent
already, so it sees all that was acknowledged before it was asked (P2).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from node.errors import MetadataUnavailable
from node.kv import KV, MAX_RANGES, Range, Snapshot

_IN_FLIGHT: Final = 2


class _Waiting(NamedTuple):
    ranges: Sequence[Range]
    answer: asyncio.Future[Snapshot]


class JoinedReads:
    """A reader over a KV; it answers only while `run` runs."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self._waiting: deque[_Waiting] = deque()
        self._wanted = asyncio.Event()

    async def read(self, ranges: Sequence[Range]) -> Snapshot:
        """See `node.kv.KV.read`."""
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges in one read, at most {MAX_RANGES}")
        waiting = _Waiting(ranges, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wanted.set()
        return await waiting.answer

    async def run(self) -> None:
        """Send batches until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(_IN_FLIGHT):
                group.create_task(self._pump())

    async def _pump(self) -> None:
        while True:
            await self._wanted.wait()
            batch = self._take()
            if batch:
                await self._answer(batch)

    def _take(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = MAX_RANGES
        while self._waiting and len(self._waiting[0].ranges) <= room:
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # else whoever asked has left
                batch.append(waiting)
                room -= len(waiting.ranges)
        if not self._waiting:
            self._wanted.clear()
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        try:
            snapshot = await self._kv.read([r for waiting in batch for r in waiting.ranges])
        except MetadataUnavailable as err:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(MetadataUnavailable(err.reason))
            return
        at = 0
        for waiting in batch:
            end = at + len(waiting.ranges)
            if not waiting.answer.done():
                waiting.answer.set_result(Snapshot(snapshot.ranges[at:end], snapshot.revision))
            at = end
