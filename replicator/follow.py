"""Follow one peer: keep its feed open, apply what comes, remember how far.

    connect -> hello -> changes after what is in the book -> lanes -> cursor, parks, status -> ack
       ^                                  |
       +---- 0.2-5 s, or at once when ----+  the stream ends, for whatever reason
             the peer is back

The lanes go on while the stream is down, so a cut of the feed costs no transfer; what is in the
book need not be told again.  All is told again, by a scan, where the source lives a new life, or
where a filter has changed at either site: the cursor has passed what the old one held back.

The book is saved at most once a second, and only if there is something to remember: two sites that
have nothing to tell each other write nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from enum import StrEnum
from typing import Final

import structlog

from node.election import Deposed, Leadership
from node.errors import MetadataUnavailable, PeerUnavailable, Refused, RegistryError
from node.kv import KV
from node.records import Cursor
from node.reference import Repository
from node.wire.feed_codec import Batch, FollowRecord
from replicator.book import Ledger, Parks
from replicator.checkpoint import Checkpoint
from replicator.feed_client import FeedClient, FeedDamaged, FeedStream
from replicator.lanes import Applying, Lanes

_SAVE_S: Final = 1.0
_LAST_SAVE_S: Final = 3.0
# Revisions of the source that bring nothing for us are remembered this coarsely.
_COARSE: Final = 1000
_CLOCKS_DIFFER_MS: Final = 5000
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

_log = structlog.stdlib.get_logger(__name__)


class State(StrEnum):
    """How following a peer goes."""

    STARTING = "starting"
    SCANNING = "scanning"
    FOLLOWING = "following"
    PARKED = "parked"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class Follow:
    """One peer's follower, for as long as it leads. `clock_ms` is the wall clock."""

    def __init__(
        self,
        kv: KV,
        client: FeedClient,
        applying: Applying,
        leadership: Leadership,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._applying = applying
        self._checkpoint = Checkpoint(kv, client.site, leadership)
        self._clock_ms = clock_ms
        self._state = State.STARTING
        self._error = ""
        self._head = 0
        self._ahead_ms = 0  # how much the peer's clock is ahead of ours
        self._life = ""
        self._saved = Cursor("", 0)
        self._saving = asyncio.Lock()
        self._told: FollowRecord | None = None
        self._acked = 0
        self._stream: FeedStream | None = None
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled; the book is saved at the end.

        Raises:
            MetadataUnavailable: The book could not be loaded.
            Deposed: Somebody else leads.
        """
        standing = await self._checkpoint.load()
        self._saved, self._life = standing.cursor, standing.cursor.incarnation
        loop = asyncio.get_running_loop()
        parks = Parks(loop.time, self._clock_ms, random.random, standing.parked)
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(
                group,
                self._applying,
                self._repository,
                ledger=Ledger(standing.cursor),
                parks=parks,
                news=self._news.set,
            )
            try:
                group.create_task(self._save_for_ever(lanes))
                await self._follow_for_ever(lanes)
            finally:
                # A deposed leader's book is of no use; an error here would hide the cancellation.
                with suppress(Deposed, MetadataUnavailable, TimeoutError):
                    async with asyncio.timeout(_LAST_SAVE_S):
                        await self._save(lanes)

    # --- following

    async def _follow_for_ever(self, lanes: Lanes) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            told = False
            try:
                async for _ in self._batches(lanes):
                    told = True
                self._turn(State.UNREACHABLE, f"peer {self._client.site} ended the stream")
            except (Refused, FeedDamaged) as err:
                self._turn(State.REFUSED, str(err))
            except RegistryError as err:
                self._turn(State.UNREACHABLE, str(err))
            pause_s = _FIRST_PAUSE_S if told else min(2 * pause_s, _LONGEST_PAUSE_S)
            await self._pause(pause_s * random.uniform(0.8, 1.2))

    async def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a peer that was away is back."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._client.reconnected()

    async def _batches(self, lanes: Lanes) -> AsyncGenerator[None, None]:
        """Put batches into the lanes while the peer sends them; yield after each."""
        hello = await self._client.hello(self._clock_ms())
        self._ahead_ms = hello.ms - self._clock_ms()
        if abs(self._ahead_ms) > _CLOCKS_DIFFER_MS:
            # Clocks choose which of two concurrent pushes is shown, and nothing else.
            _log.warning("clocks differ", peer=self._client.site, ahead_s=self._ahead_ms / 1000)
        start = Cursor(hello.incarnation, 0, f"{self._client.filters}/{hello.filters}")
        if replace(lanes.ledger.cursor, revision=0) != start:
            lanes.begin_life(start)
        self._head, self._life = hello.revision, hello.incarnation
        lanes.hurry()
        after = Cursor(hello.incarnation, lanes.ledger.taken)
        async with self._client.changes(after) as stream:
            self._stream, self._acked = stream, 0
            try:
                self._turn(State.FOLLOWING if after.revision else State.SCANNING)
                self._news.set()  # for the ack
                async with aclosing(stream.batches()) as batches:
                    async for batch in batches:
                        self._take(batch, lanes)
                        yield
                        await lanes.room()
            finally:
                self._stream = None

    def _take(self, batch: Batch, lanes: Lanes) -> None:
        if batch.incarnation != lanes.ledger.cursor.incarnation:
            raise PeerUnavailable(self._client.site, "it began a new life")
        self._head = max(self._head, batch.head)
        self._turn(State.SCANNING if batch.scanning else State.FOLLOWING)
        lanes.take(batch)
        self._news.set()

    async def _repository(self, name: Repository) -> AsyncGenerator[Batch, None]:
        async with aclosing(self._client.repository(name)) as batches:
            async for batch in batches:
                if batch.incarnation != self._life:
                    raise PeerUnavailable(self._client.site, "it began a new life")
                yield batch

    def _turn(self, state: State, error: str = "") -> None:
        if state is not self._state:
            _log.info("following", peer=self._client.site, state=state, reason=error or None)
        self._state, self._error = state, error
        self._news.set()

    # --- remembering

    async def _save_for_ever(self, lanes: Lanes) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                if self._worth_saving(lanes):
                    await self._save(lanes)
                await self._ack(lanes)
            except MetadataUnavailable as err:
                _log.warning("the cursor is not saved", peer=self._client.site, reason=str(err))
                self._news.set()
            except (PeerUnavailable, Refused):
                pass  # the stream has ended, and whoever reads it says so
            await asyncio.sleep(_SAVE_S)

    def _worth_saving(self, lanes: Lanes) -> bool:
        cursor, status = lanes.ledger.cursor, self._status(lanes)
        return (
            lanes.parks.changed
            or lanes.moved
            or replace(cursor, revision=0) != replace(self._saved, revision=0)
            or cursor.revision - self._saved.revision >= _COARSE
            or self._told is None
            or (status.state, status.parked, status.last_error)
            != (self._told.state, self._told.parked, self._told.last_error)
        )

    async def _save(self, lanes: Lanes) -> None:
        async with self._saving:
            # All of one moment: from here to the write nothing is awaited.
            cursor, status = lanes.ledger.cursor, self._status(lanes)
            parks = lanes.parks.take_unwritten()
            lanes.moved = False
            try:
                await self._checkpoint.save(cursor, parks, status)
            except BaseException:
                lanes.parks.not_written(parks)
                lanes.moved = True
                raise
            self._saved, self._told = cursor, status

    async def _ack(self, lanes: Lanes) -> None:
        """Tell the peer what is applied, as far as it is written down."""
        first = lanes.parks.first
        applied = self._saved.revision if first is None else min(self._saved.revision, first - 1)
        if self._stream is not None and applied > self._acked:
            await self._stream.ack(replace(self._saved, revision=applied))
            self._acked = applied

    def _status(self, lanes: Lanes) -> FollowRecord:
        state, error = self._state, self._error
        if state is State.FOLLOWING and len(lanes.parks):
            state, error = State.PARKED, lanes.parks.last_reason
        written = lanes.oldest()
        since = [ms for ms in (lanes.parks.since_ms,) if ms is not None]
        if written is not None:
            since.append(written - self._ahead_ms)
        return FollowRecord(
            state=state,
            revision=lanes.ledger.cursor.revision,
            head=self._head,
            parked=len(lanes.parks),
            oldest_ms=min(since, default=0),
            last_error=error,
            ms=self._clock_ms(),
        )
