"""The threads of the SQLite KV: one writes, a few read, one watches while somebody follows.

sqlite3 blocks, so nothing of it runs on the event loop.  Each call is one hop to a thread and one
back; what several threads answer meanwhile comes back in one wake-up of the loop.  All queues are
bounded.  No thread dies of an error: it answers with it and opens its connection anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

from node.errors import MetadataUnavailable
from node.kv import Ok, Unknown
from node.kv_sqlite_file import LOCK_S, SameFile, Turnstile, busy, connect, retry_pause
from node.kv_sqlite_rows import Batch

WAITING: Final = 10_000
# What one commit takes in at the most, for the sake of another process's writer.
GROUP: Final = 64
GROUP_S: Final = 0.005
IDLE_S: Final = 0.5
POLL_S: Final = 0.01
# SQLite's own checkpoint starts at 4 MiB and gives way to readers; beyond this it no longer does.
WAL_BYTES: Final = 16 << 20
CHECKPOINT_S: Final = 0.2
# Keys are digests, so a commit touches pages all over: 8 MiB of them make it a third faster.
CACHE: Final = "PRAGMA cache_size = -8192"


class Job(NamedTuple):
    """What a thread shall do with its connection or batch, and who waits for the answer."""

    work: Callable[[Any], object]
    future: asyncio.Future[Any] | None = None

    @property
    def dropped(self) -> bool:
        """Nobody waits any longer, so it need not be begun."""
        return self.future is not None and self.future.cancelled()


class Replies:
    """Brings the threads' answers to the event loop, many at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._answers: deque[tuple[asyncio.Future[Any], object]] = deque()
        self._called = False

    def put(self, job: Job, answer: object) -> None:
        """Settle the job's future; an exception is raised there. From any thread."""
        if job.future is not None:
            self._answers.append((job.future, answer))
            # Settling clears the flag before it looks, so an answer put behind a set flag is seen.
            if not self._called:
                self._called = True
                self.call(self._settle)

    def call(self, action: Callable[[], None]) -> None:
        """Run the action on the loop soon. From any thread."""
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:
            # The loop is closed: nobody is left who waits.
            return

    def _settle(self) -> None:
        self._called = False
        while self._answers:
            future, answer = self._answers.popleft()
            if future.done():  # its caller was cancelled meanwhile
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def _refusal(error: Exception) -> Exception:
    """What the caller sees: weather in the port's words, a bug as it is."""
    if isinstance(error, sqlite3.Error):
        refused = MetadataUnavailable(str(error))
        refused.__cause__ = error
        return refused
    return error


class _Worker:
    """A queue of jobs and the threads that take from it until it is closed."""

    def __init__(self, name: str, threads: int) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"kv-{name}", daemon=True)
            for _ in range(threads)
        ]

    def start(self) -> None:
        """Begin to take jobs."""
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            MetadataUnavailable: Too many wait already.
        """
        if self._queue.qsize() >= WAITING:
            raise MetadataUnavailable("too many requests wait for it")
        self._queue.put(job)

    def close(self) -> None:
        """Do what is queued, then stop. Blocks."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        raise NotImplementedError


class Readers(_Worker):
    """Threads that each answer one read at a time on a connection of their own."""

    def __init__(self, path: Path, replies: Replies, threads: int) -> None:
        super().__init__("reader", threads)
        self._path = path
        self._replies = replies

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        while (job := self._queue.get()) is not None:
            if job.dropped:
                continue
            try:
                if connection is None:
                    connection = connect(self._path, query_only=True)
                answer = job.work(connection)
            # A reader that died would leave its callers waiting for ever: they get the error.
            except Exception as error:  # noqa: BLE001
                if isinstance(error, sqlite3.Error) and connection is not None:
                    connection.close()
                    connection = None
                answer = _refusal(error)
            self._replies.put(job, answer)
        if connection is not None:
            connection.close()


