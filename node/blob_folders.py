"""The folders and files of a blob store, and every call on them: all of this blocks.

    <root>/sha256/<ab>/<hex>.<generation>     copies; <ab> are the first two digits of <hex>
    <root>/sha512/<ab>/<hex>.<generation>
    <root>/uploads/<session>/<n>-<nonce>      pieces, one for each request body, counted from 0
    <root>/uploads/<session>/whole-<nonce>    several pieces on their way to become a copy

A copy appears by a rename, after its bytes were synced and before its folder is: a crash between
any two of these loses an upload, and never leaves a name with other bytes behind it (RELIABILITY
4).  A sync that failed is never tried again: the kernel may have dropped the pages that it could
not write, and would report success the second time.

node/blob_files.py calls this from threads.  The methods of `BlobFolders` say in the words of
node.errors what went wrong; session, piece and generation names that could lead out of their
folder are refused as unknown.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from node.blob_bytes import copy_all, write_all
from node.blobs import Copy, Generation, Piece, SessionId, Usage
from node.digest import Algorithm, Digest, Verifier
from node.errors import BlobDamaged, StorageFailed, StorageFull, UploadUnknown

# Seams: tests trace and fail them.
_fsync = os.fsync
_rename = os.rename
_link = os.link

_READ_BYTES: Final = 1 << 20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# A filesystem without hard links, or one that allows no more to this file.
_NO_LINK: Final = frozenset({errno.EPERM, errno.EXDEV, errno.EMLINK, errno.EOPNOTSUPP})
_SAFE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")
_PIECE_NAME: Final = re.compile(r"([0-9]{1,9})-[0-9a-f]{16}")
# A writer of another process may add a file while a session is removed; it fails at its next byte.
_REMOVE_PASSES: Final = 3


def piece_name(number: int) -> str:
    """A name that no other writer of the same number gets."""
    return f"{number}-{secrets.token_hex(8)}"


class BlobFolders:
    """Where everything lies below `root`, and what can be done to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._uploads = root / "uploads"

    def lay_out(self) -> None:
        """Make what is missing of the folders, durably, and see that all of them can be used.

        Raises:
            StorageFailed: One can't be made or written, or they lie on several filesystems.
        """
        shelves = [
            self._root / algorithm / f"{first:02x}"
            for algorithm in Algorithm
            for first in range(256)
        ]
        try:
            # The folder above the root may be closed to us, and matters only to a root just made.
            tops = [self._root, self._root.parent] if _make_folder(self._root) else [self._root]
            made = [folder for folder in (*shelves, self._uploads) if _make_folder(folder)]
            for folder in (*made, *{folder.parent for folder in made}, *tops):
                _sync_folder(folder)
            home = self._uploads.stat().st_dev
            strays = [folder for folder in shelves if folder.stat().st_dev != home]
        except OSError as err:
            raise StorageFailed(f"{err.filename or self._root}: {err.strerror}") from err
        for folder in (*shelves, self._uploads):
            if not os.access(folder, os.W_OK | os.X_OK):
                raise StorageFailed(f"{folder} is not writable")
        if strays:
            # A rename from uploads/ must not cross filesystems: it would not be atomic.
            raise StorageFailed(f"{strays[0]} and {self._uploads} lie on different filesystems")

    def append(self, session: SessionId, name: str, chunks: list[bytes], *, begins: bool) -> None:
        """Put chunks (at most 1024, none empty) at the end of a piece, making it if it begins here.

        The file is opened for this call only.  So a writer whose session was finished or removed
        meanwhile finds no file, where a descriptor kept open could still change a published copy.

        Raises:
            UploadUnknown: The piece was begun and is gone.
            StorageFull, StorageFailed: The disk refused.
        """
        path = self._piece(session, name)
        with self._own_words(), _gone_means(UploadUnknown(session)):
            descriptor = _create(path) if begins else os.open(path, os.O_WRONLY | os.O_APPEND)
            with _closing(descriptor):
                write_all(descriptor, chunks)

    def drop(self, session: SessionId, name: str) -> None:
        """Remove a piece; one that is gone is no error."""
        with self._own_words():
            self._piece(session, name).unlink(missing_ok=True)

    def recover(self, session: SessionId) -> tuple[Piece, ...]:
        """The longest piece of each number, up to the first number that is missing."""
        longest: dict[int, Piece] = {}
        with self._own_words(), contextlib.suppress(FileNotFoundError):
            for path in self._session(session).iterdir():
                if (match := _PIECE_NAME.fullmatch(path.name)) is None:
                    continue
                number, found = int(match[1]), Piece(path.name, path.stat().st_size)
                if number not in longest or found.length > longest[number].length:
                    longest[number] = found
        standing: list[Piece] = []
        while (piece := longest.get(len(standing))) is not None:
            standing.append(piece)
        return tuple(standing)

    def hash_some(
        self, session: SessionId, piece: Piece, start: int, most: int, verifier: Verifier
    ) -> int:
        """Feed a verifier up to `most` bytes of a piece from `start`; say how many.

        Raises:
            UploadUnknown: The piece is gone or shorter than it should be.
        """
        left = total = min(most, piece.length - start)
        buffer = memoryview(bytearray(min(left, _READ_BYTES)))
        with self._own_words(), self._opened(session, piece, os.O_RDONLY) as descriptor:
            while left:
                count = os.preadv(descriptor, [buffer[:left]], start + total - left)
                if not count:
                    raise UploadUnknown(session)
                verifier.update(buffer[:count])
                left -= count
        return total

    def publish(self, session: SessionId, pieces: Sequence[Piece], digest: Digest) -> Generation:
        """Sync the pieces as one file, give it the copy's name, sync the folder of that name.

        Raises:
            UploadUnknown: A piece is gone or shorter than it should be.
            StorageFull, StorageFailed: The disk refused.
        """
        with self._own_words():
            try:
                source = self._whole(session, pieces)
                target = self._copy(digest, Generation(session))
                self._rename(source, target, session)
            except UploadUnknown:
                # Perhaps renamed already, by a process that died before it could say so.
                size = sum(piece.length for piece in pieces)
                if not self._has(digest, Generation(session), size):
                    raise
                target = self._copy(digest, Generation(session))
            # If this fails the name stays: nobody will name it, and what another process may
            # have published of this very session must not be removed.
            _sync_folder(target.parent)
        return Generation(session)

    def store(self, session: SessionId, body: bytes, digest: Digest) -> Generation:
        """Append and publish a session's only piece; nothing else of it is left."""
        piece = Piece(piece_name(0), len(body))
        self.append(session, piece.name, [body] if body else [], begins=True)
        generation = self.publish(session, [piece], digest)
        with contextlib.suppress(OSError):  # a sweep finds it
            self._session(session).rmdir()
        return generation

    def _whole(self, session: SessionId, pieces: Sequence[Piece]) -> Path:
        """The pieces as one synced file."""
        return self._trim(session, pieces[0]) if len(pieces) == 1 else self._join(session, pieces)

    def _has(self, digest: Digest, generation: Generation, size: int) -> bool:
        """Whether a copy of that length has that name."""
        try:
            return self._copy(digest, generation).stat().st_size == size
        except (BlobDamaged, FileNotFoundError):
            return False

    def _rename(self, source: Path, target: Path, session: SessionId) -> None:
        try:
            _rename(source, target)
        except FileNotFoundError as err:
            if source.exists():  # then it is the store's own folder that is missing
                raise
            raise UploadUnknown(session) from err

    def sessions(self) -> list[SessionId]:
        """The sessions that have a folder."""
        with self._own_words(), os.scandir(self._uploads) as found:
            return [
                SessionId(one.name)
                for one in found
                if _SAFE_NAME.fullmatch(one.name) and one.is_dir(follow_symlinks=False)
            ]

    def remove(self, session: SessionId) -> None:
        """Remove a session's folder with all that is in it."""
        folder = self._session(session)
        with self._own_words(), contextlib.suppress(FileNotFoundError):
            for attempt in range(_REMOVE_PASSES):
                for path in folder.iterdir():
                    path.unlink(missing_ok=True)
                try:
                    folder.rmdir()
                except OSError as err:
                    if err.errno != errno.ENOTEMPTY or attempt == _REMOVE_PASSES - 1:
                        raise
                else:
                    return

    def open(self, digest: Digest, generation: Generation) -> int:
        """A descriptor of a copy, for reading.

        Raises:
            BlobDamaged: There is no such copy.
        """
        with self._own_words(), _gone_means(BlobDamaged(str(digest))):
            return os.open(self._copy(digest, generation), os.O_RDONLY)

    def delete(self, digest: Digest, generation: Generation) -> None:
        """Remove a copy; one that is gone is no error."""
        with self._own_words():
            self._copy(digest, generation).unlink(missing_ok=True)

    def generations(self, digest: Digest) -> list[Generation]:
        """The copies that stand of a digest.

        It reads the folder that the digest shares with a 256th of all copies: 0.3 ms where there
        are 100,000, 3 ms where there are a million.
        """
        start, shelf = f"{digest.hex}.", self._root / digest.algorithm / digest.hex[:2]
        with self._own_words(), os.scandir(shelf) as found:
            names = [one.name.removeprefix(start) for one in found if one.name.startswith(start)]
        return [Generation(name) for name in names if _SAFE_NAME.fullmatch(name)]

    def missing(self, copies: Sequence[Copy]) -> list[Copy]:
        """The copies that have no file of their length."""
        with self._own_words():
            return [one for one in copies if not self._has(one.digest, one.generation, one.size)]

    def reuse(self, session: SessionId, digest: Digest, generation: Generation) -> Piece:
        """Make a copy's file the first piece of a session too: by a hard link, or a second file.

        Nothing writes to a copy, and a piece of its full length is not cut when it is published.

        Raises:
            BlobDamaged: There is no such copy.
            StorageFull, StorageFailed: The disk refused.
        """
        name = piece_name(0)
        piece = self._piece(session, name)
        with self._own_words(), _closing(self.open(digest, generation)) as source:
            length = os.fstat(source).st_size
            with _gone_means(BlobDamaged(str(digest))):
                piece.parent.mkdir(0o750, exist_ok=True)
                try:
                    _link(self._copy(digest, generation), piece)
                except OSError as err:
                    if err.errno not in _NO_LINK:
                        raise
                    with _closing(_create(piece)) as target:
                        copy_all(source, target, length)
        return Piece(name, length)

    def usage(self) -> Usage:
        """The filesystem's size, and what is free to us of it, in bytes."""
        try:
            found = os.statvfs(self._root)
        except OSError as err:
            raise StorageFailed(err.strerror or str(err)) from err
        return Usage(found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize)

    def check(self) -> None:
        """Write, read and remove a canary; a full disk passes, for pulls go on from it.

        Raises:
            StorageFailed: The store does not work.
        """
        canary = self._uploads / f".canary-{secrets.token_hex(8)}"
        song = secrets.token_bytes(32)
        try:
            canary.write_bytes(song)
            heard = canary.read_bytes()
        except OSError as err:
            if err.errno not in _FULL:
                raise StorageFailed(f"canary: {err.strerror}") from err
            heard = song
        finally:
            with contextlib.suppress(OSError):
                canary.unlink(missing_ok=True)
        if heard != song:
            raise StorageFailed("canary: what was written is not what is read")

    @contextlib.contextmanager
    def _own_words(self) -> Iterator[None]:
        """Turn what the system says into what node.errors says."""
        try:
            yield
        except OSError as err:
            if err.errno in _FULL:
                raise StorageFull(self.usage().free_bytes) from err
            raise StorageFailed(err.strerror or str(err)) from err

    def _session(self, session: SessionId) -> Path:
        if not _SAFE_NAME.fullmatch(session):
            raise UploadUnknown(session)
        return self._uploads / session

    def _piece(self, session: SessionId, name: str) -> Path:
        if not _PIECE_NAME.fullmatch(name):
            raise UploadUnknown(session)
        return self._session(session) / name

    def _copy(self, digest: Digest, generation: Generation) -> Path:
        if not _SAFE_NAME.fullmatch(generation):
            raise BlobDamaged(str(digest))
        encoded = digest.hex
        return self._root / digest.algorithm / encoded[:2] / f"{encoded}.{generation}"

    @contextlib.contextmanager
    def _opened(self, session: SessionId, piece: Piece, flags: int) -> Iterator[int]:
        """A piece's descriptor; UploadUnknown if it is gone or shorter than recorded."""
        with _gone_means(UploadUnknown(session)):
            descriptor = os.open(self._piece(session, piece.name), flags)
        with _closing(descriptor):
            if os.fstat(descriptor).st_size < piece.length:
                raise UploadUnknown(session)
            yield descriptor

    def _trim(self, session: SessionId, piece: Piece) -> Path:
        """Cut a piece to its recorded length and sync it."""
        with self._opened(session, piece, os.O_RDWR) as descriptor:
            # Bytes may follow that a request brought and no record took in.
            if os.fstat(descriptor).st_size > piece.length:
                os.ftruncate(descriptor, piece.length)
            _fsync(descriptor)
        return self._piece(session, piece.name)

    def _join(self, session: SessionId, pieces: Sequence[Piece]) -> Path:
        """Copy the recorded bytes of all pieces, in order, into one synced file."""
        whole = self._session(session) / f"whole-{secrets.token_hex(8)}"
        try:
            with _closing(_create(whole)) as target:
                for piece in pieces:
                    with self._opened(session, piece, os.O_RDONLY) as source:
                        copy_all(source, target, piece.length)
                _fsync(target)
        except BaseException:
            whole.unlink(missing_ok=True)  # on a full disk each attempt would leave another
            raise
        return whole


def _make_folder(folder: Path) -> bool:
    """Make a folder and its parents; whether it was missing."""
    try:
        folder.mkdir(0o750, parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return False
    return True


def _sync_folder(folder: Path) -> None:
    with _closing(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as descriptor:
        _fsync(descriptor)


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError:
        path.parent.mkdir(0o750, exist_ok=True)
        return os.open(path, flags, 0o640)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _gone_means(error: Exception) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as err:
        raise error from err
