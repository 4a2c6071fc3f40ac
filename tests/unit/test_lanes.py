"""Lanes: order within a repository, nobody waits for another's, and nothing is forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from node.change import Change
from node.errors import MetadataUnavailable, PeerUnavailable
from node.keys import TagName
from node.manifest import Manifest
from node.records import Cursor, Pushed
from node.reference import Repository, Tag
from node.register import Register
from node.wire.feed_codec import Batch
from replicator import lanes as lanes_module
from replicator.apply import Applied, Parked, Result
from replicator.book import Ledger, Parks
from replicator.lanes import Lanes
from tests.waiting import eventually

A, B = Repository("a"), Repository("b")


def _change(repository: Repository, revision: int) -> Change:
    return Change(TagName(repository, Tag(f"t{revision}")), Register({"x": revision}), revision)


def _batch(*changes: Change, revision: int = 0, scanning: bool = False) -> Batch:
    revision = revision or max(change.revision for change in changes)
    return Batch("life", changes, revision, scanning, revision)


@dataclass
class _Site:
    """What applies changes, and a source that can be asked for a repository's state."""

    applied: list[tuple[Repository, int]] = field(default_factory=list)
    failing: dict[Repository, str] = field(default_factory=dict)
    held: dict[Repository, asyncio.Event] = field(default_factory=dict)
    held_at: dict[int, asyncio.Event] = field(default_factory=dict)
    here: set[tuple[Repository, int]] = field(default_factory=set)
    tried: list[int] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    state: dict[Repository, list[Change]] = field(default_factory=dict)
    as_of: int = 0
    unreachable: bool = False
    bad: frozenset[int] = frozenset()
    everywhere: bool = False
    unreadable: dict[Repository, str] = field(default_factory=dict)
    now: float = 0.0
    followed: list[Register[Pushed]] = field(default_factory=list)

    async def prepare(self, change: Change) -> None:
        """See Applying."""

    async def apply(self, change: Change, _body: Manifest | None = None) -> Result:
        """See Applying."""
        await asyncio.sleep(0)
        repository = change.name.repository
        if repository in self.held:
            await self.held[repository].wait()
        if change.revision in self.held_at:
            await self.held_at[change.revision].wait()
        if self.errors:
            raise self.errors.pop(0)
        if repository in self.failing:
            return Parked(self.failing[repository], self.everywhere)
        self.tried.append(change.revision)
        if change.revision in self.bad:
            return Parked(f"{change.revision} is bad", self.everywhere)
        if before := (repository, change.revision) in self.here:
            return Applied(before=before)
        self.here.add((repository, change.revision))
        self.applied.append((repository, change.revision))
        return Applied()

    async def repository(self, name: Repository) -> AsyncGenerator[Batch, None]:
        """All of a repository at the source."""
        await asyncio.sleep(0)
        if self.unreachable:
            raise PeerUnavailable("fra", "down")
        state = self.state.get(name, [])
        yield Batch("life", state, self.as_of, True, self.as_of, self.unreadable)
        yield Batch("life", (), self.as_of, False, self.as_of)

    @asynccontextmanager
    async def lanes(self) -> AsyncIterator[Lanes]:
        """Lanes that run until the body ends."""
        async with asyncio.TaskGroup() as group:
            parks = Parks(lambda: self.now, lambda: 0, lambda: 0.5, {})
            ledger = Ledger(Cursor("life", 0))
            made = asyncio.Event()
            lanes: list[Lanes] = []

            async def run() -> None:
                async with asyncio.TaskGroup() as inner:
                    lanes.append(
                        Lanes(
                            inner,
                            self,
                            self.repository,
                            ledger=ledger,
                            parks=parks,
                            news=lambda: None,
                            applied=self.followed.append,
                        )
                    )
                    made.set()
                    await asyncio.Event().wait()

            running = group.create_task(run())
            await made.wait()
            yield lanes[0]
            running.cancel()