class Writer(_Worker):
    """The one thread that writes: many transactions a commit, answered once it stands."""

    def __init__(
        self, path: Path, clock: Callable[[], float], replies: Replies, news: Callable[[], None]
    ) -> None:
        super().__init__("writer", 1)
        self._path = path
        self._wal = path.with_name(path.name + "-wal")
        self._clock = clock
        self._replies = replies
        self._news = news
        self._file = SameFile(path)
        self._turnstile = Turnstile(path.with_name(path.name + "-turn"))
        self._connection: sqlite3.Connection | None = None
        self._closing = False
        self._logged = False
        self._checkpoint_after = 0.0

    def _run(self) -> None:
        while not self._closing:
            try:
                job = self._queue.get(timeout=IDLE_S)
            except Empty:
                self._idle()
                continue
            if job is None:
                break
            self._commit(job)
        self._disconnect()
        self._turnstile.close()

    def _commit(self, first: Job) -> None:
        """Commit what waits as one group; every one in it is answered."""
        group: list[tuple[Job, object]] = []
        try:
            batch = self._begin()
        except Exception as error:  # noqa: BLE001 - the writer lives on, whatever it was
            # Who queued up behind would only wait as long again.
            self._abandon(error, [first, *self._drain()])
            return
        try:
            self._fill(batch, first, group)
            batch.seal()
        # As with a reader: the writer lives on, and whoever waits hears of it.
        except Exception as error:  # noqa: BLE001
            self._abandon(error, [job for job, _ in group])
            return
        try:
            self._connected().execute("COMMIT")
        except sqlite3.Error as error:
            if busy(error):
                self._abandon(error, [job for job, _ in group])
            else:
                self._doubt(error, group)
            return
        for job, answer in group:
            self._replies.put(job, answer)
        if batch.changed:
            self._replies.call(self._news)
        self._logged = True
        if self._log_is_long():
            self._checkpoint()

    def _begin(self) -> Batch:
        """Take the write lock, waiting 5 s at the most; a file that was moved takes no writes."""
        self._file.require()
        connection = self._connected()
        deadline = time.monotonic() + LOCK_S
        with self._turnstile.passing():
            while True:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    break
                except sqlite3.OperationalError as error:
                    if not busy(error) or time.monotonic() >= deadline:
                        raise
                retry_pause()
        return Batch(connection, self._clock())

    def _fill(self, batch: Batch, first: Job, group: list[tuple[Job, object]]) -> None:
        """Run jobs until none waits, or there are enough, or it takes too long."""
        deadline = time.monotonic() + GROUP_S
        job: Job | None = first
        while job is not None:
            if not job.dropped:
                group.append((job, None))
                try:
                    answer = job.work(batch)
                except MetadataUnavailable as refused:
                    answer = refused
                group[-1] = (job, answer)
            if len(group) == GROUP or time.monotonic() >= deadline:
                return
            job = self._next()

    def _next(self) -> Job | None:
        try:
            job = self._queue.get_nowait()
        except Empty:
            return None
        self._closing = self._closing or job is None
        return job

    def _drain(self) -> list[Job]:
        jobs = []
        while (job := self._next()) is not None:
            jobs.append(job)
        return jobs

    def _abandon(self, error: Exception, jobs: list[Job]) -> None:
        """Nothing of it is applied, and nothing will be."""
        self._disconnect()
        for job in jobs:
            self._replies.put(job, _refusal(error))

    def _doubt(self, error: sqlite3.Error, group: list[tuple[Job, object]]) -> None:
        """The commit failed half-way: its frames may be in the log, to be found after a crash.

        Who wrote nothing, or was told of what only this group wrote, is refused instead.
        """
        self._disconnect()
        for job, answer in group:
            if isinstance(answer, Ok):
                self._replies.put(job, Unknown(str(error)))
            else:
                self._replies.put(job, _refusal(error))

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._file.require()  # or SQLite would make one
            # Opening waits (another process may be closing, and hold everything); from then on the
            # retries are our own.
            self._connection = connect(self._path)
            self._connection.execute(CACHE)
            self._connection.execute("PRAGMA busy_timeout = 0")
        return self._connection

    def _disconnect(self) -> None:
        """Let go of the connection, to open another when needed; what it had begun is undone."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _idle(self) -> None:
        """Nobody writes: let leases expire, and give the log's space back."""
        try:
            due = self._connected().execute(
                "SELECT 1 FROM leases WHERE deadline <= ? LIMIT 1", (self._clock(),)
            )
            if due.fetchall():
                self._commit(Job(lambda _: None))
        except (sqlite3.Error, MetadataUnavailable):
            self._disconnect()
        if self._logged:
            self._checkpoint()

    def _log_is_long(self) -> bool:
        try:
            size = self._wal.stat().st_size
        except OSError:
            return False
        return size > WAL_BYTES and time.monotonic() >= self._checkpoint_after

    def _checkpoint(self) -> None:
        """Empty the log, waiting a little for readers: they hold no transaction for long."""
        try:
            connection = self._connected()
            connection.execute(f"PRAGMA busy_timeout = {CHECKPOINT_S * 1000:.0f}")
            ((blocked, *_),) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.execute("PRAGMA busy_timeout = 0")
        except (sqlite3.Error, MetadataUnavailable):
            self._disconnect()
            blocked = 1
        self._logged = bool(blocked)
        self._checkpoint_after = time.monotonic() + (1.0 if blocked else 0.0)


class Watcher:
    """Tells of commits by any process, looking every 10 ms while somebody follows."""

    def __init__(self, path: Path, replies: Replies, news: Callable[[], None]) -> None:
        self._path = path
        self._replies = replies
        self._news = news
        self._followers = 0
        self._followed = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="kv-watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def follow(self) -> None:
        """One more follows. On the loop."""
        self._followers += 1
        self._followed.set()

    def unfollow(self) -> None:
        """One less follows. On the loop."""
        self._followers -= 1
        if not self._followers and not self._closing:
            self._followed.clear()

    def close(self) -> None:
        """Stop. Blocks."""
        self._closing = True
        self._followed.set()
        self._thread.join()

    def _run(self) -> None:
        connection: sqlite3.Connection | None = None
        seen = -1
        while self._followed.wait() and not self._closing:
            try:
                if connection is None:
                    connection = connect(self._path, query_only=True)
                ((version,),) = connection.execute("PRAGMA data_version").fetchall()
            except sqlite3.Error:
                if connection is not None:
                    connection.close()
                connection, version = None, -1
            if version != seen or connection is None:
                seen = version
                self._replies.call(self._news)
            time.sleep(POLL_S)
        if connection is not None:
            connection.close()
