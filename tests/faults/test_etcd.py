"""An etcd that fails: what the adapter says of a write is true, and it goes on by itself (I5, F5).

Each write makes a key of its own, so what is there afterwards tells whether it was applied.
"""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Final

import pytest

from node.errors import MetadataUnavailable
from node.kv import (
    KV,
    Absent,
    Delete,
    DeleteRange,
    Failed,
    Ok,
    Outcome,
    Put,
    Range,
    Unknown,
    only,
    prefix,
)
from tests.etcd import Etcd, keyspace, opened, running
from tests.faults.lossy import lossy
from tests.kv_calls import commit, get, keys
from tests.ports import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.slow

WITHIN_S: Final = 120.0


class Writes:
    """Writes through one client, and what was said of each."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.said: dict[bytes, Outcome | None] = {}

    async def write(self, key: bytes) -> Outcome | None:
        """Make a key; None if it was refused for certain."""
        try:
            self.said[key] = await self._kv.txn([Absent(key)], [Put(key, key)])
        except MetadataUnavailable:
            self.said[key] = None
        return self.said[key]

    async def succeeds(self) -> bool:
        """Whether one more is applied."""
        return isinstance(await self.write(b"w/%d" % len(self.said)), Ok)

    def count(self, kind: type[Ok | Unknown]) -> int:
        """How often this was said."""
        return sum(isinstance(one, kind) for one in self.said.values())

    async def check(self, kv: KV) -> int:
        """Whether all that was said is true of what is there; how many Unknown were applied."""
        (entries,) = (await kv.read([prefix(b"w/")])).ranges
        there = {entry.key: entry for entry in entries}
        landed = 0
        for key, said in self.said.items():
            match said:
                case Ok():
                    assert there[key].created == said.revision
                case Failed() | None:
                    assert key not in there, f"{key!r} was refused, and is there"
                case Unknown():
                    landed += key in there
        assert not there.keys() - self.said.keys()
        return landed


async def test_a_lost_reply_is_never_taken_for_an_answer(etcd: Etcd) -> None:
    """F27: of 1,000 writes of which each tenth loses its reply, each outcome said is true."""
    dice = random.Random(27)
    at = keyspace()

    def loses(method: str) -> bool:
        return dice.random() < 0.1

    async with (
        lossy(etcd.endpoints[0], loses) as address,
        opened(address, at=at) as kv,
        opened(*etcd.endpoints, at=at) as truth,
    ):
        writes = Writes(kv)

        async def work(worker: int) -> None:
            for number in range(50):
                key = b"w/%d/%d" % (worker, number)
                await writes.write(key)
                # Reads lose their replies too, and are asked again.
                assert (await get(kv, key)) == (await get(truth, key))

        await asyncio.gather(*map(work, range(20)))
        landed = await writes.check(truth)
    assert writes.count(Ok) > 800
    assert 50 < writes.count(Unknown) == landed


async def test_a_member_that_hangs_leaves_writes_unknown() -> None:
    """A write that a stopped etcd has got is Unknown after 5 s; a read is refused after 2."""
    with running() as etcd:
        async with opened(*etcd.endpoints) as kv:
            writes = Writes(kv)
            assert isinstance(await writes.write(b"w/before"), Ok)
            etcd.signal(0, signal.SIGSTOP)
            loop = asyncio.get_running_loop()
            begun = loop.time()
            with pytest.raises(MetadataUnavailable):
                await get(kv, b"w/before")
            assert loop.time() - begun < WITHIN_S
            assert isinstance(await writes.write(b"w/during"), Unknown)
            assert loop.time() - begun < WITHIN_S
            etcd.signal(0, signal.SIGCONT)

            async def answers() -> bool:
                try:
                    return await get(kv, b"w/before") is not None
                except MetadataUnavailable as err:
                    raise AssertionError(str(err)) from err

            await eventually(answers, WITHIN_S, "it answers again")
            assert isinstance(await writes.write(b"w/after"), Ok)
            await writes.check(kv)


async def test_nothing_is_sent_where_nobody_listens() -> None:
    """Without a connection a write is refused for certain, not Unknown."""
    async with opened(f"127.0.0.1:{free_port()}") as kv:
        writes = Writes(kv)
        assert await writes.write(b"w/1") is None
        with pytest.raises(MetadataUnavailable):
            await kv.grant(5)


async def test_a_full_etcd_goes_on_with_what_makes_room() -> None:
    """F17: without room no put is acknowledged; reads and deletions go on, and status says so."""
    with running(1, f"--quota-backend-bytes={4 << 20}") as etcd:
        async with opened(*etcd.endpoints) as kv:
            lease = await kv.grant(60)
            await commit(kv, Put(b"kept", b"", lease))
            # It learns its size a tenth of a second late, when a batch of writes is committed.
            big = (Put(b"big/%d" % number, bytes(200_000)) for number in range(2000))
            while isinstance(outcome := await kv.txn([], [next(big)]), Ok):
                pass
            assert isinstance(outcome, Unknown)
            assert "space" in outcome.reason
            assert isinstance(await kv.txn([], [Put(b"small", b"")]), Unknown)
            with pytest.raises(MetadataUnavailable, match="space"):
                await kv.grant(5)
            assert await get(kv, b"small") is None
            assert await kv.keep_alive(lease)
            await commit(kv, DeleteRange(b"big/", b"big0"), Delete(b"kept"))
            assert await keys(kv, Range(b"a", b"z")) == []
            (member,) = await kv.members()
            assert member.is_full


# --- members that come and go


async def test_a_member_that_hangs_is_left_for_others(cluster: Etcd) -> None:
    """Its clients lose half of a read's time, and one write, to a member that is stopped."""
    async with opened(*cluster.endpoints) as kv:
        writes = Writes(kv)
        assert isinstance(await writes.write(b"w/before"), Ok)
        # A follower is stopped: the others keep their leader.
        hung = next(one.endpoint for one in await kv.members() if not one.is_leader)
        rings = kv._members.reads, kv._members._writes
        for ring in rings:
            ring.lines.sort(key=lambda line: line.endpoint != hung)

        def connected() -> bool:
            return all(ring.lines[0].is_ready for ring in rings)

        # Of those that are connected the first one serves.
        await eventually(connected, WITHIN_S, "it is connected")
        number = cluster.endpoints.index(hung)
        cluster.signal(number, signal.SIGSTOP)
        try:
            assert await get(kv, b"w/before") is not None
            assert kv._members.reads.lines[0].endpoint != hung
            assert isinstance(await writes.write(b"w/during"), Unknown)
            assert isinstance(await writes.write(b"w/after"), Ok)
        finally:
            cluster.signal(number, signal.SIGCONT)
        await cluster.healthy()
        await writes.check(kv)


