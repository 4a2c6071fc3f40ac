"""What the SQLite KV promises beyond the port: its file, its log, and what befalls it."""

from __future__ import annotations

import asyncio
import errno
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from node import kv_sqlite_file, kv_sqlite_threads
from node.errors import MetadataUnavailable
from node.kv import Absent, Exists, Ok, Put, Range, Unknown, prefix
from node.kv_sqlite import SqliteKV, StorageUnsuitable
from tests.kv_calls import commit, following, get, keys, must_get, next_entries
from tests.waiting import eventually


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "kv.db"


@pytest.fixture
async def kv(path: Path) -> AsyncIterator[SqliteKV]:
    """An empty store."""
    store = await SqliteKV.open(path)
    yield store
    await store.close()


class Unlucky(sqlite3.Connection):
    """A connection whose COMMIT fails while `error` is set, before or after it was done."""

    error: sqlite3.OperationalError | None = None
    applied = False

    def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
        """Do it, or not."""
        if sql != "COMMIT" or Unlucky.error is None:
            return super().execute(sql, *parameters)  # type: ignore[arg-type]  # passed on as is
        if Unlucky.applied:
            super().execute(sql)
        raise Unlucky.error


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> type[Unlucky]:
    """Make connections opened from now on fail when told to."""
    connect = sqlite3.connect

    def unlucky_connect(path: Path, **options: float | None) -> sqlite3.Connection:
        return connect(path, factory=Unlucky, **options)  # type: ignore[call-overload,no-any-return]  # passed on as is

    monkeypatch.setattr(sqlite3, "connect", unlucky_connect)
    monkeypatch.setattr(Unlucky, "error", None)
    monkeypatch.setattr(Unlucky, "applied", False)
    return Unlucky


def failure(code: int) -> sqlite3.OperationalError:
    """What sqlite3 raises for a result code."""
    error = sqlite3.OperationalError("made up by the test")
    error.sqlite_errorcode = code
    return error


# --- the file


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs"])
async def test_a_network_file_system_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """SQLite's locks and shared memory do not reach another host, so it is not even begun."""
    mounts = path.with_name("mounts")
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nserver:/b {path.parent} {kind} rw 0 0\n"
        f"tmpfs {path.parent}/below tmpfs rw 0 0\n"
    )
    monkeypatch.setattr(kv_sqlite_file, "MOUNTS", mounts)
    with pytest.raises(StorageUnsuitable, match=kind):
        await SqliteKV.open(path)
    assert [file.name for file in await asyncio.to_thread(list, path.parent.iterdir())] == [
        "mounts"
    ]


async def test_the_file_of_another_program_is_refused(path: Path) -> None:
    """Nothing is written to a database, or another file, that is not ours."""
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE theirs (a)")
    other.close()
    with pytest.raises(StorageUnsuitable, match="another program"):
        await SqliteKV.open(path)
    text = path.with_name("text")
    text.write_text("no database at all, but long enough to look like one" * 100)
    with pytest.raises(StorageUnsuitable, match="no SQLite file"):
        await SqliteKV.open(text)


async def test_a_later_schema_is_refused(kv: SqliteKV, path: Path) -> None:
    """After a downgrade the file is left as it is."""
    await kv.close()
    with sqlite3.connect(path) as later:
        later.execute("PRAGMA user_version = 2")
    later.close()
    with pytest.raises(StorageUnsuitable, match="later version"):
        await SqliteKV.open(path)


async def test_a_missing_folder_is_weather(tmp_path: Path) -> None:
    """A disk that is not mounted yet may come."""
    with pytest.raises(MetadataUnavailable):
        await SqliteKV.open(tmp_path / "absent" / "kv.db")


async def test_all_is_there_after_opening_again(kv: SqliteKV, path: Path) -> None:
    """Keys, values and the revision outlive the process, and no thread does."""
    revision = await commit(kv, Put(b"a", b"1"))
    await kv.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("kv-")]
    again = await SqliteKV.open(path)
    assert (await must_get(again, b"a")).modified == revision
    assert await commit(again, Put(b"b", b"")) == revision + 1
    await again.close()


async def test_many_open_a_new_file_at_once(path: Path) -> None:
    """Two processes that start together on an empty folder both get the one store."""
    stores = await asyncio.gather(*(SqliteKV.open(path) for _ in range(6)))
    for number, store in enumerate(stores):
        await commit(store, Put(b"%d" % number, b""), guards=[Absent(b"%d" % number)])
    assert len(await keys(stores[0], Range(b"0", b"9"))) == 6
    await asyncio.gather(*(store.close() for store in stores))


