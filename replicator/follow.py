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
import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Final

import structlog

from node.change import Change
from node.election import Deposed, Leadership
from node.errors import MetadataUnavailable, PeerUnavailable, Refused, RegistryError
from node.kv import KV
from node.records import Cursor, Pushed, Report
from node.reference import Repository
from node.register import Register
from node.wire.ack_codec import MOST
from node.wire.feed_codec import MINOR, Batch
from node.wire.follow_codec import FollowRecord
from replicator.book import Ledger, Parks
from replicator.checkpoint import Checkpoint
from replicator.feed_client import FeedClient, FeedDamaged, FeedStream
from replicator.lanes import Applying, Lanes
from replicator.measures import PeerMeasures, State
from replicator.progress import ScanProgress
from replicator.reach import Reach
from replicator.reconcile import Follower, Reconcile
from replicator.reports import has_moved, is_news, is_to_be_said, report
from replicator.sift import Held, Sifted, sift

_SAVE_S: Final = 1.0
_SETTLES_S: Final = 0.2
_LAST_SAVE_S: Final = 3.0
# That both sites are the same is said again this often: nobody believes it for long, see `FRESH_S`.
_RENEWED_S: Final = 20.0
# Revisions of the source that bring nothing for us are remembered this coarsely.
_COARSE: Final = 1000
_CLOCKS_DIFFER_MS: Final = 5000
_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

_log = structlog.stdlib.get_logger(__name__)


