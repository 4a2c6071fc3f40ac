"""Joined reads: what many requests ask at the same moment becomes one read of the KV.

Idle, a read is sent at once.  While two batches are on their way, further reads gather, and go
together when one of the two returns; there is no timer.  A read never joins a batch that was sent
already, so it sees all that was acknowledged before it was asked (P2).

Whoever only shows what is read says so (node/showing.py), and is answered something stale rather
than nothing while the store has no majority.  All others then get `MetadataUnavailable`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from node.errors import MetadataUnavailable
from node.kv import KV, MAX_RANGES, Range, Snapshot
from node.showing import shown_now

_IN_FLIGHT: Final = 2


class _Waiting(NamedTuple):
    ranges: Sequence[Range]
    answer: asyncio.Future[Snapshot]
    may_be_stale: bool

    def tell(self, snapshot: Snapshot) -> None:
        """Answer, unless whoever asked has left."""
        if self.answer.done():
            return
        if snapshot.stale and not self.may_be_stale:
            self.answer.set_exception(MetadataUnavailable(snapshot.stale))
        else:
            self.answer.set_result(snapshot)


class JoinedReads:
    """A reader over a KV that has come to a revision `at_least`; it answers while `run` runs."""

    def __init__(self, kv: KV, at_least: int = 0) -> None:
        self._kv = kv
        self._waiting: deque[_Waiting] = deque()
        self._wanted = asyncio.Event()
        self._reached = at_least

    async def read(self, ranges: Sequence[Range]) -> Snapshot:
        """See `node.kv.KV.read`; inside of `showing` it may be stale, and is noted there."""
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges in one read, at most {MAX_RANGES}")
        shown = shown_now()
        future = asyncio.get_running_loop().create_future()
        waiting = _Waiting(ranges, future, may_be_stale=shown is not None)
        self._waiting.append(waiting)
        self._wanted.set()
        snapshot = await waiting.answer
        if shown is not None and snapshot.stale:
            shown.stale = snapshot.stale
        return snapshot

    def _notice(self, snapshot: Snapshot, reached: int) -> None:
        """Refuse a store that is behind what was read before it was asked: it was restored."""
        if snapshot.stale:
            return
        if snapshot.revision < reached:
            raise MetadataUnavailable("the store went back in time")
        self._reached = max(self._reached, snapshot.revision)

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
            if batch and self._waiting[0].may_be_stale != batch[0].may_be_stale:
                break  # who decides is not to be told "no leader" for the haste of who shows
            waiting = self._waiting.popleft()
            if not waiting.answer.done():  # else whoever asked has left
                batch.append(waiting)
                room -= len(waiting.ranges)
        if not self._waiting:
            self._wanted.clear()
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        reached = self._reached
        try:
            snapshot = await self._kv.read(
                [r for waiting in batch for r in waiting.ranges],
                may_be_stale=batch[0].may_be_stale,
            )
            self._notice(snapshot, reached)
        except MetadataUnavailable as err:
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(MetadataUnavailable(err.reason))
            return
        at = 0
        for waiting in batch:
            end = at + len(waiting.ranges)
            waiting.tell(snapshot._replace(ranges=snapshot.ranges[at:end]))
            at = end
