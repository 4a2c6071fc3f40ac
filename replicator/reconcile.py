"""When a peer is compared with, and how long what was found may be said (ADR 15).

A comparison is due when the peer is followed again, when somebody asks for it, some seconds after
anything changed here or there, and now and then; scanning takes a fiftieth of the time at the most.
It waits until the follower has caught up, but for no more than ten seconds.

That both sites are the same stands until something contradicts it: a change of the peer, a write
here, a park, the end of the stream.  Whoever reads it from the KV looks there for writes himself.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Final

import structlog

from node import keys
from node.change import Change
from node.election import Leadership
from node.errors import MetadataUnavailable, PeerUnavailable, RegistryError
from node.kv import KV, Compacted, Delete, Entry, following, only, unchanged
from node.losses import Losses
from node.records import Cursor
from node.replication_status import FULL
from node.scans import Scans
from node.telemetry import Metrics
from node.wire.feed_codec import Batch
from node.wire.follow_codec import Compared, Verdict
from node.wire.hello_codec import Hello
from replicator.compare import Compare, States
from replicator.feed_client import FeedClient, FeedDamaged

_EVERY_S: Final = 60.0
_SOON_S: Final = 5.0
# So long after a change nothing is compared: more may be on its way.
_SETTLES_S: Final = 1.0
_CATCHES_UP_S: Final = 10.0
_PAUSE_S: Final = 1.0
# Scanning takes one part of so many of the time.
_SHARE: Final = 50

_log = structlog.stdlib.get_logger(__name__)


class Numbers:
    """What comparing shows as metrics, for all peers of a process."""

    def __init__(self, metrics: Metrics) -> None:
        self.registers = metrics.gauge(
            "keys", "Registers here that a peer and this site both take.", "peer", "state"
        )
        self.results = metrics.counter("reconcile", "Comparisons with a peer.", "peer", "result")
        self.seconds = metrics.histogram(
            "reconcile_seconds", "How long a comparison with a peer took.", "peer"
        )
        self.lost = metrics.gauge(
            "lost_blobs", "Blobs that have a record here and no file, as of some minutes ago."
        )
        self.in_sync = metrics.gauge(
            "in_sync", "1 while a peer and this site are known to hold the same.", "peer"
        )


@dataclass(frozen=True, slots=True)
class Follower:
    """What a comparison asks of the follower whose part it is.

    `doubt` says why a peer can't be said to be applied here, if it can't; `caught_up` returns when
    all is applied or parked that the peer had when it was met; `take` puts a batch into the lanes
    and waits for room for more, and moves no cursor; `news` is called when there is something to
    write down.
    """

    doubt: Callable[[], str]
    caught_up: Callable[[], Awaitable[None]]
    take: Callable[[Batch], Awaitable[None]]
    news: Callable[[], None]


class Reconcile:
    """The comparisons with one peer."""

    def __init__(
        self,
        kv: KV,
        scans: Scans,
        losses: Losses,
        client: FeedClient,
        numbers: Numbers,
        *,
        clock_ms: Callable[[], int],
    ) -> None:
        self._kv = kv
        self._scans = scans
        self._losses = losses
        self._client = client
        self._numbers = numbers
        self._clock_ms = clock_ms
        self._key = keys.request(client.site)
        self._hello: Hello | None = None
        self._request: Entry | None = None
        self._due = math.inf
        self._soonest = 0.0
        self._wake = asyncio.Event()
        self._found_same = asyncio.Event()
        self.compared: Compared | None = None
        self._same = False
        self._held: States | None = None
        self._heard = False  # of the peer, since the comparison that is under way began

    # --- told by the follower

    def begin(self, hello: Hello) -> None:
        """The peer is followed again: it told who it is, and all its changes since."""
        if self._hello != hello:
            self._hello, self._due = hello, 0.0
            self._wake.set()

    def end(self) -> None:
        """The peer is not followed any more; what was found may be overtaken unheard."""
        self._hello = None
        self._same = False

    def overtaken(self) -> None:
        """The peer has told a change."""
        self._heard = True
        self._soon()

    def _soon(self) -> None:
        """What was found is overtaken, so it is to be compared again."""
        self._same = False
        now = asyncio.get_running_loop().time()
        self._due = min(self._due, max(now + _SETTLES_S, self._soonest))
        self._wake.set()

    @property
    def same(self) -> bool:
        """Whether both sites were found the same, and nothing is known to have changed since."""
        return self._same

    # --- running

    async def run(self, follower: Follower, leadership: Leadership) -> None:
        """Compare until cancelled; nothing that goes wrong ends it."""
        in_sync = self._numbers.in_sync.labels(self._client.site)
        in_sync.set_function(lambda: float(self._same and not follower.doubt()))
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listen())
                group.create_task(self._watch(follower))
                await self._compare_for_ever(follower, leadership)
        finally:
            in_sync.set_function(lambda: 0.0)

    async def _compare_for_ever(self, follower: Follower, leadership: Leadership) -> None:
        loop = asyncio.get_running_loop()
        while True:
            hello = await self._wait()
            await self._catch_up(follower)
            began, request = loop.time(), self._request
            spent_s = self._scans.spent_s
            try:
                if request is not None and request.value == FULL:
                    await self._tell_again(hello, follower)
                    await self._catch_up(follower)
                    began = loop.time()  # what was told again is no part of what comparing takes
                asked, self._heard = request is not None, False
                compared, done = await self._compare(hello, follower, anew=asked), request
            except (RegistryError, FeedDamaged) as err:
                compared, done = Compared(Verdict.UNKNOWN, self._clock_ms(), reason=str(err)), None
            self._note(compared, loop.time() - began, self._scans.spent_s - spent_s)
            if self._request is not request or self._hello is not hello:
                self._due = 0.0  # meanwhile somebody asked, or the peer is followed anew
            follower.news()
            await self._answer(done, leadership)

    async def _wait(self) -> Hello:
        """Wait until the peer is followed and a comparison with it is due."""
        while True:
            self._wake.clear()
            left = self._due - asyncio.get_running_loop().time()
            if self._hello is not None and left <= 0:
                return self._hello
            with suppress(TimeoutError):
                async with asyncio.timeout(None if self._hello is None else left):
                    await self._wake.wait()

    async def _catch_up(self, follower: Follower) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CATCHES_UP_S):
                await follower.caught_up()

    async def _compare(self, hello: Hello, follower: Follower, *, anew: bool) -> Compared:
        if hello.filter is None:
            return Compared(Verdict.UNSUPPORTED, self._clock_ms())

        lost = await self._losses.count(anew=anew)
        self._numbers.lost.set(lost)

        def doubt() -> str:
            if self._hello is not hello:
                return "it is not followed now"
            return follower.doubt() or (f"blobs are lost here: {lost}" if lost else "")

        async def feed(changes: Sequence[Change]) -> None:
            newest = max(change.revision for change in changes)
            await follower.take(Batch(hello.incarnation, changes, newest, True, newest))

        compare = Compare(
            self._kv,
            self._scans,
            self._client,
            (self._client.filter, hello.filter),
            hello.incarnation,
            doubt=doubt,
            feed=feed,
            clock_ms=self._clock_ms,
            anew=anew,
            held=self._held,
        )
        compared = await compare.run()
        if compared.result is Verdict.HOLDS:
            self._held = compare.states
        return replace(
            compared,
            incarnation=self._client.record.incarnation,
            peer_incarnation=hello.incarnation,
        )

    def _note(self, compared: Compared, took_s: float, spent_s: float) -> None:
        site, now = self._client.site, asyncio.get_running_loop().time()
        before = self.compared
        # What was heard meanwhile need not have been written here, as where deletes are not taken.
        self._same = compared.result is Verdict.SAME and not self._heard
        if self._same:
            self._found_same.set()
        if compared.result is Verdict.SAME:
            compared = replace(compared, same_ms=compared.ms)
        elif before is not None:
            compared = replace(compared, same_ms=before.same_ms)
        self.compared = compared
        if compared.result is Verdict.DIFFERS:
            _log.info("a peer has what this site lacks", peer=site, keys=compared.differing)
        found = compared.result in {Verdict.SAME, Verdict.HOLDS, Verdict.UNSUPPORTED}
        busy_s = _SHARE * spent_s
        self._soonest = now + max(_SOON_S, busy_s)
        every_s = max(_EVERY_S, busy_s) * random.uniform(0.9, 1.1)
        self._due = now + every_s if found and not self._heard else self._soonest
        self._numbers.results.labels(site, compared.result).inc()
        self._numbers.seconds.labels(site).observe(took_s)
        if compared.revision:
            self._numbers.registers.labels(site, "live").set(compared.live)
            self._numbers.registers.labels(site, "tombstone").set(compared.tombstones)

    # --- what happens here

    async def _watch(self, follower: Follower) -> None:
        """Notice what is written here after both sites were found the same."""
        while True:
            await self._found_same.wait()
            self._found_same.clear()
            with suppress(Compacted, MetadataUnavailable):
                await self._written()
            if not self._found_same.is_set():
                self._soon()
                follower.news()

    async def _written(self) -> None:
        """Return when something replicated was written here after the last comparison."""
        revision = self.compared.revision if self.compared else 0
        async with following(self._kv, keys.REPLICATED, revision) as stream:
            async for news in stream:
                if news.entries:
                    return

    # --- what is asked for

    async def _listen(self) -> None:
        """Notice what somebody asks for."""
        within = only(self._key)
        while True:
            with suppress(Compacted, MetadataUnavailable):
                snapshot = await self._kv.read([within])
                self._ask(snapshot.ranges[0])
                async with following(self._kv, within, snapshot.revision) as stream:
                    async for news in stream:
                        self._ask(news.entries)
            await asyncio.sleep(_PAUSE_S)

    def _ask(self, entries: Sequence[Entry]) -> None:
        for request in entries:
            self._request, self._due = request, 0.0
            self._wake.set()

    async def _answer(self, request: Entry | None, leadership: Leadership) -> None:
        """What was asked for is done, unless it was asked for again meanwhile."""
        if request is None:
            return
        if self._request is request:
            self._request = None
        guards = [leadership.guard, unchanged(self._key, request)]
        with suppress(MetadataUnavailable):  # it is done once more, by whoever leads next
            await self._kv.txn(guards, [Delete(self._key)])

    async def _tell_again(self, hello: Hello, follower: Follower) -> None:
        """Have all applied that the peer has, as if this site had never heard of it."""
        async with (
            self._client.changes(Cursor("", 0)) as stream,
            aclosing(stream.batches()) as batches,
        ):
            async for batch in batches:
                if batch.incarnation != hello.incarnation:
                    break
                await follower.take(batch)
                if not batch.scanning:
                    return
        raise PeerUnavailable(self._client.site, "it did not tell everything again")