class Follow:
    """One peer's follower, for as long as it leads.

    `held` is what this site holds; `heard` is told up to which revision the peer knows of its
    present life, before anything of the peer is taken; `clock_ms` is the wall clock.
    """

    def __init__(
        self,
        kv: KV,
        client: FeedClient,
        applying: Applying,
        leadership: Leadership,
        *,
        held: Held,
        reconcile: Reconcile,
        heard: Callable[[int], Awaitable[None]],
        progress: ScanProgress,
        measures: PeerMeasures,
        clock_ms: Callable[[], int],
    ) -> None:
        self._client = client
        self._leadership = leadership
        self._reconcile = reconcile
        self._heard = heard
        self._progress = progress
        self._applying, self._held = applying, held
        self._checkpoint = Checkpoint(kv, client.site, leadership)
        self._measures = measures
        self._clock_ms = clock_ms
        self._reach = Reach(client.site, clock_ms)
        self._scanned_ms = 0  # when the oldest that a scan told, and that still waits, came
        self._head = 0
        self._met = 0  # the peer's newest revision when it said hello
        self._ahead_ms = 0  # how much the peer's clock is ahead of ours
        self._life = ""
        self._saved = Cursor("", 0)
        self._saving = asyncio.Lock()
        self._saved_at = -math.inf
        self._told: FollowRecord | None = None
        self._busy_since = math.inf
        self._reported: Report | None = None
        self._reported_at = 0.0
        self._stream: FeedStream | None = None
        self._news = asyncio.Event()
        self._moved = asyncio.Event()

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
        self._progress.resume(parks.at_work)
        async with asyncio.TaskGroup() as group:
            lanes = Lanes(
                group,
                self._applying,
                self._repository,
                ledger=Ledger(standing.cursor),
                parks=parks,
                news=self._notice,
                applied=self._applied,
            )
            try:
                group.create_task(self._save_for_ever(lanes))
                group.create_task(self._progress.count(self._items))
                group.create_task(self._reconcile.run(self._follower(lanes), self._leadership))
                await self._follow_for_ever(lanes)
            finally:
                # A deposed leader's book is of no use; an error here would hide the cancellation.
                with suppress(Deposed, MetadataUnavailable, TimeoutError):
                    async with asyncio.timeout(_LAST_SAVE_S):
                        await self._save(lanes)
                self._measures.clear()

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
        self._reach.heard()
        await self._heard(hello.known)
        self._ahead_ms = hello.ms - self._clock_ms()
        if abs(self._ahead_ms) > _CLOCKS_DIFFER_MS:
            # Clocks choose which of two concurrent pushes is shown, and nothing else.
            _log.warning("clocks differ", peer=self._client.site, ahead_s=self._ahead_ms / 1000)
        # What we know decides with the filters what the cursor has passed.
        told = f"{self._client.takes}/{hello.filters}/{MINOR}"
        start = Cursor(hello.incarnation, 0, told)
        if replace(lanes.ledger.cursor, revision=0) != start:
            lanes.begin_life(start)
        self._head = self._met = hello.revision
        self._life = hello.incarnation
        lanes.hurry()
        after = Cursor(hello.incarnation, lanes.ledger.taken)
        async with self._client.changes(after) as stream:
            self._stream, self._reported = stream, None
            self._progress.begin_stream(anew=not after.revision)
            if not after.revision:
                lanes.parks.begin_scan()
            try:
                self._turn(State.FOLLOWING if after.revision else State.SCANNING)
                if after.revision:
                    self._reconcile.begin(hello)
                async with aclosing(stream.batches()) as batches:
                    async for batch in batches:
                        await self._listen(batch.changes)
                        self._take(batch, await sift(self._held, batch.changes), lanes)
                        if not batch.scanning:
                            self._reconcile.begin(hello)
                        yield
                        await lanes.room()
            finally:
                self._stream = None
                self._reconcile.end()

    async def _listen(self, changes: Iterable[Change]) -> None:
        """What a peer tells of this site's own writes: it knows of them."""
        actor = self._client.record.actor
        known = [change.register.ctx.get(actor, 0) for change in changes]
        await self._heard(max(known, default=0))

    async def _items(self) -> int | None:
        """How many registers the peer has for us, if it can say."""
        theirs = await self._client.roots()
        return None if theirs is None else theirs.scanned.roots.registers

    def _take(self, batch: Batch, sifted: Sifted, lanes: Lanes) -> None:
        if batch.incarnation != lanes.ledger.cursor.incarnation:
            raise PeerUnavailable(self._client.site, "it began a new life")
        if not batch.scanning and batch.revision < (taken := lanes.ledger.taken):
            # What it told before is in doubt, so all of it is to be told again.
            lanes.begin_life(replace(lanes.ledger.cursor, revision=0))
            raise FeedDamaged(self._client.site, f"revision {batch.revision} after {taken}")
        self._head = max(self._head, batch.head)
        self._turn(State.SCANNING if batch.scanning else State.FOLLOWING)
        if batch.changes or batch.unreadable:
            self._reconcile.overtaken()
        self._progress.take(batch)
        self._put(batch, sifted, lanes)
        self._notice()

    def _put(self, batch: Batch, sifted: Sifted, lanes: Lanes, *, again: bool = False) -> None:
        if batch.scanning and not lanes.is_scanned:
            self._scanned_ms = self._clock_ms()
        lanes.take(replace(batch, changes=tuple(sifted.news)), sifted.known, again=again)

    async def _repository(self, name: Repository) -> AsyncGenerator[Batch, None]:
        async with aclosing(self._client.repository(name)) as batches:
            async for batch in batches:
                if batch.incarnation != self._life:
                    raise PeerUnavailable(self._client.site, "it began a new life")
                await self._listen(batch.changes)
                yield batch

    def _follower(self, lanes: Lanes) -> Follower:
        """What comparing with the peer asks of this."""

        def doubt() -> str:
            if self._reach.state is not State.FOLLOWING:
                return f"the peer is {self._reach.state}"
            if lanes.waiting:
                return "changes of the peer are on their way"
            return "some repositories are parked" if len(lanes.parks) else ""

        async def take(batch: Batch) -> None:
            sifted = await sift(self._held, batch.changes)
            if batch.incarnation != lanes.ledger.cursor.incarnation:
                raise PeerUnavailable(self._client.site, "it began a new life")
            await self._listen(batch.changes)
            self._put(replace(batch, scanning=True), sifted, lanes, again=True)
            await lanes.room()

        async def caught_up() -> None:
            while lanes.ledger.taken < self._met or lanes.waiting:
                self._moved.clear()
                await self._moved.wait()

        return Follower(doubt, caught_up, take, self._news.set)

    def _turn(self, state: State, error: str = "") -> None:
        self._reach.turn(state, error)
        self._news.set()

    def _notice(self) -> None:
        """Something was taken, applied or parked."""
        self._news.set()
        self._moved.set()

    def _applied(self, register: Register[Pushed]) -> None:
        by_their_clock_ms = self._clock_ms() + self._ahead_ms
        self._measures.applied(register, by_their_clock_ms, self._client.record.name)

    # --- remembering

    async def _save_for_ever(self, lanes: Lanes) -> None:
        while True:
            # What takes its time is said, although nothing else has moved.
            busy = lanes.waiting or len(lanes.parks) or self._progress.bytes_to_go
            with suppress(TimeoutError):
                async with asyncio.timeout(_SAVE_S if busy else _RENEWED_S):
                    await self._news.wait()
            await self._settle(lanes)
            self._news.clear()
            status = self._status(lanes)
            self._measures.show(status, self._ahead_ms)
            written = self._worth_saving(lanes, status)
            try:
                if written or self._work_moved(status):
                    await self._save(lanes)
                await self._ack(lanes)
            except MetadataUnavailable as err:
                _log.warning("the cursor is not saved", peer=self._client.site, reason=str(err))
                self._news.set()
                written = True
            except (PeerUnavailable, Refused):
                pass  # the stream has ended, and whoever reads it says so
            # Bytes come all the time: no ack waits for a pause after a save that is about them.
            await asyncio.sleep(_SAVE_S if written else 0)

    async def _settle(self, lanes: Lanes) -> None:
        """Wait for what is nearly done, so that an image is one write, and acked at once."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SETTLES_S):
                while lanes.waiting:
                    self._moved.clear()
                    await self._moved.wait()
        now = asyncio.get_running_loop().time()
        self._busy_since = min(self._busy_since, now) if lanes.waiting else math.inf

    def _worth_saving(self, lanes: Lanes, status: FollowRecord) -> bool:
        cursor = lanes.ledger.cursor
        return (
            lanes.parks.changed
            or lanes.moved
            or replace(cursor, revision=0) != replace(self._saved, revision=0)
            or cursor.revision - self._saved.revision >= _COARSE
            or self._told is None
            or (self._is_late and status.oldest_ms > 0 and not self._told.oldest_ms)
            or is_news(status, self._told)
            or (status.stands and abs(status.ms - self._told.ms) >= _RENEWED_S * 1000)
        )

    def _work_moved(self, status: FollowRecord) -> bool:
        """Whether so much came meanwhile that it is worth a save: once a second."""
        if asyncio.get_running_loop().time() - self._saved_at < _SAVE_S or self._told is None:
            return False
        return has_moved(status, self._told)

    @property
    def _is_late(self) -> bool:
        """Whether something has been waiting for so long that it is worth a word."""
        return asyncio.get_running_loop().time() - self._busy_since >= _SAVE_S

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
            self._saved_at = asyncio.get_running_loop().time()

    async def _ack(self, lanes: Lanes) -> None:
        """Tell the peer what is applied, as far as it is written down, and what is left out."""
        if replace(self._saved, revision=0) != replace(lanes.ledger.cursor, revision=0):
            return  # what is written down is about another life, or about other filters
        status, life = self._status(lanes), self._client.record.incarnation
        told = lanes.told(MOST - len(lanes.parks))
        said = report(self._saved, lanes.parks, status, told, life=life, ahead_ms=self._ahead_ms)
        now = asyncio.get_running_loop().time()
        if self._stream and is_to_be_said(said, self._reported, now - self._reported_at):
            await self._stream.ack(said)
            self._reported, self._reported_at = said, now

    def _status(self, lanes: Lanes) -> FollowRecord:
        state, error = self._reach.state, self._reach.error
        cursor, at_work = lanes.ledger.cursor.revision, lanes.parks.at_work
        progress = self._progress.at(cursor, lanes.waiting, at_work)
        if state is State.FOLLOWING and progress is not None:
            state = State.SCANNING  # all is read, and not all is applied
        failure = lanes.parks.last_failure
        if state is State.FOLLOWING and failure is not None:
            state, error = State.PARKED, failure
        since = [ms for ms in (lanes.parks.since_ms,) if ms is not None]
        if (written := lanes.oldest()) is not None:
            since.append(written - self._ahead_ms)
        if lanes.is_scanned:
            since.append(self._scanned_ms)
        return FollowRecord(
            state=state,
            revision=cursor,
            head=self._head,
            parked=len(lanes.parks),
            oldest_ms=min(since, default=0),
            last_error=error,
            ms=self._clock_ms(),
            compared=self._reconcile.compared,
            progress=progress if state is State.SCANNING else None,
            stands=self._reconcile.same and state is State.FOLLOWING and not lanes.waiting,
            unheard_since_ms=self._reach.unheard_since_ms,
            heard_ms=self._reach.heard_ms,
            bytes_to_go=self._progress.bytes_to_go,
            seconds_left=self._progress.seconds_left,
        )
