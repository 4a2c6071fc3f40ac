"""Blobs as files: order of syncs and renames, what a disk refuses, names that lead elsewhere.

What files share with every other store is in tests/contract/test_blobs.py.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node import blob_bytes, blob_folders
from node.blob_files import FileBlobs
from node.blobs import Generation, Piece, SessionId
from node.digest import Algorithm, Digest
from node.errors import BlobDamaged, RegistryError, StorageFailed, StorageFull, UploadUnknown
from tests.blob_calls import (
    LARGE,
    OTHER,
    SESSION,
    content_of,
    put,
    put_piece,
    recovering,
    write_and_seal,
)
from tests.waiting import eventually


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileBlobs]:
    """A store of files in an empty folder."""
    store = await FileBlobs.open_store(tmp_path / "blobs", threads=4)
    yield store
    await store.close()


def names_below(folder: Path) -> list[str]:
    """Every file below, by its path from there."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[FileBlobs]:
    """A second store over the same folder, as another process has it."""
    store = await FileBlobs.open_store(root, threads=2)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and renamed, in order and in threads: names as they were at that moment."""
    calls: list[str] = []

    def fsync(descriptor: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        calls.append(f"fsync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        os.fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        calls.append(f"rename {source.name} {target.name}")
        source.rename(target)

    monkeypatch.setattr(blob_folders, "_fsync", fsync)
    monkeypatch.setattr(blob_folders, "_rename", rename)
    return calls


@pytest.mark.parametrize("row", ["H9"])
async def test_one_piece_is_synced_then_renamed_then_its_folder_is_synced(
    files: FileBlobs, trace: list[str], row: str
) -> None:
    """The order that no crash can turn into a name with other bytes (RELIABILITY 4)."""
    digest, generation = await put(files, LARGE)
    source = trace[0].removeprefix("fsync ")
    assert source.startswith("0-")
    target = f"{digest.hex}.{generation}"
    assert trace == [f"fsync {source}", f"rename {source} {target}", f"fsync {digest.hex[:2]}"]


@pytest.mark.parametrize("row", ["H9"])
async def test_several_pieces_keep_the_same_order(
    files: FileBlobs, trace: list[str], row: str
) -> None:
    """The joined file is synced before its rename, the folder after it; no piece needs to be."""
    pieces = [await put_piece(files, SESSION, n, LARGE) for n in range(2)]
    digest = Digest.of(LARGE * 2)
    await files.publish(SESSION, pieces, digest)
    source = trace[0].removeprefix("fsync ")
    assert source.startswith("whole-")
    target = f"{digest.hex}.{SESSION}"
    assert trace == [f"fsync {source}", f"rename {source} {target}", f"fsync {digest.hex[:2]}"]


@pytest.mark.parametrize("pieces", [1, 2])
async def test_a_failed_sync_publishes_nothing_and_is_not_tried_again(
    files: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    """EIO from fsync fails the upload for good: no name appears, and fsync is called once."""
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    written = [await put_piece(files, SESSION, n, b"content") for n in range(pieces)]
    monkeypatch.setattr(blob_folders, "_fsync", fsync)
    with pytest.raises(StorageFailed, match="Input/output error"):
        await files.publish(SESSION, written, Digest.of(b"content" * pieces))
    assert len(calls) == 1
    assert names_below(tmp_path / "blobs" / "sha256") == []
    assert len(names_below(tmp_path / "blobs" / "uploads")) == pieces, "nor is it joined in vain"


async def test_a_failed_sync_of_the_folder_is_a_failure(
    files: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that may not be durable is not acknowledged."""
    calls: list[int] = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    piece = await put_piece(files, SESSION, 0, b"content")
    monkeypatch.setattr(blob_folders, "_fsync", fsync)
    with pytest.raises(StorageFailed):
        await files.publish(SESSION, [piece], Digest.of(b"content"))


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageFailed),
        (errno.EROFS, StorageFailed),
    ],
    ids=["ENOSPC", "EDQUOT", "EIO", "EROFS"],
)
async def test_what_the_disk_refuses_is_said_in_our_words(
    files: FileBlobs,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[RegistryError],
) -> None:
    """A writer fails at its next call, stays failed, and leaves the store usable."""

    def writev(_descriptor: int, _chunks: list[bytes]) -> int:
        raise OSError(number, os.strerror(number))

    writer = files.piece(SESSION, 0)
    with monkeypatch.context() as broken:
        broken.setattr(os, "writev", writev)
        with pytest.raises(error):
            await write_and_seal(writer, LARGE)
    with pytest.raises(error):
        await writer.write(b"more")
    with pytest.raises(error):
        await writer.seal()
    await writer.drop()
    await put(files, LARGE, OTHER)


