"""Places by turns."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass

import pytest

from replicator.turns import Turns

MIB = 1 << 20


async def test_keys_take_turns() -> None:
    """A key with a long line lets others in between."""
    turns = Turns(1)
    order: list[str] = []
    first = asyncio.Event()

    async def work(key: str, name: str) -> None:
        async with turns.turn(key):
            order.append(name)
            await first.wait()

    async with asyncio.TaskGroup() as group:
        for name in ("a1", "a2", "a3", "b1"):
            group.create_task(work(name[0], name))
        await asyncio.sleep(0)
        first.set()
    assert order == ["a1", "a2", "b1", "a3"]


async def test_no_more_than_the_places_are_held() -> None:
    """The bound holds whoever comes and goes."""
    turns = Turns(3)
    held, most = 0, 0

    async def work(key: int) -> None:
        nonlocal held, most
        async with turns.turn(key % 5):
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1

    async with asyncio.TaskGroup() as group:
        for key in range(50):
            group.create_task(work(key))
    assert most == 3


async def test_whoever_gives_up_waiting_costs_no_place() -> None:
    """A cancelled waiter, even one that was just given its place, passes it on."""
    turns = Turns(1)
    entered = asyncio.Event()
    leave = asyncio.Event()

    async def hold() -> None:
        async with turns.turn("a"):
            entered.set()
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(hold())
        await entered.wait()
        second = group.create_task(hold())
        third = group.create_task(hold())
        await asyncio.sleep(0)
        second.cancel()
        leave.set()
        await asyncio.sleep(0)
        third.cancel()
    async with asyncio.timeout(10), turns.turn("b"):
        pass


# --- long ones and short ones


@dataclass
class _Link:
    """A link and its clock: what is sent over it takes its time, one after the other."""

    bytes_per_s: int = 12_500_000
    now: float = 0.0

    def clock(self) -> float:
        """The seconds that have passed."""
        return self.now

    async def send(self, size: int) -> None:
        """Let the time pass that it takes."""
        self.now += size / self.bytes_per_s
        await asyncio.sleep(0)

    async def until(self, seconds: float) -> None:
        """Wait for that time; others send."""
        while self.now < seconds:
            await self.send(0)


async def _fetch(turns: Turns, link: _Link, key: Hashable, size: int, *, is_short: bool) -> float:
    """Fetch so many bytes in turns; when that was done."""
    async with turns.turn(key, is_short=is_short) as place:
        while size > 0:
            await link.send(MIB)
            size -= MIB
            if place.is_wanted and size > 0:
                await place.give_way()
    return link.now


@pytest.mark.parametrize(("repositories", "layers"), [(1, 100), (100, 1), (100, 100)])
async def test_huge_images_do_not_hold_up_a_small_one(repositories: int, layers: int) -> None:
    """However many are under way, of however many layers: 5 MiB pass within seconds."""
    link = _Link()
    turns = Turns(4, clock=link.clock)
    async with asyncio.TaskGroup() as group:
        huge = [
            group.create_task(_fetch(turns, link, f"huge-{n}", 50 << 30, is_short=False))
            for n in range(repositories)
            for _ in range(layers)
        ]
        await link.until(60)
        small = await _fetch(turns, link, "small", 5 * MIB, is_short=True)
        assert small < 60 + 8
        for task in huge:
            task.cancel()


async def test_many_short_ones_do_not_starve_a_long_one() -> None:
    """Of four places one goes to the long, so it ends however many short ones come."""
    link = _Link()
    turns = Turns(1, clock=link.clock)

    async def short_ones(key: str) -> None:
        while True:
            await _fetch(turns, link, key, MIB, is_short=True)

    async with asyncio.TaskGroup() as group:
        endless = [group.create_task(short_ones(key)) for key in "abc"]
        long = await _fetch(turns, link, "long", 100 * MIB, is_short=False)
        for task in endless:
            task.cancel()
    assert long < 60


async def test_who_gives_way_goes_on_before_others_of_its_key_begin() -> None:
    """No more blobs of a repository are half done than it had places."""
    link, begun = _Link(), []
    turns = Turns(2, clock=link.clock)

    async def work(key: str, number: int) -> None:
        async with turns.turn(key, is_short=False) as place:
            begun.append((key, number))
            for _ in range(100):
                await link.send(MIB)
                if place.is_wanted:
                    await place.give_way()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(key, n)) for n in range(10) for key in "abc"]
        await link.until(20)
        assert len(begun) <= 3 * 2
        assert {key for key, _ in begun} == set("abc")
        for task in tasks:
            task.cancel()
