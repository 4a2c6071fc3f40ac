"""Followers beside each other: one does the work, and nobody waits for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import pytest

from node.change import Change
from node.digest import Digest
from node.keys import ManifestName
from node.manifest import Manifest
from node.register import Register
from replicator import beside
from replicator.apply import Applied, Result
from replicator.beside import AtWork, Beside
from tests.model import REPOSITORY
from tests.waiting import eventually

DEADLINE_S: Final = 60.0


def _change(content: bytes) -> Change:
    return Change(ManifestName(REPOSITORY, Digest.of(content)), Register(), 1)


ONE: Final = _change(b"one")
OTHER: Final = _change(b"other")


class _Work:
    """Applies what it is told to once it may go on, and says what it has begun with."""

    def __init__(self, at_work: AtWork, error: Exception | None = None) -> None:
        self.beside = Beside(self, at_work)
        self.begun: list[Change] = []
        self.prepared: list[Change] = []
        self.go_on = asyncio.Event()
        self._error = error

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """Wait, and fail if it is to."""
        del body
        self.begun.append(change)
        await self.go_on.wait()
        if self._error is not None:
            raise self._error
        return Applied()

    async def prepare(self, change: Change) -> Manifest | None:
        """Wait."""
        self.prepared.append(change)
        await self.go_on.wait()
        return None


async def _begins(work: _Work, change: Change) -> None:
    await eventually(lambda: change in work.begun, DEADLINE_S, "it is at work")


def _turns() -> Callable[[], bool]:
    """Whether everything that is ready has had its turn a few times."""
    left = iter([False] * 5)
    return lambda: next(left, True)


@pytest.mark.parametrize("error", [None, ValueError("of the first")])
async def test_who_comes_second_waits_for_the_first(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """And then does its own, however the first has ended; other names wait for nobody."""
    monkeypatch.setattr(beside, "PATIENCE_S", DEADLINE_S)
    at_work = AtWork()
    first, second = _Work(at_work, error), _Work(at_work)
    second.go_on.set()
    async with asyncio.timeout(DEADLINE_S):
        one = asyncio.create_task(first.beside.apply(ONE))
        await _begins(first, ONE)
        two = asyncio.create_task(second.beside.apply(ONE))
        assert await second.beside.apply(OTHER) == Applied()
        await eventually(_turns(), DEADLINE_S, "all had their turn")
        assert second.begun == [OTHER]
        first.go_on.set()
        assert await two == Applied()
        await asyncio.gather(one, return_exceptions=True)
    assert second.begun == [OTHER, ONE]
    assert ONE.name not in at_work


async def test_nobody_waits_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first may hang where the second would not; a third waits for the second."""
    monkeypatch.setattr(beside, "PATIENCE_S", 0.01)
    at_work = AtWork()
    first, second = _Work(at_work), _Work(at_work)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(first.beside.apply(ONE))
        await _begins(first, ONE)
        tasks.create_task(second.beside.apply(ONE))
        await _begins(second, ONE)
        first.go_on.set()
        await eventually(_turns(), DEADLINE_S, "all had their turn")
        assert ONE.name in at_work
        second.go_on.set()
    assert ONE.name not in at_work


async def test_what_another_is_at_is_not_prepared() -> None:
    """Neither what it applies nor what it prepares; what nobody is at is."""
    at_work = AtWork()
    first, second = _Work(at_work), _Work(at_work)
    second.go_on.set()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(first.beside.apply(ONE))
        await _begins(first, ONE)
        tasks.create_task(first.beside.prepare(OTHER))
        await eventually(lambda: OTHER in first.prepared, DEADLINE_S, "it is prepared")
        for change in (ONE, OTHER):
            assert await second.beside.prepare(change) is None
        assert second.prepared == []
        first.go_on.set()
    await second.beside.prepare(ONE)
    assert second.prepared == [ONE]