async def test_after_a_reboot_leases_have_their_whole_time_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The boot clock starts anew, so a deadline from before it says nothing."""
    boot = path.with_name("boot_id")
    monkeypatch.setattr(kv_sqlite_file, "BOOT_ID", boot)
    boot.write_text("first\n")
    before = await SqliteKV.open(path, clock=lambda: 90_000.0)
    lease = await before.grant(10)
    await commit(before, Put(b"L/a", b"", lease))
    await before.close()

    boot.write_text("second\n")
    now = 5.0
    after = await SqliteKV.open(path, clock=lambda: now)
    now = 14.0
    assert await commit(after, Put(b"b", b"")) > 0
    assert await get(after, b"L/a") is not None
    now = 15.5
    await commit(after, Put(b"b", b""))
    assert await get(after, b"L/a") is None
    await after.close()


async def test_the_log_stays_small(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though SQLite's own checkpoints never run, the log is used again; idle, it is empty."""
    connect = kv_sqlite_file.connect

    def starved(path: Path, *, query_only: bool = False) -> sqlite3.Connection:
        connection = connect(path, query_only=query_only)
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        return connection

    monkeypatch.setattr(kv_sqlite_threads, "connect", starved)
    monkeypatch.setattr(kv_sqlite_threads, "WAL_BYTES", 5 << 20)
    kv = await SqliteKV.open(path)
    log = path.with_name(path.name + "-wal")
    lengths: list[int] = []
    rounds = 40

    async def read() -> None:
        while len(lengths) < rounds:
            await kv.read([prefix(b"n/", 50)])

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(read())
        while len(lengths) < rounds:
            puts = [[Put(b"n/%d/%d" % (len(lengths), n), b"v" * 8_000)] for n in range(64)]
            await asyncio.gather(*(kv.txn([], one) for one in puts))
            lengths.append(log.stat().st_size)
    assert max(lengths) < 12 << 20
    await eventually(lambda: log.stat().st_size == 0, 60, "the log is empty")
    await kv.close()


async def test_a_follower_hears_of_its_own_process_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not wait for the next look at the file."""
    kv = await SqliteKV.open(path)
    start = await commit(kv, Put(b"a", b""))
    # Then nobody looks at the file.
    monkeypatch.setattr(kv_sqlite_threads.Watcher, "follow", lambda _: None)
    async with (
        following(kv, prefix(b"a"), start, deadline_s=60) as stream,
        asyncio.TaskGroup() as tasks,
    ):
        for number in range(5):
            waiting = tasks.create_task(next_entries(stream))
            await kv.read([prefix(b"a")])
            await commit(kv, Put(b"a", b"%d" % number))
            assert [entry.value for entry in await waiting] == [b"%d" % number]
    await kv.close()


# --- what befalls it


async def test_a_cancelled_caller_leaves_the_others_alone(kv: SqliteKV) -> None:
    """Whoever gives up, before or after the commit, breaks nothing for those beside it."""
    for delay in (0, 1, 2, 5):
        async with asyncio.TaskGroup() as tasks:
            calls = [tasks.create_task(kv.txn([], [Put(b"%d" % n, b"")])) for n in range(40)]
            for _ in range(delay):
                await asyncio.sleep(0)
            for call in calls[::2]:
                call.cancel()
        assert all(isinstance(call.result(), Ok) for call in calls[1::2])
    reading = asyncio.gather(*(kv.read([prefix(b"1")]) for _ in range(20)))
    await asyncio.sleep(0)
    reading.cancel()
    with suppress(asyncio.CancelledError):
        await reading
    assert await get(kv, b"1") is not None


async def test_a_lock_that_is_not_let_go_is_weather(
    kv: SqliteKV, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When another process keeps the lock, writes are refused in time, and reads go on."""
    monkeypatch.setattr(kv_sqlite_threads, "LOCK_S", 0.3)
    await commit(kv, Put(b"a", b""))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    calls = [kv.txn([], [Put(b"b", b"")]) for _ in range(100)]
    async with asyncio.timeout(15):  # and not one after the other
        refused = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(answer) for answer in refused} == {MetadataUnavailable}
    assert await get(kv, b"a") is not None
    holder.execute("ROLLBACK")
    holder.close()
    await commit(kv, Put(b"c", b""), guards=[Absent(b"b")])


