"""Follow a range of an etcd: its watch, without what is not to be trusted of it.

- A cursor moves by events, or by a look at the range, and by nothing else.  Progress notifications
  of etcd before 3.4.25 run ahead of events, and so does the revision that a long answer names.
- A look is what a range of few keys is begun with: etcd searches it for what is newer.  Of many
  keys that is too dear; there the watch begins, and if it has nothing to tell, the keys are gone
  through by parts: if none is newer than the cursor, that goes on to the revision from before.
  A compaction matters only where there is no look: the port tells no deletions.
- A stream that was silent for a minute is closed, and a look decides.  So a watch that etcd forgot
  (3.4.23 does), or a member that hangs, costs a minute.
- A revision comes once, whole, and in order, whatever etcd repeats or splits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from operator import attrgetter
from typing import Final

from grpc.aio import EOF, AioRpcError

from node.errors import MetadataUnavailable
from node.kv import Changes, Compacted, Range
from node.kv_etcd_landmarks import Landmarks
from node.kv_etcd_lines import Method
from node.kv_etcd_members import READ_S, Members
from node.kv_etcd_messages import Keyspace, Message

SILENCE_S: Final = 60.0
# A watch that begins behind the store's revision tells what is there within 0.1 s.
SHORT_S: Final = 0.5
# etcd reads so many keys in some 10 ms.
FEW: Final = 10_000
# Landmarks lie a page apart, and etcd reads as many keys as lie between so many in some 10 ms.
_AHEAD: Final = 8
# Looking takes a fiftieth of the time at the most.
_SHARE: Final = 50
# A stream that ends without having told anything, so often in a row: it never will.
_STREAMS: Final = 5
_PAUSE_S: Final = 0.1

_RANGE: Final[Method] = attrgetter("kv.Range")


class _Broken(Exception):
    """The stream ended; what it told is true."""


class Watch:
    """Follows ranges of one keyspace until it is closed."""

    def __init__(
        self,
        members: Members,
        keyspace: Keyspace,
        landmarks: Landmarks,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._members = members
        self._keyspace = keyspace
        self._landmarks = landmarks
        self._silence_s = silence_s
        self._calls: set[Message] = set()

    async def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """See `node.kv.KV.changes`."""
        clock = asyncio.get_running_loop().time
        broken, waited, reason = 0, False, ""
        while broken < _STREAMS:
            begun = clock()
            there = await self._members.ask(_RANGE, self._keyspace.count(within))
            newest, few = there.header.revision, there.count <= FEW
            if after > newest:
                raise Compacted
            look = newest > after and (few or waited)
            batches = await self._look(within, after, few=few) if look else []
            silence_s = max(self._silence_s, (clock() - begun) * _SHARE)
            for batch in batches:
                after = batch.revision
                yield batch
            shortly, told = newest > after and not waited, after
            try:
                stream = self._told(within, after, SHORT_S if shortly else silence_s)
                async with aclosing(stream):
                    async for batch in stream:
                        after, broken = batch.revision, 0
                        yield batch
                waited = not shortly or after == told
            except Compacted:
                if not few:
                    raise
            except _Broken as err:
                broken, waited, reason = broken + 1, False, str(err)
                await asyncio.sleep(_PAUSE_S)
        raise MetadataUnavailable(reason)

    def close(self) -> None:
        """End all that follow."""
        for call in self._calls:
            call.cancel()

    async def _told(
        self, within: Range, after: int, silence_s: float
    ) -> AsyncGenerator[Changes, None]:
        """What one stream tells, until it falls silent."""
        reads = self._members.reads
        metadata = await self._members.metadata()
        line = await reads.ready(asyncio.get_running_loop().time() + READ_S)
        call = line.watch.Watch(metadata=metadata)
        self._calls.add(call)
        try:
            await call.write(self._keyspace.watch(within, after))
            await self._created(call)
            events: list[Message] = []
            while (response := await self._next(call, silence_s)) is not None:
                events += response.events
                if response.fragment:
                    continue
                for batch in self._keyspace.told(events, after):
                    after = batch.revision
                    yield batch
                events = []
        except (_Broken, AioRpcError, asyncio.InvalidStateError) as err:
            reads.leave(line)
            why = err.details() if isinstance(err, AioRpcError) else err
            raise _Broken(f"etcd at {line.endpoint}: {why}") from err
        finally:
            self._calls.discard(call)
            call.cancel()

    async def _created(self, call: Message) -> None:
        if await self._next(call, READ_S) is None:
            raise _Broken("no watch in time")

    async def _next(self, call: Message, within_s: float) -> Message | None:
        """The next response of a stream, None if there is none in time: then the stream is over."""
        try:
            async with asyncio.timeout(within_s):
                response = await call.read()
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # It is the call that was cancelled, by `close`.
            raise MetadataUnavailable("it is closed") from None
        if response is EOF:
            raise _Broken("the stream ended")
        if response.compact_revision:
            raise Compacted
        if response.canceled:
            raise _Broken(response.cancel_reason)
        return response

    async def _look(self, within: Range, after: int, *, few: bool) -> list[Changes]:
        """How far a cursor may go by what the range holds; of few keys also what is newer."""
        if few:
            found = await self._members.ask(_RANGE, self._keyspace.newer(within, after))
            return list(self._keyspace.found(found, after))
        proven = await self._proven(within, after)
        return [Changes((), proven)] if proven > after else []

    async def _proven(self, within: Range, after: int) -> int:
        """The revision from before all parts, if none of them has anything that is newer.

        Nothing, however new: it may have taken the place of what is not.
        """
        newest, start = 0, within.start
        while start < within.end:
            part = self._landmarks.near(Range(start, within.end), _AHEAD)
            known = part.end < within.end
            request = self._keyspace.newer(part, after, bare=True)
            if not known:
                request = self._keyspace.page(part, bare=True)
            page = await self._members.ask(_RANGE, request)
            newest = newest or page.header.revision
            if any(kv.mod_revision > after for kv in page.kvs):
                return after
            start = part.end
            if page.more and not known:
                start = self._keyspace.entries(page)[-1].key + b"\0"
                self._landmarks.learn(start, page.count)
        return newest
