"""Looking ahead: what the next changes need is brought early, and nothing else is different."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from node.change import Change
from node.keys import TagName
from node.manifest import Manifest
from node.records import Cursor
from node.reference import Repository, Tag
from node.register import Register
from node.wire.feed_codec import Batch
from replicator import ahead as ahead_module
from replicator.ahead import AHEAD
from replicator.apply import Applied, Parked, Result
from replicator.book import Ledger, Parks
from replicator.lanes import Lanes
from tests.waiting import eventually

APP = Repository("app")


def _changes(first: int, last: int) -> list[Change]:
    return [
        Change(TagName(APP, Tag(f"t{number}")), Register(), number)
        for number in range(first, last + 1)
    ]


@dataclass
class _Site:
    """What applies changes, and what it saw; it waits with the first until it may go on."""

    state: list[Change] = field(default_factory=list)
    unprepared: int = 0
    failing: bool = False
    prepared: list[int] = field(default_factory=list)
    known: list[int] = field(default_factory=list)
    applied: list[int] = field(default_factory=list)
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def prepare(self, change: Change) -> Manifest | None:
        """See Applying."""
        self.prepared.append(change.revision)
        if change.revision == self.unprepared:
            raise ZeroDivisionError
        return Manifest(str(change.revision))

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """See Applying."""
        if self.failing:
            return Parked("no blob")
        await self.go_on.wait()
        self.applied.append(change.revision)
        if body == Manifest(str(change.revision)):
            self.known.append(change.revision)
        return Applied()

    async def repository(self, _name: Repository) -> AsyncGenerator[Batch, None]:
        """All of a repository at the source."""
        await asyncio.sleep(0)
        yield Batch("life", self.state, len(self.state), True, len(self.state))
        yield Batch("life", (), len(self.state), False, len(self.state))

    @asynccontextmanager
    async def lanes(self) -> AsyncIterator[Lanes]:
        """Lanes that are idle at the end of the body."""
        async with asyncio.TaskGroup() as group:
            yield Lanes(
                group,
                self,
                self.repository,
                ledger=Ledger(Cursor("life", 0)),
                parks=Parks(lambda: 0.0, lambda: 0, lambda: 0.5, {}),
                news=lambda: None,
                applied=lambda _register: None,
            )


def _take(lanes: Lanes, *changes: Change) -> None:
    last = changes[-1].revision
    lanes.take(Batch("life", changes, last, False, last))


async def test_the_next_changes_are_prepared_while_the_first_is_applied() -> None:
    """So many of them, each once, over batches; applying them is told what came of it."""
    site = _Site()
    async with site.lanes() as lanes:
        for change in _changes(1, 30):
            _take(lanes, change)
        await eventually(lambda: len(site.prepared) == AHEAD, 60, "all that may be is prepared")
        assert site.prepared == list(range(2, AHEAD + 2))
        site.go_on.set()
    assert site.applied == list(range(1, 31))
    assert site.prepared == site.known == list(range(2, 31))


async def test_a_catch_up_looks_ahead_too() -> None:
    """All but the first change of the source's state are prepared before their turn."""
    site = _Site(state=_changes(1, 40), failing=True)
    site.go_on.set()
    async with site.lanes() as lanes:
        _take(lanes, *_changes(1, 1))
        await eventually(lambda: lanes.parks.get(APP), 60, "it is parked")
        site.failing = False
        lanes.hurry()
    assert lanes.parks.get(APP) is None
    assert site.applied == list(range(1, 41))
    assert site.prepared == site.known == list(range(2, 41))


async def test_what_was_not_prepared_is_applied_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only so many are prepared at once, and some may fail: their turn comes in any case."""
    monkeypatch.setattr(ahead_module, "AHEAD_IN_ALL", 3)
    site = _Site(unprepared=2)
    async with site.lanes() as lanes:
        _take(lanes, *_changes(1, 10))
        await eventually(lambda: len(site.prepared) == 3, 60, "three are prepared")
        site.go_on.set()
    assert site.applied == list(range(1, 11))
    assert 2 not in site.known
    assert 3 in site.known