async def _cursor(lanes: Lanes, revision: int) -> None:
    await eventually(lambda: lanes.ledger.cursor.revision == revision, 5, f"cursor {revision}")


async def test_changes_of_a_repository_are_applied_in_their_order() -> None:
    """Also over batches, and whatever the order within one."""
    site = _Site()
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 3), _change(A, 1), _change(A, 2)))
        lanes.take(_batch(_change(A, 4)))
        await _cursor(lanes, 4)
    assert [revision for _, revision in site.applied] == [1, 2, 3, 4]


async def test_a_slow_repository_holds_back_no_other() -> None:
    """The others go on; the cursor waits."""
    site = _Site(held={A: asyncio.Event()})
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        lanes.take(_batch(_change(B, 2)))
        await eventually(lambda: (B, 2) in site.applied, 60, "the other is applied")
        assert lanes.ledger.cursor.revision == 0
        site.held[A].set()
        await _cursor(lanes, 2)


async def test_a_failing_change_parks_its_repository_and_the_cursor_goes_on() -> None:
    """What fails, and all that comes after it there, is left out by name."""
    site = _Site(failing={A: "no blob"}, unreachable=True)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1), _change(A, 2), _change(B, 3)))
        await _cursor(lanes, 3)
        lanes.take(_batch(_change(A, 4)))
        await _cursor(lanes, 4)
        park = lanes.parks.get(A)
        assert park is not None
        assert (park.record.first, park.record.last, park.record.reason) == (1, 4, "no blob")
        assert lanes.parks.get(B) is None


async def test_a_parked_repository_catches_up_from_the_sources_state() -> None:
    """When its time comes, all of it is applied, and the park goes."""
    site = _Site(failing={A: "no blob"}, state={A: [_change(A, 5)]}, as_of=6)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await eventually(lambda: lanes.parks.get(A), 60, "it is parked")
        site.failing.clear()
        assert site.applied == []
        lanes.hurry()
        await eventually(lambda: lanes.parks.get(A) is None, 60, "it has caught up")
        lanes.take(_batch(_change(A, 7)))
        await _cursor(lanes, 7)
    assert site.applied == [(A, 5), (A, 7)]


async def test_what_came_during_the_catching_up_is_not_forgotten() -> None:
    """A change after the state's moment keeps the park, and is caught up next."""
    site = _Site(failing={A: "no blob"}, state={A: [_change(A, 1)]}, as_of=1)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await eventually(lambda: lanes.parks.get(A), 60, "it is parked")
        lanes.take(_batch(_change(A, 2)))
        site.failing.clear()
        site.held[A] = asyncio.Event()
        lanes.hurry()
        await asyncio.sleep(0)
        site.state[A], site.as_of = [_change(A, 2)], 2
        site.held.pop(A).set()
        await eventually(lambda: lanes.parks.get(A) is None, 60, "it has caught up")
    assert (A, 2) in site.applied


async def test_changes_that_can_never_be_applied_stop_no_other() -> None:
    """A catch-up goes past them, however many they are, and says what was wrong with the first."""
    state = [_change(A, n) for n in range(1, 21)]
    site = _Site(bad=frozenset(range(1, 11)), state={A: state}, as_of=20)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await eventually(lambda: lanes.parks.get(A), 60, "it is parked")
        lanes.hurry()
        await eventually(lambda: len(site.tried) == 21, 60, "all of it was tried")
        park = lanes.parks.get(A)
    assert [revision for _, revision in site.applied] == list(range(11, 21))
    assert park is not None
    assert park.record.reason == "1 is bad"