async def test_short_writes_are_carried_on(
    files: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that takes a part of a buffer is given the rest."""
    whole = os.writev

    def writev(descriptor: int, chunks: list[bytes]) -> int:
        return (
            os.write(descriptor, chunks[0][:50_001])
            if len(chunks) == 1
            else whole(descriptor, chunks[:2])
        )

    monkeypatch.setattr(os, "writev", writev)
    content = b"".join(bytes([n]) * 100_003 for n in range(9))
    piece = await put_piece(files, SESSION, 0, *[bytes([n]) * 100_003 for n in range(9)])
    (await files.hash(SESSION, [piece], Algorithm.SHA256)).verify(Digest.of(content))


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.EOPNOTSUPP, 0])
async def test_pieces_are_joined_where_the_kernel_cannot_copy(
    files: FileBlobs, monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    """Filesystems without copy_file_range, or that answer 0 to it, get the same bytes by hand."""

    def refuse(_source: int, _target: int, _count: int) -> int:
        if answer:
            raise OSError(answer, os.strerror(answer))
        return 0

    monkeypatch.setattr(blob_bytes, "_copy_file_range", refuse)
    pieces = [await put_piece(files, SESSION, n, LARGE) for n in range(2)]
    digest = Digest.of(LARGE * 2)
    assert (
        await content_of(files, digest, await files.publish(SESSION, pieces, digest)) == LARGE * 2
    )


async def test_another_process_goes_on_with_a_session(files: FileBlobs, tmp_path: Path) -> None:
    """Pieces are where any gateway of the site finds them, also one that is still being written."""
    first = await put_piece(files, SESSION, 0, LARGE)
    unsealed = files.piece(SESSION, 1)
    await unsealed.write(LARGE)
    async with opened(tmp_path / "blobs") as other:
        found = await eventually(two_pieces(other), 60, "the unsealed piece has reached its file")
        assert found[0] == first
        (await other.hash(SESSION, found, Algorithm.SHA256)).verify(Digest.of(LARGE * 2))
        await other.publish(SESSION, found, Digest.of(LARGE * 2))
    assert await content_of(files, Digest.of(LARGE * 2), Generation(SESSION)) == LARGE * 2


def two_pieces(store: FileBlobs) -> Callable[[], Awaitable[tuple[Piece, ...]]]:
    """A condition for `eventually`: both pieces have all their bytes."""

    async def found() -> tuple[Piece, ...]:
        pieces = await store.recover(SESSION)
        return pieces if [piece.length for piece in pieces] == [len(LARGE)] * 2 else ()

    return found


async def test_a_writer_that_was_overtaken_cannot_change_the_copy(
    files: FileBlobs, tmp_path: Path
) -> None:
    """A stalled gateway that wakes after its piece was published finds no file to append to."""
    writer = files.piece(SESSION, 0)
    await writer.write(LARGE)
    async with opened(tmp_path / "blobs") as other:
        found = await eventually(recovering(other, SESSION), 60, "the piece has its bytes")
        await other.publish(SESSION, found, Digest.of(LARGE))
    with pytest.raises(UploadUnknown):
        await write_and_seal(writer, LARGE)
    assert await content_of(files, Digest.of(LARGE), Generation(SESSION)) == LARGE


async def test_a_cancelled_write_keeps_its_bytes(
    files: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is cut in the middle loses nothing that was taken from it (U36)."""
    gate = asyncio.Event()
    entered = asyncio.Event()
    loop = asyncio.get_running_loop()
    whole = os.writev

    def writev(descriptor: int, chunks: list[bytes]) -> int:
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(_passed(gate), loop).result(10)
        return whole(descriptor, chunks)

    monkeypatch.setattr(os, "writev", writev)
    writer = files.piece(SESSION, 0)

    async def body() -> None:
        for _ in range(3):
            await writer.write(LARGE)

    sending = asyncio.ensure_future(body())
    await entered.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    gate.set()
    piece = await writer.seal()
    assert piece.length == 2 * len(LARGE)
    (await files.hash(SESSION, [piece], Algorithm.SHA256)).verify(Digest.of(LARGE * 2))


async def _passed(gate: asyncio.Event) -> None:
    await gate.wait()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "x" * 200, "a\0b", "naïve"])
