"""The metadata KV in one SQLite file: the embedded default, shared by the processes of one host.

What node.kv promises, and how: WAL with synchronous=FULL makes an acknowledged commit survive power
loss; one writer thread commits many transactions at a time (node/kv_sqlite_threads.py); a read is
one short read transaction on a thread of its own, never held over an await.  A write that SQLite
could not begin or finish is refused (MetadataUnavailable); one whose commit itself failed is
Unknown.  Leases run on the machine's boot clock; after a reboot each gets its whole time again.

Nothing is ever compacted, so `changes` raises Compacted only where the store is older than the
cursor: it was restored.  Not for network file systems, which are refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from node.errors import MetadataUnavailable
from node.kv import (
    MAX_RANGES,
    Changes,
    Guard,
    Lease,
    Member,
    Op,
    Outcome,
    Range,
    Snapshot,
    check_txn,
)
from node.kv_sqlite_file import StorageUnsuitable, boottime, prepare
from node.kv_sqlite_rows import Batch, changed, read
from node.kv_sqlite_threads import Job, Readers, Replies, Watcher, Writer

__all__ = ["SqliteKV", "StorageUnsuitable", "boottime"]

# Single entries are read by one thread, at twice the pace of two: it stays warm, and no other
# contends with it for the interpreter's lock.  What takes long is read apart and holds up nobody.
LISTERS: Final = 2
# A follower whose range does not change is told how far the store has gone this often.
PROGRESS_S: Final = 1.0

T = TypeVar("T")


class SqliteKV:
    """The port `node.kv.KV` over one SQLite file; belongs to the event loop that opened it."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Use `open`, which also makes the file."""
        self._loop = asyncio.get_running_loop()
        replies = Replies(self._loop)
        self._news = _News()
        self._writer = Writer(path, clock, replies, self._news.ring)
        self._reader = Readers(path, replies, 1)
        self._listers = Readers(path, replies, LISTERS)
        self._watcher = Watcher(path, replies, self._news.ring)
        self._closed = False
        self._threads = (self._writer, self._reader, self._listers, self._watcher)
        for threads in self._threads:
            threads.start()

    @classmethod
    async def open(cls, path: Path, *, clock: Callable[[], float] = boottime) -> SqliteKV:
        """Open the store, making the file (not its folder) if there is none.

        Raises:
            StorageUnsuitable: A network file system, or a file that is not ours.
            MetadataUnavailable: The file can't be opened or written now.
        """
        await asyncio.to_thread(prepare, path, clock())
        try:
            return cls(path, clock)
        except OSError as error:
            raise MetadataUnavailable(f"{path}: {error}") from error

    async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        """Answer at most 128 ranges from one moment, linearizably over all processes.

        Raises:
            MetadataUnavailable: The file could not be read.
        """
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges; a read takes {MAX_RANGES}")
        quick = all(one.limit == 1 for one in ranges)
        threads = self._reader if quick else self._listers
        return await self._ask(threads, partial(read, ranges=ranges))

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """Apply `ops` in one revision if all `guards` hold; of any size that memory holds.

        Raises:
            MetadataUnavailable: It was not applied: no lock within 5 s, a full disk, too many
                waiting, or a lease that is gone.
            ValueError: A key stands in two ops.
        """
        check_txn(guards, ops)
        return await self._ask(self._writer, partial(Batch.txn, guards=guards, ops=ops))

    async def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """Follow the keys of a range from just after a revision; its limit is not heeded.

        Raises:
            Compacted: `after` is newer than this store.
            MetadataUnavailable: The file could not be read, or `close` was called.
        """
        told, due = after, self._loop.time()  # the first batch is not held back
        self._watcher.follow()
        try:
            while True:
                heard = self._news.count
                news = await self._ask(self._listers, partial(changed, within=within, after=after))
                after = news.revision
                now = self._loop.time()
                if after > told and due == math.inf:
                    due = now + PROGRESS_S
                if news.entries or (after > told and now >= due):
                    told, due = after, math.inf
                    yield news
                else:
                    await self._news.wait(heard, due if after > told else None)
        finally:
            self._watcher.unfollow()

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease that lasts at least `ttl_s` seconds unless kept alive.

        Raises:
            MetadataUnavailable: There is no such lease, or one that nobody knows and that expires.
        """
        if not 0 < ttl_s < math.inf:
            raise ValueError("a lease lasts a positive number of seconds")
        return await self._ask(self._writer, partial(Batch.grant, ttl_s=ttl_s))

    async def keep_alive(self, lease: Lease) -> bool:
        """Give the lease its whole time again; False if it is gone.

        Raises:
            MetadataUnavailable: Count on the time it had before.
        """
        return await self._ask(self._writer, partial(Batch.keep_alive, lease=lease))

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove its keys now; ending a lease that is gone is no error.

        Raises:
            MetadataUnavailable: It may live on until its time.
        """
        await self._ask(self._writer, partial(Batch.revoke, lease=lease))

    async def members(self) -> tuple[Member, ...]:
        """A file has none."""
        return ()

    async def close(self) -> None:
        """Finish what was asked, end all followers, let go of the file. Twice is no error."""
        if self._closed:
            return
        self._closed = True
        self._news.ring()
        for threads in self._threads:
            await asyncio.to_thread(threads.close)

    async def _ask(self, threads: Readers | Writer, work: Callable[..., T]) -> T:
        if self._closed:
            raise MetadataUnavailable("it is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        threads.submit(Job(work, future))
        return await future


class _News:
    """Wakes all followers at once; who counts first and reads then can miss nothing."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Something was committed."""
        self.count += 1
        self._event.set()
        self._event.clear()

    async def wait(self, heard: int, until: float | None) -> None:
        """Return at the first ring after `heard`, or when the loop's clock says `until`."""
        try:
            async with asyncio.timeout_at(until):
                if self.count == heard:
                    await self._event.wait()
        except TimeoutError:
            return
