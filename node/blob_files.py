"""Blobs as files: the adapter of node.blobs for a site with a disk of its own.

node/blob_folders.py knows the layout and makes the blocking calls; here they are sent to the
store's threads, so that a slow disk, or one that hangs, never stops the loop.  A thread that works
for a caller who was cancelled goes on to its end; what it makes then is named by nobody.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from node.blob_folders import BlobFolders, piece_name
from node.blobs import Copy, Generation, OpenBlob, Piece, SessionId, Usage
from node.digest import Algorithm, Digest, Verifier
from node.errors import RegistryError, StorageFailed

P = ParamSpec("P")
T = TypeVar("T")

# Measured on two cores: from 256 KiB to 1 MiB a piece is written equally fast, below it is slower;
# each upload holds two of these.
_BUFFER_BYTES: Final = 256 << 10
# What one writev takes (IOV_MAX).
_MOST_CHUNKS: Final = 1024
# A blob up to this size is read in the very call that opens it: half the hops to a thread.
_SMALL_BYTES: Final = 128 << 10
_HASH_STEP_BYTES: Final = 64 << 20


class FileBlobs:
    """A BlobStore below one folder; `open_store` makes it."""

    def __init__(self, folders: BlobFolders, threads: ThreadPoolExecutor) -> None:
        self._folders = folders
        self._threads = threads

    @classmethod
    async def open_store(cls, root: Path, *, threads: int = 16) -> Self:
        """Make what is missing of the store below `root` and open it, with so many threads.

        Raises:
            StorageFailed: A folder can't be made or written; the reason names it.
        """
        store = cls(BlobFolders(root), ThreadPoolExecutor(threads, thread_name_prefix="blobs"))
        try:
            await store._run(store._folders.lay_out)
        except BaseException:
            store._threads.shutdown(wait=False)
            raise
        return store

    @property
    def threads(self) -> ThreadPoolExecutor:
        """Where calls that wait for this disk belong, sendfile's included."""
        return self._threads

    async def close(self) -> None:
        """Wait for what the threads are doing, and end them; nothing else may be asked of it."""
        await asyncio.to_thread(self._threads.shutdown)

    def piece(self, session: SessionId, number: int, verifier: Verifier | None = None) -> FilePiece:
        """Begin a piece; its file appears with its first full buffer, or when it is sealed."""
        return FilePiece(self._folders, self._threads, session, number, verifier)

    async def recover(self, session: SessionId) -> tuple[Piece, ...]:
        """See BlobStore."""
        return await self._run(self._folders.recover, session)

    async def hash(
        self, session: SessionId, pieces: Sequence[Piece], algorithm: Algorithm
    ) -> Verifier:
        """See BlobStore."""
        verifier = Verifier(algorithm)
        for piece in pieces:
            start = 0
            while start < piece.length:
                # In steps, so that a caller who is cancelled does not leave a thread at it.
                start += await self._run(
                    self._folders.hash_some, session, piece, start, _HASH_STEP_BYTES, verifier
                )
        return verifier

    async def publish(
        self, session: SessionId, pieces: Sequence[Piece], digest: Digest
    ) -> Generation:
        """See BlobStore."""
        return await self._run(self._folders.publish, session, pieces, digest)

    async def store(self, session: SessionId, body: bytes, digest: Digest) -> Generation:
        """See BlobStore."""
        return await self._run(self._folders.store, session, body, digest)

    async def sessions(self) -> Sequence[SessionId]:
        """See BlobStore."""
        return await self._run(self._folders.sessions)

    async def abort(self, session: SessionId) -> None:
        """See BlobStore."""
        await self._run(self._folders.remove, session)

    async def open(self, digest: Digest, generation: Generation) -> OpenBlob:
        """See BlobStore; a small blob is read whole here, and needs no descriptor any more."""
        job = self._threads.submit(self._open, digest, generation)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(_close_unclaimed)
            raise

    async def delete(self, digest: Digest, generation: Generation) -> None:
        """See BlobStore."""
        await self._run(self._folders.delete, digest, generation)

    async def generations(self, digest: Digest) -> Sequence[Generation]:
        """See BlobStore."""
        return await self._run(self._folders.generations, digest)

    async def missing(self, copies: Sequence[Copy]) -> Sequence[Copy]:
        """See BlobStore."""
        return await self._run(self._folders.missing, copies)

    async def reuse(self, session: SessionId, digest: Digest, generation: Generation) -> Piece:
        """See BlobStore."""
        return await self._run(self._folders.reuse, session, digest, generation)

    async def usage(self) -> Usage:
        """See BlobStore."""
        return await self._run(self._folders.usage)

    async def check(self) -> None:
        """See BlobStore; a full disk passes, for pulls go on from it."""
        await self._run(self._folders.check)

    async def _run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._threads.submit(call, *args, **kwargs))

    def _open(self, digest: Digest, generation: Generation) -> OpenBlob:
        descriptor = self._folders.open(digest, generation)
        try:
            size = os.fstat(descriptor).st_size
            if size > _SMALL_BYTES:
                return OpenFile(descriptor, size, self._threads)
            content = _pread(descriptor, 0, size)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return OpenContent(content)


