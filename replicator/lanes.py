"""Apply changes: per repository in their order, repositories beside each other.

A repository has a lane while there is something to do in it.  What the next changes of a lane need
is brought while the first is applied: else each would take round trips of its own.  A change that
can't be applied, or that takes longer than ten seconds, parks its repository: what waits in the
lane and all that comes is left out, and the lane catches up from the state of the source instead.
Work that is merely slow goes on meanwhile, and holds back nobody.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from typing import Final, Protocol

import structlog

from node.change import Change
from node.errors import MetadataUnavailable, RegistryError
from node.keys import TagName
from node.manifest import Manifest
from node.records import Cursor, Pushed
from node.reference import Repository
from node.register import Register
from node.wire.feed_codec import Batch
from replicator.ahead import AHEAD, Ahead, Prepares, Preparing
from replicator.apply import Applied, Parked, Result
from replicator.book import Ledger, Parks
from replicator.feed_client import FeedDamaged
from replicator.waiting import Told, Waiting, told

AT_ONCE: Final = 16
CATCHING_UP: Final = 8
# Whoever is longer at it waits for bytes, most likely, and needs no place for that.
HELD_S: Final = 1.0
OVERDUE_S: Final = 10.0
# Changes that wait in all lanes; the feed is not read on beyond that.
MOST_WAITING: Final = 2000
# A catch-up in which so many changes in a row fail for a reason that is not their own, as a peer
# that is away or a full disk, is left for later.  What is wrong with a change itself stops nothing:
# else the changes behind five that can never be applied would never be reached.
_FAILURES: Final = 5
_KV_ATTEMPTS: Final = 3
_KV_PAUSE_S: Final = 0.2

_log = structlog.stdlib.get_logger(__name__)


class Applying(Prepares, Protocol):
    """What applies a change; see `replicator.apply.Apply`."""

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """Apply it, or say why not; `body` is what preparing it has answered."""
        ...


class Lanes:
    """The work on one source's changes.

    `repository` gives all of one repository at the source; `news` is called when the book changed,
    `applied` for each change that is applied and was not told by a scan.  Its tasks run in `group`.
    """

    def __init__(
        self,
        group: asyncio.TaskGroup,
        applying: Applying,
        repository: Callable[[Repository], AsyncGenerator[Batch, None]],
        *,
        ledger: Ledger,
        parks: Parks,
        news: Callable[[], None],
        applied: Callable[[Register[Pushed]], None],
    ) -> None:
        self._group = group
        self._applying = applying
        self._repository = repository
        self.ledger = ledger
        self.parks = parks
        # Whether something was done that is worth remembering, since somebody cleared this.
        self.moved = False
        self._scanning = False
        self._news = news
        self._applied = applied
        self._lanes: dict[Repository, deque[Waiting]] = {}
        self._busy: dict[Repository, float] = {}  # since when a lane has been at it without a break
        self._waiting = 0
        self._places = asyncio.Semaphore(AT_ONCE)
        self._catching_up = asyncio.Semaphore(CATCHING_UP)
        self._ahead = Ahead(group, applying)
        self._room = asyncio.Event()
        self._hurried = asyncio.Event()
        for name in parks.repositories:
            self._lane(name)

    # --- taking changes

    def take(self, batch: Batch, known: Sequence[Change] = (), *, again: bool = False) -> None:
        """Put a batch's changes into their lanes; `again`: they are no news, and of no scan.

        `known` are changes that came with them, and that are applied already.
        """
        self.moved = self.moved or bool(known)  # the source is to hear of them
        for change in () if batch.scanning else known:
            if not self.parks.get(change.name.repository):  # else its catching up counts it
                self._applied(change.register)
        counts = batch.scanning and not again
        for repository, reason in batch.unreadable.items():
            self._leave_out(repository, batch, reason)
        changes = sorted(batch.changes, key=_order)
        left_out = [c for c in changes if self.parks.get(c.name.repository)]
        waiting = len(changes) - len(left_out)
        for change in left_out:
            self.parks.extend(change.name.repository, change.revision, scanned=int(counts))
        entered = self.ledger.enter(
            batch.revision, waiting, scanning=batch.scanning, known=len(known)
        )
        self._waiting += waiting
        if self._scanning and not batch.scanning:
            self.moved = True  # the cursor passes a whole scan
        self._scanning = batch.scanning
        for change in changes:
            if not self.parks.get(change.name.repository):
                lane = self._lane(change.name.repository)
                lane.append(Waiting(change, entered, counts=counts))
                self._look_ahead(lane)

    def _leave_out(self, repository: Repository, batch: Batch, reason: str) -> None:
        """Park a repository that has a change which can't be read, wherever in the batch it is."""
        first = min(self.ledger.taken + 1, batch.revision)
        if self.parks.get(repository) is None:
            self._park(repository, self._lane(repository), reason, first, batch.revision)
        else:
            self.parks.extend(repository, first)
            self.parks.extend(repository, batch.revision)
        self._news()

    @property
    def waiting(self) -> int:
        """How many changes are neither applied nor parked."""
        return self._waiting

    async def room(self) -> None:
        """Wait until there is room for more."""
        while self._waiting >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()

    def begin_life(self, cursor: Cursor) -> None:
        """The source lives anew, or is asked for something else: all of it is told again."""
        self.ledger = Ledger(cursor)
        self.parks.renumber()
        for lane in self._lanes.values():
            lane.clear()
        self._waiting = 0
        self._room.set()

    def hurry(self) -> None:
        """Try everything that is parked now."""
        for repository in self.parks.repositories:
            self.parks.hurry(repository)
        self._hurried.set()
        self._hurried.clear()

    def oldest(self) -> int | None:
        """When the oldest change in a lane was written that no scan told, in ms by its writer's
        clock, if known.
        """
        written = (
            waiting.written_ms
            for lane in self._lanes.values()
            for waiting in lane
            if waiting.written_ms is not None and not waiting.is_scanned
        )
        return min(written, default=None)

    @property
    def is_scanned(self) -> bool:
        """Whether something waits that a scan told, which tells what is old too."""
        return any(w.is_scanned for lane in self._lanes.values() for w in lane)

    def told(self, most: int) -> Told:
        """What can be told to the source beyond the cursor, by naming so many repositories."""
        return told(self._lanes, self.ledger, asyncio.get_running_loop().time(), most)

    # --- lanes

    def _lane(self, repository: Repository) -> deque[Waiting]:
        lane = self._lanes.get(repository)
        if lane is None:
            lane = self._lanes[repository] = deque()
            self._group.create_task(self._run(repository, lane))
        return lane

    async def _run(self, repository: Repository, lane: deque[Waiting]) -> None:
        while True:
            if self.parks.get(repository):
                self._busy.pop(repository, None)
                await self._catch_up(repository)
            elif lane:
                await self._next(repository, lane)
            else:
                del self._lanes[repository]
                self._busy.pop(repository, None)
                return

    async def _next(self, repository: Repository, lane: deque[Waiting]) -> None:
        waiting: Waiting | None = None

        def overdue() -> None:
            if lane and lane[0] is waiting:
                reason = f"still at work after {OVERDUE_S:g} s"
                self._park(repository, lane, reason, at_work=True)

        async with _place(self._places, overdue):
            if not lane:  # a new life began meanwhile
                return
            waiting = lane[0]
            # What it does one after the other is one work to whoever waits for the others.
            since = self._busy.setdefault(repository, asyncio.get_running_loop().time())
            waiting.since = since
            self._look_ahead(lane)
            result = await self._apply(waiting.change, waiting.preparing)
        self._ended(repository, lane, waiting, result)

    def _ended(
        self, repository: Repository, lane: deque[Waiting], waiting: Waiting, result: Result
    ) -> None:
        in_turn = bool(lane) and lane[0] is waiting
        match result:
            case Applied() if in_turn:
                if not waiting.is_scanned:
                    self._applied(waiting.change.register)
                self._done(lane.popleft())
            case Applied():
                self._landed(repository, result)
                self.parks.hurry(repository)
            case Parked(reason=reason) if in_turn:
                self._park(repository, lane, reason)
            case Parked(reason=reason):
                self.parks.failed(repository, reason)

    def _park(
        self,
        repository: Repository,
        lane: deque[Waiting],
        reason: str,
        *also: int,
        at_work: bool = False,
    ) -> None:
        """Leave out what waits in the lane, and these revisions."""
        revisions = [*also, *(waiting.change.revision for waiting in lane)]
        scanned = sum(waiting.counts for waiting in lane)
        _log.info("a repository is parked", repository=repository, reason=reason)
        self.parks.park(
            repository,
            *(min(revisions), max(revisions)),
            reason,
            at_work=at_work,
            scanned=scanned,
        )
        while lane:
            self._done(lane.popleft())

    def _done(self, waiting: Waiting) -> None:
        self._waiting -= 1
        self._room.set()
        self.ledger.done(waiting.entered)
        self.moved = True
        self._news()

    # --- applying

    def _look_ahead(self, lane: deque[Waiting]) -> None:
        for waiting in islice(lane, 1, AHEAD + 1):
            waiting.preparing = waiting.preparing or self._ahead.begin(waiting.change)

    async def _apply(self, change: Change, preparing: Preparing) -> Result:
        body = await preparing if preparing else None
        for _ in range(_KV_ATTEMPTS - 1):
            try:
                return await self._applying.apply(change, body)
            except MetadataUnavailable:
                await asyncio.sleep(_KV_PAUSE_S * random.uniform(0.5, 1.5))
            except Exception as err:  # noqa: BLE001 - one bad change must not stop all others
                _log.exception("a change could not be applied", name=change.name)
                return Parked(f"internal error: {type(err).__name__}")
        return Parked("the metadata does not answer", everywhere=True)

    # --- catching up

    async def _catch_up(self, repository: Repository) -> None:
        await self._until_due(repository)
        ledger = self.ledger
        landed: list[Register[Pushed]] = []
        async with _place(self._catching_up, _nothing):
            try:
                as_of, failure = await self._from_state(repository, landed)
            except (RegistryError, FeedDamaged) as err:
                as_of, failure = 0, str(err)
        if ledger is not self.ledger:
            failure = failure or "meanwhile the source began to tell everything anew"
        if failure:
            self.parks.failed(repository, failure)
        else:
            self.parks.caught_up(repository, as_of)
            for register in landed:
                self._applied(register)
            _log.info("a parked repository is caught up", repository=repository, as_of=as_of)
        self._news()

    async def _from_state(
        self, repository: Repository, landed: list[Register[Pushed]]
    ) -> tuple[int, str]:
        """Apply all that the source has: as of which revision, and what kept something from it.

        `landed` gets what was left out of what was told by no scan.
        """
        park = self.parks.get(repository)
        first = park.record.first if park else 0
        as_of, failure, in_a_row = 0, "", 0
        async with aclosing(self._repository(repository)) as batches:
            async for batch in batches:
                for change, preparing in self._ahead.in_turn(sorted(batch.changes, key=_order)):
                    result = await self._apply(change, preparing)
                    if isinstance(result, Parked):
                        failure = failure or result.reason
                    elif 0 < first <= change.revision:
                        landed.append(change.register)
                    self._landed(repository, result)
                    in_a_row = in_a_row + 1 if _is_everywhere(result) else 0
                    if in_a_row == _FAILURES:
                        return 0, failure
                failure = failure or batch.unreadable.get(repository, "")
                if not batch.scanning:
                    as_of = batch.revision
        if not as_of:
            failure = failure or "the source ended its answer too early"
        return as_of, failure

    def _landed(self, repository: Repository, result: Result) -> None:
        if isinstance(result, Applied) and not result.before:
            self.parks.landed(repository)

    async def _until_due(self, repository: Repository) -> None:
        while (left := self.parks.due_in(repository)) > 0:
            try:
                async with asyncio.timeout(left):
                    await self._hurried.wait()
            except TimeoutError:
                continue


@asynccontextmanager
async def _place(places: asyncio.Semaphore, overdue: Callable[[], None]) -> AsyncIterator[None]:
    """Hold one of some places for a second, and go on without one; whoever is overdue is told so.

    Else a few that fetch huge blobs would hold up everybody.
    """
    await places.acquire()
    held = True

    def let_go() -> None:
        nonlocal held
        held = False
        places.release()

    loop = asyncio.get_running_loop()
    timers = loop.call_later(HELD_S, let_go), loop.call_later(OVERDUE_S, overdue)
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
        if held:
            places.release()


def _nothing() -> None:
    """There is nobody to tell: the repository is parked already."""


def _is_everywhere(result: Result) -> bool:
    return isinstance(result, Parked) and result.everywhere


def _order(change: Change) -> tuple[int, bool]:
    """As they were written; of one revision, manifests before tags."""
    return change.revision, isinstance(change.name, TagName)
