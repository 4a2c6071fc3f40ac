"""One upload session as it was seen, and what a process remembers of the bytes it has received."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from node import keys
from node.blobs import Piece, PieceWriter, SessionId
from node.digest import Verifier
from node.errors import BodyCut
from node.kv import Entry, Guard, Modified
from node.records import UploadSession
from node.reference import Repository
from node.wire import codec

# An upload beyond so many is hashed again when it ends.
_HASHES: Final = 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload session as it stood when it was read or last written."""

    session_id: SessionId
    session: UploadSession
    revision: int

    @property
    def repository(self) -> Repository:
        """Where the blob will be visible."""
        return self.session.repository

    @property
    def offset(self) -> int:
        """The next byte."""
        return self.session.offset

    @property
    def guard(self) -> Guard:
        """That the session is still so."""
        return Modified(keys.session(self.session_id), self.revision)


def found_upload(session_id: SessionId, entry: Entry | None) -> Upload | None:
    """The upload of a session's entry, if there is one."""
    if entry is None:
        return None
    return Upload(session_id, codec.decode_session(entry.value), entry.modified)


class Received(NamedTuple):
    """A request's body in its piece; how it was cut; the hash up to its end, if it is known."""

    writer: PieceWriter
    piece: Piece
    cut: BodyCut | None
    verifier: Verifier | None


class Hashes:
    """The running hashes of open uploads whose every byte came through this process."""

    def __init__(self) -> None:
        self._hashes: dict[SessionId, tuple[tuple[Piece, ...], Verifier]] = {}

    def take(self, session_id: SessionId, pieces: tuple[Piece, ...]) -> Verifier | None:
        """The hash of just these pieces, out of memory; None if it is not known."""
        hashed, verifier = self._hashes.pop(session_id, ((), Verifier()))
        return verifier if hashed == pieces else None

    def keep(self, session_id: SessionId, pieces: tuple[Piece, ...], verifier: Verifier) -> None:
        """Remember the hash of these pieces; the oldest is forgotten where there are too many."""
        while len(self._hashes) >= _HASHES:
            self._hashes.pop(next(iter(self._hashes)))
        self._hashes[session_id] = (pieces, verifier)

    def forget(self, session_id: SessionId) -> None:
        """The upload is over."""
        self._hashes.pop(session_id, None)


async def nothing() -> AsyncIterator[bytes]:
    """A body without bytes."""
    return
    yield b""
