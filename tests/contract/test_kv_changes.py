"""What every KV promises of following a range, held against the fake and against SQLite."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from node.errors import MetadataUnavailable
from node.kv import KV, Changes, Compacted, Delete, Entry, Put, prefix
from tests.kv_calls import commit, following, must_get, next_entries, put

# Far below the ten minutes after which all is scanned anew in any case.
WAKES_S: Final = 20.0


async def test_what_is_there_is_told_first(kv: KV) -> None:
    """From a revision before all, each key's latest value comes, in revision order."""
    start = (await kv.read([])).revision
    await commit(kv, Put(b"T/b", b"1"))
    await commit(kv, Put(b"T/a", b"1"), Put(b"U/other", b""))
    await commit(kv, Put(b"T/b", b"2"))
    async with following(kv, prefix(b"T/"), start) as stream:
        entries = await next_entries(stream)
    assert [(entry.key, entry.value) for entry in entries] == [(b"T/a", b"1"), (b"T/b", b"2")]
    assert list(entries) == [await must_get(kv, b"T/a"), await must_get(kv, b"T/b")]


async def test_following_goes_on_after_the_cursor(kv: KV) -> None:
    """What the follower has is not told again, and each batch's revision is the next cursor."""
    first = await commit(kv, Put(b"T/a", b"1"))
    second = await commit(kv, Put(b"T/b", b"1"))
    async with following(kv, prefix(b"T/"), first) as stream:
        batch = await anext(stream)
    assert [entry.key for entry in batch.entries] == [b"T/b"]
    assert batch.revision >= second
    third = await commit(kv, Put(b"T/c", b"1"))
    async with following(kv, prefix(b"T/"), batch.revision) as stream:
        assert [(e.key, e.modified) for e in await next_entries(stream)] == [(b"T/c", third)]


@pytest.mark.parametrize("through", ["kv", "another"])
async def test_a_follower_wakes_up(kv: KV, another: KV, through: str) -> None:
    """A write by anybody reaches who waits, long before anything is scanned anew."""
    start = (await kv.read([])).revision
    async with following(kv, prefix(b"T/"), start) as stream, asyncio.TaskGroup() as tasks:
        for number in range(5):
            waiting = tasks.create_task(next_entries(stream))
            await asyncio.sleep(0)
            await commit(kv if through == "kv" else another, Put(b"T/a", b"%d" % number))
            async with asyncio.timeout(WAKES_S):
                (entry,) = await waiting
            assert entry.value == b"%d" % number


async def test_many_follow_at_once(kv: KV) -> None:
    """Each follower hears of each key, whatever the others do."""
    start = (await kv.read([])).revision

    async def hear(count: int) -> None:
        heard: dict[bytes, Entry] = {}
        async with following(kv, prefix(b"T/"), start) as stream:
            while len(heard) < count:
                heard |= {entry.key: entry for entry in await next_entries(stream)}

    async with asyncio.TaskGroup() as tasks:
        for _ in range(5):
            tasks.create_task(hear(20))
        for number in range(20):
            await commit(kv, Put(b"T/%d" % number, b""))


async def test_deletions_are_not_told(kv: KV) -> None:
    """A key that is gone is not among the changes; one made anew is."""
    start = await put(kv, a1=b"", a2=b"")
    await commit(kv, Delete(b"a1"))
    last = await commit(kv, Delete(b"a2"), Put(b"a3", b""))
    async with following(kv, prefix(b"a"), start) as stream:
        assert [(e.key, e.modified) for e in await next_entries(stream)] == [(b"a3", last)]


async def test_a_batch_is_bounded_and_never_splits_a_revision(kv: KV) -> None:
    """Some 500 entries at most, in revision order, each revision whole in one batch."""
    start = (await kv.read([])).revision
    for number in range(12):
        await commit(kv, *(Put(b"T/%02d/%03d" % (99 - number, part), b"") for part in range(90)))
    batches: list[Changes] = []
    async with following(kv, prefix(b"T/"), start) as stream:
        while sum(len(batch.entries) for batch in batches) < 12 * 90:
            batches.append(await anext(stream))
    revisions = [{entry.modified for entry in batch.entries} for batch in batches]
    assert sum(map(len, revisions)) == 12
    told = [entry.modified for batch in batches for entry in batch.entries]
    assert told == sorted(told)
    for batch, seen in zip(batches, revisions, strict=True):
        assert len(batch.entries) <= 600
        assert not seen or max(seen) <= batch.revision
    assert [batch.revision for batch in batches] == sorted(batch.revision for batch in batches)


async def test_a_key_that_moves_on_is_told_once_more(kv: KV) -> None:
    """A reader slower than the writer loses nothing but values in between."""
    start = (await kv.read([])).revision
    await commit(kv, *(Put(b"T/%03d" % number, b"old") for number in range(100)))
    latest: dict[bytes, bytes] = {}
    async with following(kv, prefix(b"T/"), start) as stream:
        await anext(stream)
        for number in range(100):
            await commit(kv, Put(b"T/%03d" % (number % 10), b"new%d" % number))
        while latest.get(b"T/009") != b"new99":
            latest |= {entry.key: entry.value for entry in await next_entries(stream)}
    assert latest == {b"T/%03d" % number: b"new9%d" % number for number in range(10)}


async def test_how_far_the_store_is_is_told_at_once(kv: KV) -> None:
    """Who begins to follow need not wait for a change of its own range to hear of others."""
    after = (await kv.read([])).revision
    async with asyncio.timeout(WAKES_S):
        for number in range(20):
            now = await commit(kv, Put(b"U/other", b"%d" % number))
            async with following(kv, prefix(b"T/"), after) as stream:
                assert (await anext(stream)).revision >= now


async def test_a_cursor_from_the_future_is_refused(kv: KV) -> None:
    """The store was restored from before the cursor, so its changes can't be told."""
    revision = await put(kv, a=b"")
    with pytest.raises(Compacted):
        async with following(kv, prefix(b"a"), revision + 1_000) as stream:
            await anext(stream)


async def test_closing_ends_the_followers(kv: KV) -> None:
    """Who waits for changes hears that there will be none, and so does who asks later."""
    start = (await kv.read([])).revision
    await put(kv, a=b"")
    caught_up = asyncio.Semaphore(0)

    async def follow() -> None:
        async with following(kv, prefix(b"a"), start) as stream:
            await next_entries(stream)
            caught_up.release()
            with pytest.raises(MetadataUnavailable):
                await next_entries(stream)

    async with asyncio.TaskGroup() as tasks:
        waiting = [tasks.create_task(follow()) for _ in range(3)]
        for _ in waiting:
            await caught_up.acquire()
        await kv.read([prefix(b"a")])  # behind the last look of the followers
        await kv.close()
        async with asyncio.timeout(WAKES_S):
            await asyncio.wait(waiting)
    for call in (kv.read([]), kv.txn([], []), kv.grant(5)):
        with pytest.raises(MetadataUnavailable):
            await call
    await kv.close()
