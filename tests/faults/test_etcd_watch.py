"""Following an etcd through cuts, compactions and members that hang: nothing is left out (I12)."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import pytest

from node import kv_etcd_watch
from node.errors import MetadataUnavailable
from node.kv import KV, Absent, Changes, Compacted, Entry, Failed, Ok, Put, only, prefix
from tests.etcd import Etcd, compact, keyspace, opened
from tests.faults.wanlink import linked
from tests.kv_calls import commit, following, must_get, next_entries
from tests.ports import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.slow

WITHIN_S: Final = 120.0


@pytest.fixture(params=["few", "many"], autouse=True)
def count(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A range of few keys is looked at first; one of many is not."""
    kind: str = request.param
    if kind == "many":
        monkeypatch.setattr(kv_etcd_watch, "FEW", 0)
    return kind


class Follower:
    """Follows a range for ever, through whatever happens, and notes all that it is told."""

    def __init__(self, kv: KV, after: int) -> None:
        self._kv = kv
        self.after = after
        self.told: list[Entry] = []

    async def follow(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with following(self._kv, prefix(b"w/"), self.after, deadline_s=600) as stream:
                    async for batch in stream:
                        self.after = batch.revision
                        self.told += batch.entries
            except MetadataUnavailable:
                await asyncio.sleep(0)

    def caught_up(self, entry: Entry) -> Callable[[], bool]:
        """Whether it has come as far as this entry."""
        return lambda: self.after >= entry.modified


@asynccontextmanager
async def followed(kv: KV) -> AsyncIterator[Follower]:
    """A follower of what is written from now on."""
    follower = Follower(kv, (await kv.read([])).revision)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.follow())
        yield follower
        task.cancel()


async def test_a_watch_that_is_cut_goes_on_without_loss_or_double(etcd: Etcd) -> None:
    """Through five cuts each write is told, in order, and no revision twice."""
    at = keyspace()
    async with (
        linked(etcd.endpoints[0], free_port()) as link,
        opened(link.address, at=at) as kv,
        opened(*etcd.endpoints, at=at) as writer,
        followed(kv) as follower,
    ):
        written = 0
        for cut in range(5):
            for _ in range(20):
                await commit(writer, Put(b"w/%d" % written, b""), Put(b"w/same", b"%d" % written))
                written += 1
            if cut % 2:
                last = await must_get(writer, b"w/same")
                await eventually(follower.caught_up(last), WITHIN_S, "all is told")
            await link.cut()
            await commit(writer, Put(b"w/%d" % written, b""), Put(b"w/same", b"%d" % written))
            written += 1
            await link.heal()
        last = await must_get(writer, b"w/same")
        await eventually(follower.caught_up(last), WITHIN_S, "all is told")
    names = [entry.key for entry in follower.told if entry.key != b"w/same"]
    assert sorted(names) == sorted(b"w/%d" % number for number in range(written))
    revisions = [entry.modified for entry in follower.told]
    assert revisions == sorted(revisions)
    pairs = [(entry.key, entry.modified) for entry in follower.told]
    assert len(set(pairs)) == len(pairs)


async def test_a_compaction_during_a_cut_leaves_nothing_out(etcd: Etcd, count: str) -> None:
    """What was compacted away while nobody could follow is Compacted, or told by a look."""
    at = keyspace()
    async with (
        linked(etcd.endpoints[0], free_port()) as link,
        opened(link.address, at=at) as kv,
        opened(*etcd.endpoints, at=at) as writer,
    ):
        start = await commit(writer, Put(b"w/1", b""))
        async with following(kv, prefix(b"w/"), start - 1, deadline_s=60) as stream:
            assert [entry.key for entry in await next_entries(stream)] == [b"w/1"]
            await link.cut()
            for number in range(3):
                await commit(writer, Put(b"w/2", b"%d" % number))
            await compact(writer)
            await link.heal()
            if count == "many":
                with pytest.raises(Compacted):
                    await anext(stream)
            else:
                assert [entry.value for entry in await next_entries(stream)] == [b"2"]


