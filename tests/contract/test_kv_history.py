"""What every KV promises of writers that race: one history, and no push that lands twice."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from node.kv import KV, Absent, Entry, Failed, Guard, Modified, Ok, Op, Put, only, unchanged
from tests.kv_calls import commit, get, must_get, put

TAG: Final = b"T/library/app\0latest"


async def _count_up(kv: KV, key: bytes, times: int) -> None:
    for _ in range(times):
        while True:
            seen = await get(kv, key)
            value = int(seen.value) + 1 if seen else 1
            if isinstance(await kv.txn([unchanged(key, seen)], [Put(key, b"%d" % value)]), Ok):
                break


async def test_no_count_is_lost(kv: KV, another: KV) -> None:
    """50 tasks that count up four keys by compare-and-swap through two ways in lose nothing."""
    async with asyncio.TaskGroup() as tasks:
        for task in range(50):
            tasks.create_task(_count_up((kv, another)[task % 2], b"count/%d" % (task % 4), 5))
    snapshot = await kv.read([only(b"count/%d" % number) for number in range(4)])
    assert [int(entry.value) for (entry,) in snapshot.ranges] == [65, 65, 60, 60]


async def test_of_many_that_make_a_key_one_wins(kv: KV, another: KV) -> None:
    """Of 40 transactions in flight that guard the key's absence, one is applied."""
    outcomes = await asyncio.gather(
        *((kv, another)[n % 2].txn([Absent(b"a")], [Put(b"a", b"%d" % n)]) for n in range(40))
    )
    (winner,) = (n for n, outcome in enumerate(outcomes) if isinstance(outcome, Ok))
    entry = await must_get(kv, b"a")
    assert entry.value == b"%d" % winner
    losers = [outcome for n, outcome in enumerate(outcomes) if n != winner]
    assert losers == [Failed((entry,))] * 39


async def test_a_joined_read_is_of_one_moment(kv: KV, another: KV) -> None:
    """While two writers move value between two keys, every reader sees the same sum."""
    await put(kv, left=b"500", right=b"500")
    moved = 0

    async def move(through: KV, step: int) -> None:
        nonlocal moved
        while moved < 60:
            (left,), (right,) = (await through.read([only(b"left"), only(b"right")])).ranges
            outcome = await through.txn(
                [Modified(b"left", left.modified), Modified(b"right", right.modified)],
                [
                    Put(b"left", b"%d" % (int(left.value) - step)),
                    Put(b"right", b"%d" % (int(right.value) + step)),
                ],
            )
            moved += isinstance(outcome, Ok)

    async def watch(through: KV) -> None:
        while moved < 60:
            # Of both kinds of range, so that SQLite needs more than one statement.
            ranges = [only(b"left"), only(b"right"), only(b"left")._replace(limit=0)]
            (left,), (right,), (again,) = (await through.read(ranges)).ranges
            assert int(left.value) + int(right.value) == 1000
            assert again == left

    async with asyncio.TaskGroup() as tasks:
        for through in (kv, another):
            tasks.create_task(move(through, 3))
            tasks.create_task(move(through, -5))
            tasks.create_task(watch(through))


class _Push:
    """A push of a tag whose first reply is lost: its caller must find out what happened."""

    def __init__(self, kv: KV, op: bytes) -> None:
        self._kv = kv
        self._done = b"o/" + op
        self._op = op

    def ops(self) -> list[Op]:
        return [Put(TAG, self._op), Put(self._done, b"")]

    def guards(self, seen: Entry | None, *, by_operation: bool) -> list[Guard]:
        swap = unchanged(TAG, seen)
        return [Absent(self._done), swap] if by_operation else [swap]

    async def send(self, *, by_operation: bool = True) -> bool:
        """Read, then write: whether it was applied now."""
        guards = self.guards(await get(self._kv, TAG), by_operation=by_operation)
        return isinstance(await self._kv.txn(guards, self.ops()), Ok)

    async def landed(self) -> bool:
        return await get(self._kv, self._done) is not None


async def test_a_push_of_unknown_outcome_that_landed_is_not_sent_again(kv: KV, another: KV) -> None:
    """Its caller reads `o/<op>` and is done; somebody's later push stays."""
    mine, theirs = _Push(kv, b"mine"), _Push(another, b"theirs")
    assert await mine.send()  # and suppose that this answer never came
    assert await theirs.send()
    assert await mine.landed()
    # Even a caller that asks no one and tries again can't land a second time.
    assert not await mine.send()
    assert (await must_get(kv, TAG)).value == b"theirs"


async def test_without_the_guard_a_retry_lands_over_a_later_push(kv: KV, another: KV) -> None:
    """The mistake that `Absent(o/<op>)` is there for: a compare-and-swap alone does not stop it."""
    mine, theirs = _Push(kv, b"mine"), _Push(another, b"theirs")
    assert await mine.send(by_operation=False)
    assert await theirs.send(by_operation=False)
    assert await mine.send(by_operation=False)
    assert (await must_get(kv, TAG)).value == b"mine"


@pytest.mark.parametrize("retried", [True, False])
async def test_a_push_that_lands_late_lands_once(kv: KV, another: KV, retried: bool) -> None:
    """A transaction delayed beyond its caller's retry, or a later push, changes nothing."""
    mine, theirs = _Push(kv, b"mine"), _Push(another, b"theirs")
    late = mine.guards(await get(kv, TAG), by_operation=True)
    if retried:
        assert not await mine.landed()
        assert await mine.send()
    assert await theirs.send()
    assert isinstance(await kv.txn(late, mine.ops()), Failed)
    assert (await must_get(kv, TAG)).value == b"theirs"


async def test_a_failed_transaction_leaves_those_beside_it_alone(kv: KV) -> None:
    """Of transactions in flight together each is judged by its own guards."""
    await commit(kv, Put(b"there", b""))
    outcomes = await asyncio.gather(
        *(
            kv.txn([Absent(b"there") if n % 3 == 0 else Absent(b"n%d" % n)], [Put(b"n%d" % n, b"")])
            for n in range(60)
        )
    )
    assert [isinstance(outcome, Ok) for outcome in outcomes] == [n % 3 != 0 for n in range(60)]
    revisions = [outcome.revision for outcome in outcomes if isinstance(outcome, Ok)]
    assert len(set(revisions)) == 40
    snapshot = await kv.read([only(b"n%d" % n) for n in range(60)])
    assert [bool(entries) for entries in snapshot.ranges] == [n % 3 != 0 for n in range(60)]