async def test_a_catch_up_ends_early_if_nothing_can_be_applied() -> None:
    """A peer that is away, or a full disk, is not asked for each of a million changes."""
    state = [_change(A, n) for n in range(1, 21)]
    site = _Site(bad=frozenset(range(1, 21)), everywhere=True, state={A: state}, as_of=20)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await eventually(lambda: lanes.parks.get(A), 60, "it is parked")
        lanes.hurry()

        def again() -> bool:
            park = lanes.parks.get(A)
            return park is not None and park.record.attempts == 2

        await eventually(again, 60, "it was tried again")
    assert site.tried == [1, 1, 2, 3, 4, 5]


async def test_work_that_takes_long_parks_its_repository_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer of many gigabytes holds neither the cursor nor a place, and is not begun anew."""
    monkeypatch.setattr(lanes_module, "HELD_S", 0.01)
    monkeypatch.setattr(lanes_module, "OVERDUE_S", 0.01)
    monkeypatch.setattr(lanes_module, "AT_ONCE", 1)
    site = _Site(held={A: asyncio.Event()}, as_of=9)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        lanes.take(_batch(_change(B, 2)))
        await _cursor(lanes, 2)
        assert lanes.parks.get(A) is not None
        assert lanes.parks.last_failure is None, "nothing has failed"
        assert site.applied == [(B, 2)]
        site.held[A].set()
        await eventually(lambda: lanes.parks.get(A) is None, 60, "it has caught up")
    assert site.applied == [(B, 2), (A, 1)]


async def test_what_a_scan_told_counts_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one while a repository catches up, whatever of it was here before."""
    monkeypatch.setattr(lanes_module, "OVERDUE_S", 0.01)
    site = _Site(held={A: asyncio.Event()}, as_of=9, here={(A, 1)})
    site.state = {A: [_change(A, n) for n in range(1, 5)]}
    async with site.lanes() as lanes:
        lanes.take(_batch(*site.state[A][1:], scanning=True))
        lanes.take(_batch(revision=9))
        await _cursor(lanes, 9)
        lanes.take(_batch(*site.state[A][1:], scanning=True), again=True)
        assert lanes.parks.at_work == 3, "comparing is no scan"
        site.bad = frozenset({4})
        site.held.pop(A).set()
        site.held_at[4] = asyncio.Event()
        await eventually(lambda: lanes.parks.at_work == 1, 60, "the last is at work")
        assert site.applied == [(A, 2), (A, 3)]
        site.held_at[4].set()
        await eventually(lambda: lanes.parks.at_work == 0, 60, "it has failed")
        assert lanes.parks.last_failure == "4 is bad"


async def test_a_catch_up_that_takes_long_keeps_no_other_from_catching_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It gives its place back and goes on without one."""
    monkeypatch.setattr(lanes_module, "HELD_S", 0.01)
    monkeypatch.setattr(lanes_module, "OVERDUE_S", 0.01)
    monkeypatch.setattr(lanes_module, "CATCHING_UP", 1)
    site = _Site(failing={A: "no blob", B: "no blob"}, as_of=9)
    site.state = {A: [_change(A, 1)], B: [_change(B, 2)]}
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1), _change(B, 2)))
        await eventually(lambda: len(lanes.parks) == 2, 60, "both are parked")
        assert lanes.parks.last_failure == "no blob"
        site.failing.clear()
        site.held[A] = asyncio.Event()
        lanes.hurry()
        await eventually(lambda: lanes.parks.get(B) is None, 60, "the other has caught up")
        assert site.applied == [(B, 2)]
        site.held[A].set()
        await eventually(lambda: lanes.parks.get(A) is None, 60, "and so has it")


async def test_a_kv_that_does_not_answer_once_parks_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The change is applied again."""
    monkeypatch.setattr(lanes_module, "_KV_PAUSE_S", 0)
    site = _Site(errors=[MetadataUnavailable("away")])
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await _cursor(lanes, 1)
        assert lanes.parks.get(A) is None


async def test_a_bug_parks_one_repository() -> None:
    """An error that nobody foresaw stops neither the others nor the follower."""
    site = _Site(errors=[ZeroDivisionError()], unreachable=True)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        await eventually(lambda: lanes.parks.get(A), 60, "it is parked")
        lanes.take(_batch(_change(B, 2)))
        await _cursor(lanes, 2)