async def test_a_killed_member_is_replaced_within_seconds(cluster: Etcd) -> None:
    """F5: with one of three members killed, its clients write and read again within 10 s."""
    at = keyspace()
    async with opened(*cluster.endpoints, at=at) as kv:
        writes = Writes(kv)
        for number in range(3):
            assert isinstance(await writes.write(b"w/%d/before" % number), Ok)
            cluster.kill(number)
            await eventually(writes.succeeds, 60, "a write succeeds")
            assert await get(kv, b"w/%d/before" % number) is not None
            cluster.spawn(number)
            await cluster.healthy()
        await writes.check(kv)


async def test_without_a_majority_reads_may_be_stale_and_writes_are_refused(cluster: Etcd) -> None:
    """With one of three members left there are stale reads, which say so, and nothing else."""
    async with opened(*cluster.endpoints) as kv:
        writes = Writes(kv)
        await writes.write(b"w/before")
        fresh = await kv.read([only(b"w/before")], may_be_stale=True)
        assert not fresh.stale
        for number in (0, 1):
            cluster.kill(number)
        with pytest.raises(MetadataUnavailable):
            await get(kv, b"w/before")
        stale = await kv.read([only(b"w/before"), prefix(b"w/")], may_be_stale=True)
        assert stale.stale
        assert stale.ranges[0] == fresh.ranges[0] == stale.ranges[1]

        async def refused() -> bool:
            return await writes.write(b"w/refused/%d" % len(writes.said)) is None

        await eventually(refused, WITHIN_S, "the member knows that it has no leader")
        problems = [one.problems for one in await kv.members()]
        assert all(problems)
        cluster.spawn(0, 1)
        await cluster.healthy()

        await eventually(writes.succeeds, WITHIN_S, "a write succeeds")
        await writes.check(kv)