async def test_names_that_lead_elsewhere_are_unknown(files: FileBlobs, name: str) -> None:
    """No session and no generation reaches a file outside of its own folder."""
    session, digest = SessionId(name), Digest.of(b"")
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: put_piece(files, session, 0, b"content"),
        lambda: files.recover(session),
        lambda: files.publish(session, [], digest),
        lambda: files.abort(session),
    ]
    for call in calls:
        with pytest.raises(UploadUnknown):
            await call()
    with pytest.raises(BlobDamaged):
        await files.open(digest, Generation(name))


async def test_a_published_session_leaves_no_file_but_the_copy(
    files: FileBlobs, tmp_path: Path
) -> None:
    """After publish and abort the copy is all there is, under the name that the layout says."""
    pieces = [await put_piece(files, SESSION, n, b"content") for n in range(2)]
    digest = Digest.of(b"contentcontent")
    await files.publish(SESSION, pieces, digest)
    await files.abort(SESSION)
    await files.check()
    place = f"sha256/{digest.hex[:2]}/{digest.hex}.{SESSION}"
    assert names_below(tmp_path / "blobs") == [place]
    assert list((tmp_path / "blobs" / "uploads").iterdir()) == []


async def test_an_unusable_folder_is_named(tmp_path: Path) -> None:
    """A store that can't work says at the start which folder is the reason."""
    (tmp_path / "blobs").write_bytes(b"not a folder")
    with pytest.raises(StorageFailed, match="blobs"):
        await FileBlobs.open_store(tmp_path / "blobs")


async def test_a_store_without_its_folders_fails_its_check(
    files: FileBlobs, tmp_path: Path
) -> None:
    """A disk that went away is noticed by check, and is a failure rather than an unknown upload."""
    piece = await put_piece(files, SESSION, 0, b"content")
    (tmp_path / "blobs" / "sha256").rename(tmp_path / "gone")
    with pytest.raises(StorageFailed):
        await files.publish(SESSION, [piece], Digest.of(b"content"))
    (tmp_path / "blobs" / "uploads").rename(tmp_path / "gone too")
    with pytest.raises(StorageFailed):
        await files.check()


async def test_a_full_disk_passes_the_check(
    files: FileBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pulls go on from a full disk, so it must not make the site unready."""

    def write_bytes(_path: Path, _content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    await files.check()


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_nothing_stays_open(files: FileBlobs) -> None:
    """Blobs that were closed, cancelled or read while they were closed give their files back."""
    digest, generation = await put(files, LARGE)
    before = open_descriptors()
    for _ in range(20):
        blob = await files.open(digest, generation)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(blob.read(0, len(LARGE)))
            await asyncio.sleep(0)
            blob.close()
        assert reading.result() == LARGE
        with pytest.raises(ValueError, match="closed"):
            await blob.read(0, 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await files.open(digest, generation)
    await eventually(lambda: open_descriptors() <= before, 60, "all descriptors are closed")


@pytest.mark.parametrize("refused", [False, True], ids=["linked", "copied"])
async def test_a_reused_copy_is_the_same_file_where_links_are_taken(
    files: FileBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """It takes no space then; a filesystem that takes no links gets a second file."""

    def refuse(_source: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    if refused:
        monkeypatch.setattr(blob_folders, "_link", refuse)
    digest, first = await put(files, LARGE)
    second = await files.publish(OTHER, [await files.reuse(OTHER, digest, first)], digest)
    names = (tmp_path / "blobs").rglob(f"{digest.hex}.*")
    assert len({path.stat().st_ino for path in names}) == (2 if refused else 1)
    assert await content_of(files, digest, second) == LARGE