async def test_a_queue_that_is_full_refuses(
    kv: SqliteKV, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits is bounded: one more is refused at once, and those that wait are served."""
    monkeypatch.setattr(kv_sqlite_threads, "WAITING", 20)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    calls = asyncio.gather(
        *(kv.txn([], [Put(b"%d" % n, b"")]) for n in range(40)), return_exceptions=True
    )
    await asyncio.sleep(0)
    holder.execute("ROLLBACK")
    holder.close()
    answers = await calls
    refused = [answer for answer in answers if isinstance(answer, MetadataUnavailable)]
    # The writer may have taken the first before the last came.
    assert len(refused) in {19, 20}
    assert sum(isinstance(answer, Ok) for answer in answers) == 40 - len(refused)


@pytest.mark.parametrize("applied", [True, False])
async def test_a_commit_that_fails_half_way_is_unknown(
    unlucky: type[Unlucky], path: Path, applied: bool
) -> None:
    """After an I/O error at COMMIT nobody is told more than is known, and the store goes on."""
    kv = await SqliteKV.open(path)
    await commit(kv, Put(b"there", b""))
    unlucky.applied = applied
    unlucky.error = failure(sqlite3.SQLITE_IOERR)
    written, failed, granted = await asyncio.gather(
        kv.txn([], [Put(b"a", b"")]),
        kv.txn([Absent(b"there")], [Put(b"b", b"")]),
        kv.grant(5),
        return_exceptions=True,
    )
    assert isinstance(written, Unknown)
    assert isinstance(failed, MetadataUnavailable)
    assert isinstance(granted, MetadataUnavailable)
    unlucky.error = None
    assert (await get(kv, b"a") is not None) is applied
    await commit(kv, Put(b"c", b""), guards=[Exists(b"a") if applied else Absent(b"a")])
    await kv.close()


async def test_a_commit_that_finds_the_file_busy_is_refused(
    unlucky: type[Unlucky], path: Path
) -> None:
    """BUSY at COMMIT is not applied, and will not be."""
    kv = await SqliteKV.open(path)
    unlucky.error = failure(sqlite3.SQLITE_BUSY)
    with pytest.raises(MetadataUnavailable):
        await kv.txn([], [Put(b"a", b"")])
    unlucky.error = None
    await commit(kv, Put(b"b", b""), guards=[Absent(b"a")])
    await kv.close()


async def test_a_full_file_refuses_and_recovers(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without space a write is refused and leaves nothing; with space it goes on."""
    pages = 40
    connect = kv_sqlite_file.connect

    def confined(path: Path, *, query_only: bool = False) -> sqlite3.Connection:
        connection = connect(path, query_only=query_only)
        connection.execute(f"PRAGMA max_page_count = {pages}")
        return connection

    monkeypatch.setattr(kv_sqlite_threads, "connect", confined)
    kv = await SqliteKV.open(path)
    written = 0

    async def fill() -> None:
        nonlocal written
        while True:
            await commit(kv, Put(b"n/%d" % written, b"v" * 3_000), Put(b"last", b"%d" % written))
            written += 1

    with pytest.raises(MetadataUnavailable, match="full"):
        await fill()
    assert written > 10
    assert int((await must_get(kv, b"last")).value) == written - 1
    with pytest.raises(MetadataUnavailable):
        await commit(kv, Put(b"big", b"v" * 100_000))
    pages = 4_000
    await commit(kv, Put(b"n/%d" % written, b""), guards=[Absent(b"n/%d" % written)])
    await kv.close()


async def test_a_turnstile_that_does_not_work_stops_no_writer(
    kv: SqliteKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has no such locks, writers go without the courtesy."""

    def no_locks(_file: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    for value in (b"1", b"2"):
        async with asyncio.timeout(30):
            assert isinstance(await kv.txn([], [Put(b"k", value)]), Ok)


async def test_the_writer_survives_whatever_fails_before_a_commit(
    kv: SqliteKV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits hears of it, and the next write goes well."""

    def broken(_self: kv_sqlite_threads.Writer) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(kv_sqlite_threads.Writer, "_begin", broken)
        async with asyncio.timeout(30):
            with pytest.raises(MemoryError):
                await kv.txn([], [Put(b"k", b"1")])
    async with asyncio.timeout(30):
        assert isinstance(await kv.txn([], [Put(b"k", b"2")]), Ok)


@pytest.mark.parametrize("instead", [False, True], ids=["nothing instead", "a copy instead"])
async def test_a_file_that_was_moved_takes_no_writes(
    kv: SqliteKV, path: Path, tmp_path: Path, *, instead: bool
) -> None:
    """What would be lost is refused, and no file is made; back in its place it goes on."""
    assert isinstance(await kv.txn([], [Put(b"k", b"1")]), Ok)
    moved = tmp_path / "moved.db"
    await asyncio.to_thread(path.rename, moved)
    if instead:
        await asyncio.to_thread(shutil.copy, moved, path)
    for _ in range(2):
        with pytest.raises(MetadataUnavailable, match=r"its file|another file"):
            await kv.txn([], [Put(b"k", b"2")])
    assert await asyncio.to_thread(path.exists) is instead
    await asyncio.to_thread(moved.rename, path)
    assert isinstance(await kv.txn([], [Put(b"k", b"3")]), Ok)