async def test_a_watch_of_a_member_that_hangs_goes_on_elsewhere(cluster: Etcd) -> None:
    """A stream that is silent because its member hangs is left for another member's."""
    async with opened(*cluster.endpoints, silence_s=1) as kv, followed(kv) as follower:
        await commit(kv, Put(b"w/before", b""))
        await eventually(lambda: len(follower.told) == 1, WITHIN_S, "the first is told")
        serving = kv._members.reads.lines[0].endpoint
        hung = cluster.endpoints.index(serving)
        cluster.signal(hung, signal.SIGSTOP)
        try:

            async def written() -> bool:
                return isinstance(
                    await kv.txn([Absent(b"w/after")], [Put(b"w/after", b"")]), Ok | Failed
                )

            await eventually(written, WITHIN_S, "a write succeeds")
            await eventually(lambda: len(follower.told) == 2, WITHIN_S, "the second is told")
        finally:
            cluster.signal(hung, signal.SIGCONT)
    await cluster.healthy()


async def test_a_quiet_range_of_a_busy_store_is_told_how_far_it_has_come(etcd: Etcd) -> None:
    """Else a cursor would be compacted away though nothing has changed."""
    async with opened(*etcd.endpoints, silence_s=0.2) as kv, followed(kv) as follower:
        revision = await commit(kv, Put(b"elsewhere", b""))
        await eventually(lambda: follower.after >= revision, WITHIN_S, "the cursor moves")
        last = await commit(kv, Put(b"w/1", b""))
        await eventually(lambda: follower.after >= last, WITHIN_S, "the next write is told")
        assert [entry.key for entry in follower.told] == [b"w/1"]
        assert follower.told[0].modified == last


async def test_a_look_passes_nothing_that_is_new(etcd: Etcd) -> None:
    """A cursor goes on by a look at the keys if none of them, on no page, is newer."""
    async with opened(*etcd.endpoints) as kv:
        for part in range(12):
            await commit(kv, *(Put(b"w/%05d" % (part * 100 + n), b"") for n in range(100)))
        before = await commit(kv, Put(b"w/00500", b""))
        elsewhere = await commit(kv, Put(b"elsewhere", b""))
        look = partial(kv._watch._look, prefix(b"w/"), few=False)
        assert await look(after=before) == [Changes((), elsewhere)]
        assert await look(after=before - 1) == []
        last = await commit(kv, Put(b"w/01199", b""))
        assert await look(after=elsewhere) == []
        assert await look(after=last) == []


async def test_a_long_history_is_told_in_whole_revisions(etcd: Etcd) -> None:
    """What etcd sends in fragments, 2 MiB at a time, comes together again."""
    async with opened(*etcd.endpoints) as kv:
        start = (await kv.read([])).revision
        revisions = [
            await commit(kv, *(Put(b"w/%d/%d" % (n, part), bytes(90_000)) for part in range(10)))
            for n in range(8)
        ]
        told: dict[int, int] = {}
        async with following(kv, prefix(b"w/"), start, deadline_s=60) as stream:
            while len(told) < 8:
                for entry in await next_entries(stream):
                    told[entry.modified] = told.get(entry.modified, 0) + 1
    assert told == dict.fromkeys(revisions, 10)


async def test_a_long_range_is_read_at_one_moment(etcd: Etcd) -> None:
    """Pages of one read are of one revision, whatever is written between them."""
    async with opened(*etcd.endpoints) as kv:
        for part in range(25):
            await commit(kv, *(Put(b"w/%05d" % (part * 100 + n), b"0") for n in range(100)))
        stop = asyncio.Event()

        async def write() -> None:
            number = 0
            while not stop.is_set():
                number += 1
                value = b"%d" % number
                await commit(kv, Put(b"w/00000", value), Put(b"w/02499", value))

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            for _ in range(10):
                snapshot = await kv.read([prefix(b"w/"), prefix(b"w/", 1500), only(b"w/02499")])
                whole, some, (last,) = snapshot.ranges
                assert (len(whole), len(some)) == (2500, 1500)
                assert whole[0].value == whole[-1].value == last.value
                assert some == whole[:1500]
            stop.set()
