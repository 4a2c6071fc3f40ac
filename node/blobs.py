"""The blob store: a port for content, addressed by digest and generation.

A **generation** is one stored copy of a blob, named by the upload session that made it.  A name is
used once and never again, so removing an old copy can't hit a newer one (RELIABILITY 5.3).  The
store knows nothing of repositories or visibility: that is the metadata's, and a copy that no
record names is nobody's.

Promises, for every adapter (tests/contract/ holds them to it):

- Bytes are streamed: no more than a few buffers of a body are in memory, and hashing, writing and
  syncing happen in worker threads, so nothing here blocks the loop.
- `publish` returns only when the copy and its name are durable (file synced, renamed, folder
  synced); an error of a sync fails that upload for good and is never retried.
- A piece that was appended stays readable to whatever process goes on with the session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType, Protocol

from node.digest import Algorithm, Digest, Verifier

Generation = NewType("Generation", str)
SessionId = NewType("SessionId", str)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of an upload session, as one request body brought them."""

    name: str
    length: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that a record names: of which blob, which one, and how many bytes long."""

    digest: Digest
    generation: Generation
    size: int


class PieceWriter(Protocol):
    """Takes one request body; made by `BlobStore.piece`.

    `write` may return while the bytes are still on their way to the disk (two buffers in flight);
    `seal` waits for them.  A writer that is neither sealed nor dropped leaves a file that the
    session's end removes.
    """

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, in order.

        Raises:
            UploadUnknown: The session was finished or removed meanwhile.
            StorageFull: No space is left.
            StorageFailed: The disk refused.
        """
        ...

    async def seal(self) -> Piece:
        """Everything written is in the piece; it is not synced yet.  Raises what `write` does."""
        ...

    async def drop(self) -> None:
        """Forget the piece and its bytes."""
        ...


class OpenBlob(Protocol):
    """A copy that is open for reading; its bytes stay readable until closed, even if unlinked."""

    @property
    def size(self) -> int:
        """Length in bytes."""
        ...

    def fileno(self) -> int | None:
        """The descriptor to sendfile from, if the store is made of files; `close` closes it."""
        ...

    async def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start`; empty at the end.

        Raises:
            StorageFailed: The disk refused.
        """
        ...

    def close(self) -> None:
        """Let go of it; closing twice is no error."""
        ...


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the store is, in bytes."""

    total_bytes: int
    free_bytes: int


class BlobStore(Protocol):
    """The port. Adapters: node/blob_files.py, (object stores); for tests tests/fake_blobs.py."""

    def piece(
        self, session: SessionId, number: int, verifier: Verifier | None = None
    ) -> PieceWriter:
        """Begin piece `number` (from 0) of a session; a verifier is fed the bytes on their way.

        Two writers of one number never share a file: each name carries a nonce of its own.
        """
        ...

    async def recover(self, session: SessionId) -> tuple[Piece, ...]:
        """What stands of a session's pieces after a crash, in order of their numbers.

        Of each number the longest; up to the first number that is missing.  The bytes are
        whatever reached the file, so they are only of use where the whole is verified later.
        """
        ...

    async def hash(
        self, session: SessionId, pieces: Sequence[Piece], algorithm: Algorithm
    ) -> Verifier:
        """Read the pieces again and hash them, for a process that did not write them all.

        Raises:
            UploadUnknown: A piece is gone.
        """
        ...

    async def publish(
        self, session: SessionId, pieces: Sequence[Piece], digest: Digest
    ) -> Generation:
        """Make the pieces, in order, one durable copy of `digest`; its generation is the session.

        The caller has verified the bytes.  The session's other files stay until `abort`.  What was
        published before, by a process that died over it, is made durable and counts.

        Raises:
            UploadUnknown: A piece is gone (somebody else finished or aborted the session).
            StorageFull, StorageFailed: Nothing was published, or nobody will ever name it.
        """
        ...

    async def store(self, session: SessionId, body: bytes, digest: Digest) -> Generation:
        """Make a small body one durable copy of `digest`, as `publish` does, all in one call.

        Nothing of the session is left but the copy, unless it fails.

        Raises:
            UploadUnknown: Somebody else aborted the session.
            StorageFull, StorageFailed: Nothing was stored, or nobody will ever name it.
        """
        ...

    async def sessions(self) -> Sequence[SessionId]:
        """The sessions of which anything is stored now, in no order.

        Raises:
            StorageFailed: The store can't be read.
        """
        ...

    async def abort(self, session: SessionId) -> None:
        """Remove all that is left of a session; an unknown one is no error."""
        ...

    async def open(self, digest: Digest, generation: Generation) -> OpenBlob:
        """Open a copy for reading.

        Raises:
            BlobDamaged: There is no such copy.
        """
        ...

    async def delete(self, digest: Digest, generation: Generation) -> None:
        """Remove a copy that no record names any more; one that is gone is no error."""
        ...

    async def generations(self, digest: Digest) -> Sequence[Generation]:
        """The copies of a digest that are stored now, named by a record or not, in no order.

        Raises:
            StorageFailed: The store can't be read.
        """
        ...

    async def missing(self, copies: Sequence[Copy]) -> Sequence[Copy]:
        """Those that are not stored, or not in their length; the bytes are not read.

        Raises:
            StorageFailed: The store can't be read.
        """
        ...

    async def reuse(self, session: SessionId, digest: Digest, generation: Generation) -> Piece:
        """Make the bytes of a copy, whatever they are, piece 0 of a session; the copy stays.

        It takes no more space, where the store can do that.

        Raises:
            BlobDamaged: There is no such copy.
            StorageFull, StorageFailed: There is no such piece.
        """
        ...

    async def usage(self) -> Usage:
        """How full it is; what is reserved is the caller's to judge."""
        ...

    async def check(self) -> None:
        """Write, read and remove a canary: whether the store works at all.

        Raises:
            StorageFailed: It does not.
        """
        ...
