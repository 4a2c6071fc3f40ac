"""Short ways to fill a blob store and to read it, for the tests of all that stores blobs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from node.blobs import BlobStore, Generation, Piece, PieceWriter, SessionId
from node.digest import Digest, Verifier

SESSION: Final = SessionId("session-1")
OTHER: Final = SessionId("session-2")
# More than the small blobs that are read when they are opened, and than one buffer of a writer.
LARGE: Final = bytes(range(256)) * 5_000


async def put_piece(
    blobs: BlobStore,
    session: SessionId,
    number: int,
    *chunks: bytes,
    verifier: Verifier | None = None,
) -> Piece:
    """Write one piece."""
    writer = blobs.piece(session, number, verifier)
    for chunk in chunks:
        await writer.write(chunk)
    return await writer.seal()


async def put(
    blobs: BlobStore, content: bytes, session: SessionId = SESSION
) -> tuple[Digest, Generation]:
    """Publish content as one piece."""
    digest = Digest.of(content)
    piece = await put_piece(blobs, session, 0, content)
    return digest, await blobs.publish(session, [piece], digest)


async def once(content: bytes) -> AsyncIterator[bytes]:
    """Content as a request's body."""
    yield content


async def content_of(blobs: BlobStore, digest: Digest, generation: Generation) -> bytes:
    """Read a copy whole, in odd steps."""
    blob = await blobs.open(digest, generation)
    try:
        read = bytearray()
        while chunk := await blob.read(len(read), 300_007):
            read += chunk
        assert len(read) == blob.size
        return bytes(read)
    finally:
        blob.close()


async def write_and_seal(writer: PieceWriter, content: bytes) -> Piece:
    """Write content and seal, as one call that may fail at either."""
    await writer.write(content)
    return await writer.seal()


def recovering(blobs: BlobStore, session: SessionId) -> Callable[[], Awaitable[tuple[Piece, ...]]]:
    """A condition for `eventually`: some bytes of the session have reached the store."""
    return partial(blobs.recover, session)
