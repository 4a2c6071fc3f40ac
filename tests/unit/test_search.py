"""A search sees what was acknowledged before it, on every KV and whatever that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from node import keys
from node.errors import MetadataUnavailable
from node.kv import KV, Changes, Compacted, Delete, Put, Range, Snapshot
from node.kv_sqlite import SqliteKV
from node.records import RepositoryRecord
from node.reference import Repository
from node.search import Search
from node.wire import codec
from tests.fake_kv import MemoryKV
from tests.kv_calls import commit


@pytest.fixture(params=["memory", "sqlite"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KV]:
    """An empty store of each kind that needs no other process."""
    made: KV = (
        MemoryKV() if request.param == "memory" else await SqliteKV.open(tmp_path / "metadata.db")
    )
    yield made
    await made.close()


async def put(kv: KV, *names: str, title: str = "") -> None:
    """Write the catalog's keys of these repositories, in one transaction."""
    value = codec.encode_repository(RepositoryRecord(title))
    await commit(kv, *(Put(keys.repository(Repository(name)), value) for name in names))


async def drop(kv: KV, *names: str) -> None:
    """Take repositories out of the catalog, as `node.clearing.forget` does."""
    gone = [Repository(name) for name in names]
    await commit(
        kv,
        *(Delete(keys.repository(repository)) for repository in gone),
        *(Put(keys.forgotten(repository), b"") for repository in gone),
    )


async def names(search: Search, term: str = "") -> list[str]:
    """All that a term finds, on one page."""
    found = await search.find(term, 0, 10_000)
    assert found.total == len(found.rows)
    return [row.name for row in found.rows]


async def test_a_search_sees_what_was_written_before_it(kv: KV) -> None:
    """New repositories, new titles, ones that went and ones that came back: at once."""
    search = Search(kv, kv, page=3)
    assert await names(search) == []
    await put(kv, *"abcdefg")
    assert await names(search) == [*"abcdefg"]
    await drop(kv, "b", "c")
    assert await names(search) == [*"adefg"]
    await put(kv, "c", title="Cheese")
    assert await names(search) == [*"acdefg"]
    assert await names(search, "cheese") == ["c"]
    await drop(kv, "c")
    await drop(kv, "a")
    await put(kv, "a", "z")
    assert await names(search) == [*"adefgz"]
    assert await names(Search(kv, kv, page=3)) == [*"adefgz"]


async def test_other_writes_do_not_hold_a_search_up(kv: KV) -> None:
    """Where only other keys were written, a search need not wait to hear so."""
    search = Search(kv, kv)
    await put(kv, "a")
    await names(search)
    async with asyncio.timeout(30):
        for number in range(60):
            await commit(kv, Put(b"other", b"%d" % number))
            assert await names(search) == ["a"]


async def test_many_changes_between_two_searches(kv: KV) -> None:
    """More than one batch of changes is taken until all are."""
    search = Search(kv, kv)
    assert await names(search) == []
    many = [f"r{n:04}" for n in range(1200)]
    for start in range(0, len(many), 100):
        await put(kv, *many[start : start + 100])
    assert await names(search) == many
    for start in range(5, len(many), 60):
        await drop(kv, *many[start : start + 60])
    assert await names(search) == many[:5]


async def test_a_restored_store_is_read_anew() -> None:
    """What the store has lost is not found any more."""
    kv = MemoryKV()
    search = Search(kv, kv)
    await put(kv, "old")
    saved = kv.copy()
    await put(kv, "new")
    assert await names(search) == ["new", "old"]
    kv.restore(saved)
    assert await names(search) == ["old"]


class Meddled:
    """A KV whose changes are lost for a while, and in whose reads a test can put anything."""

    def __init__(self, kv: MemoryKV) -> None:
        self.kv = kv
        self.compacted = False
        self.loads = 0

    async def read(self, ranges: Sequence[Range]) -> Snapshot:
        """See `node.kv.KV`."""
        snapshot = await self.kv.read(ranges)
        if ranges[0].start >= keys.CATALOG.start and ranges[0].start < keys.CATALOG.end:
            self.loads += 1
            if self.loads == 1:
                await drop(self.kv, "a")
                await put(self.kv, "aa", "d")
        return snapshot

    async def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """See `node.kv.KV`."""
        if self.compacted:
            raise Compacted
        async for changes in self.kv.changes(within, after):
            yield changes


async def test_what_changes_while_the_catalog_is_read_is_not_missed() -> None:
    """Following begins where the first page was read."""
    kv = MemoryKV()
    await put(kv, "a", "b", "c")
    meddled = Meddled(kv)
    search = Search(meddled, meddled, page=2)  # type: ignore[arg-type]  # it asks for no more
    await names(search)
    assert await names(search) == ["aa", "b", "c", "d"]


async def test_compaction_makes_it_read_anew() -> None:
    """Changes that can't be told any more are no loss."""
    kv = MemoryKV()
    meddled = Meddled(kv)
    meddled.loads = 1
    search = Search(meddled, meddled)  # type: ignore[arg-type]  # it asks for no more
    await put(kv, "a", "b")
    assert await names(search) == ["a", "b"]
    await put(kv, "c")
    await commit(kv, Delete(keys.repository(Repository("a"))))
    meddled.compacted = True
    assert await names(search) == ["b", "c"]
    meddled.compacted = False
    await put(kv, "d")
    assert await names(search) == ["b", "c", "d"]


async def test_a_store_that_is_away_fails_the_search_only() -> None:
    """It is refused while the store is away, and the next one goes on from where it was."""
    kv = MemoryKV()
    search = Search(kv, kv)
    await put(kv, "a")
    kv.down = True
    with pytest.raises(MetadataUnavailable):
        await names(search)
    kv.down = False
    assert await names(search) == ["a"]
    kv.down = True
    with pytest.raises(MetadataUnavailable):
        await names(search)
    kv.down = False
    await put(kv, "b")
    assert await names(search) == ["a", "b"]


async def test_searches_at_the_same_time(kv: KV) -> None:
    """Each sees all that was written before it, whoever else searches."""
    search = Search(kv, kv, page=2)
    await put(kv, *"abcde")

    async def check(number: int) -> None:
        await put(kv, f"n{number:02}")
        assert f"n{number:02}" in await names(search, "n")

    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(check(number))
    assert len(await names(search)) == 25
