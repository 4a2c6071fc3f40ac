"""Places by turns."""

from __future__ import annotations

import asyncio

from replicator.turns import Turns


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
    async with asyncio.timeout(1), turns.turn("b"):
        pass