async def test_a_change_that_cannot_be_read_parks_its_repository_only() -> None:
    """The others go on, and it stays parked, with the reason, until the source mends it."""
    site = _Site(state={A: [_change(A, 3)]}, as_of=9, unreadable={A: "no register"})
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1)))
        lanes.take(Batch("life", [_change(A, 3), _change(B, 3)], 4, False, 4, {A: "no register"}))
        await _cursor(lanes, 4)
        park = lanes.parks.get(A)
        assert park is not None
        assert (park.record.first, park.record.last, park.record.reason) == (1, 4, "no register")
        lanes.hurry()
        await eventually(lambda: (A, 3) in site.applied, 60, "the rest of it is applied")
        assert lanes.parks.get(A) is not None
        site.unreadable = {}

        def caught_up() -> bool:
            lanes.hurry()
            return lanes.parks.get(A) is None

        await eventually(caught_up, 60, "it has caught up")
    assert (B, 3) in site.applied


async def test_what_was_followed_is_counted_once_applied() -> None:
    """Also what was left out meanwhile, when it has caught up; never what a scan told."""
    site = _Site(failing={B: "no blob"}, as_of=9)
    first, second, old = _change(A, 1), _change(B, 2), _change(B, 1)
    site.state = {B: [old, second]}
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 3), scanning=True))
        lanes.take(_batch(first, second))
        await eventually(lambda: lanes.parks.get(B), 60, "it is parked")
        assert site.followed == [first.register]
        site.failing.clear()
        lanes.hurry()
        await eventually(lambda: lanes.parks.get(B) is None, 60, "it has caught up")
    assert site.followed == [first.register, second.register]


async def test_a_new_life_of_the_source_forgets_what_waits() -> None:
    """Old revisions mean nothing then; parked repositories stay so until they have caught up."""
    site = _Site(held={A: asyncio.Event()}, failing={B: "no blob"}, unreachable=True)
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 100), _change(A, 101), _change(B, 102)))
        await eventually(lambda: lanes.parks.get(B), 60, "one is parked")
        lanes.begin_life(Cursor("next", 0))
        assert lanes.parks.first == 0
        site.held.pop(A).set()
        lanes.take(_batch(_change(A, 1)))
        await _cursor(lanes, 1)
        assert lanes.ledger.cursor.incarnation == "next"
    assert site.applied == [(A, 100), (A, 1)]


async def test_a_catch_up_from_before_is_not_one_of_what_is_told_anew() -> None:
    """The source tells everything again meanwhile (a wider filter): the park stays for that."""
    site = _Site(failing={A: "no blob"})
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 500)))
        await _cursor(lanes, 500)
        site.failing, site.state, site.as_of = {}, {A: [_change(A, 500)]}, 500
        site.held[A] = asyncio.Event()
        lanes.hurry()
        for _ in range(20):
            await asyncio.sleep(0)
        lanes.begin_life(Cursor("life", 0))
        lanes.take(_batch(_change(A, 7), scanning=True))
        site.state[A] = [_change(A, 7), _change(A, 500)]
        site.held.pop(A).set()

        def arrived() -> bool:
            lanes.hurry()
            return (A, 7) in site.applied

        await eventually(arrived, 60, "the change of the wider filter")


async def test_the_feed_is_not_read_on_while_much_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded: there is room again when the lanes have done their work."""
    monkeypatch.setattr(lanes_module, "MOST_WAITING", 2)
    site = _Site(held={A: asyncio.Event()})
    async with site.lanes() as lanes:
        lanes.take(_batch(_change(A, 1), _change(A, 2)))
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(lanes.room())
            await asyncio.sleep(0)
            assert not waiting.done()
            site.held[A].set()
        await _cursor(lanes, 2)
