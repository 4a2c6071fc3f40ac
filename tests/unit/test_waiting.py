"""What is told of a source while something in it is at work for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field

from node.change import Change
from node.keys import TagName
from node.manifest import Manifest
from node.records import Cursor
from node.reference import Repository, Tag
from node.register import Register
from node.wire.feed_codec import Batch
from replicator.apply import Applied, Result
from replicator.book import Ledger, Parks
from replicator.lanes import Lanes
from replicator.waiting import Told, Waiting, told
from tests.waiting import eventually

A, B, C = Repository("a"), Repository("b"), Repository("c")
NOW = 100.0
LONG = NOW - 5


def _ledger(*batches: tuple[int, int], scanning: bool = False) -> Ledger:
    """One that is at revision 10, and was told these batches: a revision, and how many changes."""
    ledger = Ledger(Cursor("life", 10))
    for revision, changes in batches:
        ledger.enter(revision, changes, scanning=scanning)
    return ledger


def _lane(*revisions: int, since: float, scanning: bool = False) -> Sequence[Waiting]:
    """What waits in a lane, of which the first is at work since then."""
    entered = Ledger(Cursor("life", 10)).enter(99, 1, scanning=scanning)
    changes = [Change(TagName(A, Tag(f"t{n}")), Register(), n) for n in revisions]
    first, *others = [Waiting(change, entered, counts=scanning) for change in changes]
    first.since = since
    return [first, *others]


def _told(lanes: Mapping[Repository, Sequence[Waiting]], ledger: Ledger, most: int = 9) -> Told:
    return told(lanes, ledger, NOW, most)


def test_what_is_at_work_for_long_is_named_and_holds_back_no_other() -> None:
    """All behind it is told, for as far as there was anything."""
    ledger = _ledger((20, 2), (21, 1), (30, 0))
    assert _told({A: _lane(19, 20, since=LONG)}, ledger) == Told(21, {A: 19})


def test_what_another_peer_had_brought_is_told_as_well() -> None:
    """Somebody may wait for it at this source: it is here, behind what is at work."""
    ledger = _ledger((20, 1))
    ledger.enter(25, 0, known=2, scanning=False)
    ledger.enter(30, 0, scanning=False)
    assert _told({A: _lane(20, since=LONG)}, ledger) == Told(25, {A: 20})


def test_what_has_just_begun_is_waited_for() -> None:
    """It will be told with the rest, most likely; what is before it is told."""
    ledger = _ledger((20, 1), (25, 1), (30, 1))
    lanes = {A: _lane(20, since=LONG), B: _lane(25, since=NOW - 1), C: []}
    assert _told(lanes, ledger) == Told(24, {A: 20})
    assert _told({A: _lane(11, since=NOW - 1)}, ledger) == Told(10, {})


def test_no_more_are_named_than_may_be() -> None:
    """What is not named is waited for."""
    ledger = _ledger((20, 1), (25, 1), (30, 1))
    lanes = {A: _lane(20, since=LONG), B: _lane(25, since=LONG)}
    assert _told(lanes, ledger, most=1) == Told(24, {A: 20})
    assert _told(lanes, ledger, most=0) == Told(19, {})


def test_nothing_is_told_before_a_scan_is_applied() -> None:
    """It does not come in the order of its revisions."""
    lanes = {A: _lane(20, since=LONG, scanning=True)}
    assert _told(lanes, _ledger((20, 1), scanning=True)) == Told(10, {})


def test_what_the_source_writes_for_itself_is_no_reason_to_tell() -> None:
    """Else each ack, which it writes down, would be worth another."""
    ledger = _ledger((20, 1), (21, 0))
    before = _told({A: _lane(20, since=LONG)}, ledger)
    ledger.enter(22, 0, scanning=False)
    assert _told({A: _lane(20, since=LONG)}, ledger) == before


@dataclass
class _Slow:
    """Applies each change when it is let."""

    let: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    begun: list[int] = field(default_factory=list)

    async def prepare(self, change: Change) -> None:
        """See Applying."""

    async def apply(self, change: Change, _body: Manifest | None = None) -> Result:
        """See Applying."""
        self.begun.append(change.revision)
        await self.let.acquire()
        return Applied()


async def test_one_piece_of_work_after_the_other_is_one() -> None:
    """What was told beyond them is not taken back while a lane goes on to its next change."""
    slow, ledger = _Slow(), Ledger(Cursor("life", 0))
    async with asyncio.TaskGroup() as group:
        lanes = Lanes(
            group,
            slow,
            lambda _: nothing(),
            ledger=ledger,
            parks=Parks(lambda: 0, lambda: 0, lambda: 0.5, {}),
            news=lambda: None,
            applied=lambda _: None,
        )
        changes = [Change(TagName(A, Tag("t")), Register(), revision) for revision in (1, 2)]
        lanes.take(Batch("life", changes, 2, False, 2))
        lane = next(iter(lanes._lanes.values()))
        await eventually(lambda: slow.begun == [1], 60, "the first is begun")
        since = lane[0].since
        slow.let.release()
        await eventually(lambda: slow.begun == [1, 2], 60, "the second is begun")
        assert lane[0].since == since
        slow.let.release()
        await eventually(lambda: not lanes._lanes, 60, "all is done")
    assert ledger.cursor.revision == 2


async def nothing() -> AsyncGenerator[Batch, None]:
    """No repository is asked for."""
    return
    yield