class FilePiece:
    """A PieceWriter: one buffer is gathered while a thread hashes and writes the one before."""

    def __init__(
        self,
        folders: BlobFolders,
        threads: ThreadPoolExecutor,
        session: SessionId,
        number: int,
        verifier: Verifier | None,
    ) -> None:
        self._folders = folders
        self._threads = threads
        self._session = session
        self._name = piece_name(number)
        self._verifier = verifier
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0
        self._length = 0
        self._begun = False
        self._job: asyncio.Future[None] | None = None
        self._failure: RegistryError | None = None

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """See PieceWriter; also raises UploadUnknown if the session was removed meanwhile."""
        if self._failure is not None:
            raise self._failure
        if not chunk:
            return
        self._gathered.append(bytes(chunk))  # of bytes this is no copy; others may change
        self._gathered_bytes += len(self._gathered[-1])
        if self._gathered_bytes >= _BUFFER_BYTES:
            await self._hand_over()
        elif len(self._gathered) == _MOST_CHUNKS:
            self._gathered = [b"".join(self._gathered)]

    async def seal(self) -> Piece:
        """See PieceWriter; raises what a write raised."""
        if self._gathered or not self._length:
            await self._hand_over()
        await self._settle()
        return Piece(self._name, self._length)

    async def drop(self) -> None:
        """Forget the piece and its bytes; a verifier keeps what it was fed."""
        self._gathered = []
        if self._job is not None:
            await asyncio.wait((self._job,))
        await asyncio.wrap_future(
            self._threads.submit(self._folders.drop, self._session, self._name)
        )

    async def _hand_over(self) -> None:
        """Give the buffer to a thread, once the one before is written."""
        await self._settle()
        chunks, self._gathered = self._gathered, []
        self._length += self._gathered_bytes
        self._gathered_bytes = 0
        self._job = asyncio.wrap_future(self._threads.submit(self._append, chunks))

    async def _settle(self) -> None:
        """Wait until nothing is in flight."""
        if self._job is not None:
            # Not awaited itself: that the caller is cancelled must not lose the bytes.
            await asyncio.wait((self._job,))
            self._job.result()
        if self._failure is not None:
            raise self._failure

    def _append(self, chunks: list[bytes]) -> None:
        """In a thread, one buffer at a time; a failure is kept for the next call."""
        try:
            self._folders.append(self._session, self._name, chunks, begins=not self._begun)
            self._begun = True
            if self._verifier is not None:
                for chunk in chunks:
                    self._verifier.update(chunk)
        except RegistryError as err:
            self._failure = err


class OpenContent:
    """An OpenBlob whose bytes were read when it was opened."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._content)

    def fileno(self) -> None:
        """There is nothing to sendfile from."""
        return

    async def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start`; empty at the end."""
        return self._content[start : start + length]

    def close(self) -> None:
        """Nothing is held."""


class OpenFile:
    """An OpenBlob that holds a descriptor until it is closed and the last read has returned."""

    def __init__(self, descriptor: int, size: int, threads: ThreadPoolExecutor) -> None:
        self._descriptor = descriptor
        self._size = size
        self._threads = threads
        self._lock = threading.Lock()
        self._readers = 0
        self._closed = False

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._size

    def fileno(self) -> int:
        """The descriptor; `close` closes it, so whoever outlives that takes a duplicate."""
        return self._descriptor

    async def read(self, start: int, length: int) -> bytes:
        """See OpenBlob."""
        with self._lock:
            if self._closed:
                raise ValueError("this blob was closed")
            self._readers += 1
        job = self._threads.submit(_pread, self._descriptor, start, length)
        job.add_done_callback(self._leave)
        return await asyncio.wrap_future(job)

    def close(self) -> None:
        """See OpenBlob."""
        with self._lock:
            last = not self._closed and not self._readers
            self._closed = True
        if last:
            self._release()

    def _leave(self, _job: Future[bytes]) -> None:
        with self._lock:
            self._readers -= 1
            last = self._closed and not self._readers
        if last:
            self._release()

    def _release(self) -> None:
        try:
            # The last descriptor of a removed copy frees its blocks, which may take its time.
            self._threads.submit(os.close, self._descriptor)
        except RuntimeError:  # the store was closed before
            os.close(self._descriptor)


def _pread(descriptor: int, start: int, length: int) -> bytes:
    try:
        return os.pread(descriptor, length, start)
    except OSError as err:
        raise StorageFailed(err.strerror or str(err)) from err


def _close_unclaimed(job: Future[OpenBlob]) -> None:
    """Close what was opened for a caller who was cancelled."""
    if not job.cancelled() and job.exception() is None:
        job.result().close()
