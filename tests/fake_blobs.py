"""A blob store in memory: the twin of FileBlobs that simulations crash and damage at will.

It keeps the contract of node.blobs (tests/contract/test_blobs.py runs against both), decides
nothing by chance and reads no clock.  Every asynchronous call gives way to the loop once, where
the real store lets others run.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from node.blobs import Copy, Generation, Piece, SessionId, Usage
from node.digest import Algorithm, Digest, Verifier
from node.errors import BlobDamaged, RegistryError, StorageFull, UploadUnknown


class Call(StrEnum):
    """The calls that a test can make fail."""

    WRITE = "write"
    SEAL = "seal"
    PUBLISH = "publish"
    PUBLISHED = "published"
    """After the copy is made: whoever asked for it is told that it failed."""
    OPEN = "open"
    READ = "read"
    CHECK = "check"


@dataclass
class Faults:
    """What is to go wrong next."""

    coming: dict[Call, deque[RegistryError]] = field(default_factory=lambda: defaultdict(deque))

    def fail_next(self, call: Call, error: RegistryError) -> None:
        """Make the next such call raise this; several are raised in the order they were given."""
        self.coming[call].append(error)

    def strike(self, call: Call) -> None:
        """Raise what is due."""
        if self.coming[call]:
            raise self.coming[call].popleft()


class MemoryBlobs:
    """A BlobStore in memory, of `capacity_bytes`."""

    def __init__(self, capacity_bytes: int = 1 << 40) -> None:
        self.faults = Faults()
        self.copies: dict[tuple[Digest, Generation], bytes] = {}
        self._pieces: dict[SessionId, dict[str, bytearray]] = {}
        self._capacity_bytes = capacity_bytes
        self._nonces = itertools.count()

    def crash(self) -> None:
        """Lose what no copy was made of; copies stay."""
        self._pieces.clear()

    def lose(self, digest: Digest, generation: Generation) -> None:
        """Lose a copy without anybody noticing."""
        del self.copies[digest, generation]

    def damage(self, digest: Digest, generation: Generation, content: bytes) -> None:
        """Put other bytes into a copy without anybody noticing."""
        assert (digest, generation) in self.copies
        self.copies[digest, generation] = content

    def piece(
        self, session: SessionId, number: int, verifier: Verifier | None = None
    ) -> MemoryPiece:
        """See BlobStore."""
        return MemoryPiece(self, session, f"{number}-{next(self._nonces):016x}", verifier)

    async def recover(self, session: SessionId) -> tuple[Piece, ...]:
        """See BlobStore."""
        await asyncio.sleep(0)
        longest: dict[int, Piece] = {}
        for name, content in self._pieces.get(session, {}).items():
            number = int(name.partition("-")[0])
            if number not in longest or len(content) > longest[number].length:
                longest[number] = Piece(name, len(content))
        standing: list[Piece] = []
        while (piece := longest.get(len(standing))) is not None:
            standing.append(piece)
        return tuple(standing)

    async def hash(
        self, session: SessionId, pieces: Sequence[Piece], algorithm: Algorithm
    ) -> Verifier:
        """See BlobStore."""
        await asyncio.sleep(0)
        verifier = Verifier(algorithm)
        verifier.update(self._join(session, pieces))
        return verifier

    async def publish(
        self, session: SessionId, pieces: Sequence[Piece], digest: Digest
    ) -> Generation:
        """See BlobStore."""
        await asyncio.sleep(0)
        self.faults.strike(Call.PUBLISH)
        generation = Generation(session)
        try:
            self.copies[digest, generation] = self._join(session, pieces)
        except UploadUnknown:
            published = self.copies.get((digest, generation))
            if published is None or len(published) != sum(piece.length for piece in pieces):
                raise
        else:
            if len(pieces) == 1:
                del self._pieces[session][pieces[0].name]
        await asyncio.sleep(0)
        self.faults.strike(Call.PUBLISHED)
        return generation

    async def store(self, session: SessionId, body: bytes, digest: Digest) -> Generation:
        """See BlobStore; it fails as its steps would."""
        piece = self.piece(session, 0)
        await piece.write(body)
        generation = await self.publish(session, (await piece.seal(),), digest)
        self._pieces.pop(session, None)
        return generation

    async def sessions(self) -> Sequence[SessionId]:
        """See BlobStore."""
        await asyncio.sleep(0)
        return list(self._pieces)

    async def abort(self, session: SessionId) -> None:
        """See BlobStore."""
        await asyncio.sleep(0)
        self._pieces.pop(session, None)

    async def open(self, digest: Digest, generation: Generation) -> MemoryOpenBlob:
        """See BlobStore."""
        await asyncio.sleep(0)
        self.faults.strike(Call.OPEN)
        if (content := self.copies.get((digest, generation))) is None:
            raise BlobDamaged(str(digest))
        return MemoryOpenBlob(content, self.faults)

    async def delete(self, digest: Digest, generation: Generation) -> None:
        """See BlobStore."""
        await asyncio.sleep(0)
        self.copies.pop((digest, generation), None)

    async def generations(self, digest: Digest) -> Sequence[Generation]:
        """See BlobStore."""
        await asyncio.sleep(0)
        return [generation for stored, generation in self.copies if stored == digest]

    async def missing(self, copies: Sequence[Copy]) -> Sequence[Copy]:
        """See BlobStore."""
        await asyncio.sleep(0)
        stored = {one: len(content) for one, content in self.copies.items()}
        return [one for one in copies if stored.get((one.digest, one.generation)) != one.size]

    async def reuse(self, session: SessionId, digest: Digest, generation: Generation) -> Piece:
        """See BlobStore; here it takes space."""
        await asyncio.sleep(0)
        if (content := self.copies.get((digest, generation))) is None:
            raise BlobDamaged(str(digest))
        name = f"0-{next(self._nonces):016x}"
        self._append(session, name, content, begins=True)
        return Piece(name, len(content))

    async def usage(self) -> Usage:
        """See BlobStore."""
        await asyncio.sleep(0)
        return Usage(self._capacity_bytes, self._free_bytes())

    async def check(self) -> None:
        """See BlobStore."""
        await asyncio.sleep(0)
        self.faults.strike(Call.CHECK)

    def _append(self, session: SessionId, name: str, chunk: bytes, *, begins: bool) -> None:
        if len(chunk) > self._free_bytes():
            raise StorageFull(self._free_bytes())
        pieces = self._pieces.setdefault(session, {})
        if begins:
            pieces[name] = bytearray()
        elif name not in pieces:
            raise UploadUnknown(session)
        pieces[name] += chunk

    def _forget(self, session: SessionId, name: str) -> None:
        self._pieces.get(session, {}).pop(name, None)

    def _join(self, session: SessionId, pieces: Sequence[Piece]) -> bytes:
        held = self._pieces.get(session, {})
        for piece in pieces:
            if piece.name not in held or len(held[piece.name]) < piece.length:
                raise UploadUnknown(session)
        return b"".join(held[piece.name][: piece.length] for piece in pieces)

    def _free_bytes(self) -> int:
        pieces = sum(len(held) for session in self._pieces.values() for held in session.values())
        return self._capacity_bytes - pieces - sum(map(len, self.copies.values()))


class MemoryPiece:
    """A PieceWriter of MemoryBlobs."""

    def __init__(
        self, store: MemoryBlobs, session: SessionId, name: str, verifier: Verifier | None
    ) -> None:
        self._store = store
        self._session = session
        self._name = name
        self._verifier = verifier
        self._begun = False
        self._length = 0

    async def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """See PieceWriter."""
        await asyncio.sleep(0)
        self._store.faults.strike(Call.WRITE)
        self._take(bytes(chunk))

    async def seal(self) -> Piece:
        """See PieceWriter."""
        await asyncio.sleep(0)
        self._store.faults.strike(Call.SEAL)
        self._take(b"")
        return Piece(self._name, self._length)

    async def drop(self) -> None:
        """See PieceWriter."""
        await asyncio.sleep(0)
        self._store._forget(self._session, self._name)

    def _take(self, content: bytes) -> None:
        self._store._append(self._session, self._name, content, begins=not self._begun)
        self._begun = True
        self._length += len(content)
        if self._verifier is not None:
            self._verifier.update(content)


class MemoryOpenBlob:
    """An OpenBlob of MemoryBlobs: no descriptor, so its bytes go out by read and write."""

    def __init__(self, content: bytes, faults: Faults) -> None:
        self._content = content
        self._faults = faults

    @property
    def size(self) -> int:
        """Length in bytes."""
        return len(self._content)

    def fileno(self) -> None:
        """There is none."""
        return

    async def read(self, start: int, length: int) -> bytes:
        """See OpenBlob."""
        await asyncio.sleep(0)
        self._faults.strike(Call.READ)
        return self._content[start : start + length]

    def close(self) -> None:
        """Nothing is held."""
