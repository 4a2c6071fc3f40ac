"""What every blob store promises, held against the files and against the fake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.blob_files import FileBlobs
from node.blobs import BlobStore, Copy, Generation, Piece, SessionId
from node.digest import Algorithm, Digest, Verifier
from node.errors import BlobDamaged, DigestMismatch, UploadUnknown
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
from tests.fake_blobs import MemoryBlobs
from tests.waiting import eventually


@pytest.fixture(params=["files", "memory"])
async def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    """Every adapter in turn."""
    if request.param == "memory":
        yield MemoryBlobs()
        return
    store = await FileBlobs.open_store(tmp_path / "blobs", threads=4)
    yield store
    await store.close()


@pytest.mark.parametrize("content", [b"", b"x", b"small", LARGE], ids=["0", "1", "5", "large"])
async def test_what_is_published_is_what_is_read(blobs: BlobStore, content: bytes) -> None:
    """Bytes come back as they were written, whatever their number."""
    digest, generation = await put(blobs, content)
    assert generation == Generation(SESSION)
    assert await content_of(blobs, digest, generation) == content


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(chunks=st.lists(st.binary(max_size=200), max_size=30), times=st.sampled_from([1, 5_000]))
async def test_chunks_may_be_of_any_size(blobs: BlobStore, chunks: list[bytes], times: int) -> None:
    """However a body is cut, the piece is the chunks in order and the verifier has seen them."""
    verifier = Verifier()
    sent = [chunk * times for chunk in chunks]
    piece = await put_piece(blobs, SESSION, 0, *sent, verifier=verifier)
    content = b"".join(sent)
    assert piece.length == verifier.size == len(content)
    verifier.verify(Digest.of(content))
    generation = await blobs.publish(SESSION, [piece], Digest.of(content))
    assert await content_of(blobs, Digest.of(content), generation) == content


async def test_thousands_of_tiny_chunks_make_one_piece(blobs: BlobStore) -> None:
    """A client that sends byte by byte gets its bytes stored like any other."""
    piece = await put_piece(blobs, SESSION, 0, *[b"%d" % (n % 10) for n in range(5_000)])
    assert piece.length == 5_000
    await blobs.publish(SESSION, [piece], Digest.of(b"0123456789" * 500))
    found = await content_of(blobs, Digest.of(b"0123456789" * 500), Generation(SESSION))
    assert found == b"0123456789" * 500


async def test_a_chunk_may_be_changed_after_it_was_taken(blobs: BlobStore) -> None:
    """The writer keeps no view of a buffer that belongs to somebody else."""
    writer, buffer = blobs.piece(SESSION, 0), bytearray(b"right")
    await writer.write(buffer)
    await writer.write(memoryview(buffer)[:2])
    buffer[:] = b"wrong"
    piece = await writer.seal()
    await blobs.publish(SESSION, [piece], Digest.of(b"rightri"))
    assert await content_of(blobs, Digest.of(b"rightri"), Generation(SESSION)) == b"rightri"


async def test_reads_stay_inside_the_blob(blobs: BlobStore) -> None:
    """A read gives at most what was asked, and nothing at the end."""
    for content, session in ((b"0123456789", SESSION), (LARGE, OTHER)):
        blob = await blobs.open(*await put(blobs, content, session))
        assert blob.size == len(content)
        assert await blob.read(3, 4) == content[3:7]
        assert await blob.read(len(content) - 2, 100) == content[-2:]
        assert await blob.read(len(content), 100) == b""
        blob.close()
        blob.close()


async def test_several_pieces_become_one_copy_in_the_order_given(blobs: BlobStore) -> None:
    """Of each piece exactly the recorded bytes, in order; an empty one among them adds nothing."""
    bodies = [LARGE, b"", b"second", LARGE[:70_000]]
    pieces = [await put_piece(blobs, SESSION, n, body) for n, body in enumerate(bodies)]
    pieces[3] = Piece(pieces[3].name, 60_000)
    content = LARGE + b"second" + LARGE[:60_000]
    generation = await blobs.publish(SESSION, pieces, Digest.of(content))
    assert await content_of(blobs, Digest.of(content), generation) == content


async def test_a_single_piece_is_cut_to_its_recorded_length(blobs: BlobStore) -> None:
    """Bytes that a request brought and no record took in are no part of the copy."""
    piece = await put_piece(blobs, SESSION, 0, LARGE)
    kept = Piece(piece.name, 123_456)
    await blobs.publish(SESSION, [kept], Digest.of(LARGE[:123_456]))
    found = await content_of(blobs, Digest.of(LARGE[:123_456]), Generation(SESSION))
    assert found == LARGE[:123_456]


async def test_no_piece_at_all_is_the_empty_blob(blobs: BlobStore) -> None:
    """A session that never saw a byte can still be finished."""
    empty = Digest.of(b"")
    assert await content_of(blobs, empty, await blobs.publish(SESSION, [], empty)) == b""


@pytest.mark.parametrize("content", [b"", b"small", LARGE], ids=["0", "5", "large"])
async def test_a_small_body_becomes_a_copy_in_one_call(blobs: BlobStore, content: bytes) -> None:
    """And nothing else is left of its session, so it may be stored again."""
    digest = Digest.of(content)
    for _ in range(2):
        assert await blobs.store(SESSION, content, digest) == Generation(SESSION)
        assert await content_of(blobs, digest, Generation(SESSION)) == content
        assert list(await blobs.sessions()) == []


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_a_blob_has_a_place_under_every_algorithm(
    blobs: BlobStore, algorithm: Algorithm
) -> None:
    """sha512 blobs are stored like sha256 blobs."""
    piece = await put_piece(blobs, SESSION, 0, b"content")
    digest = Digest.of(b"content", algorithm)
    assert await content_of(blobs, digest, await blobs.publish(SESSION, [piece], digest))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda piece: Piece("0-0123456789abcdef", piece.length),
        lambda piece: Piece("../../elsewhere", piece.length),
        lambda piece: Piece(piece.name, piece.length + 1),
    ],
    ids=["another name", "a name that leads out", "shorter than recorded"],
)
async def test_a_piece_that_is_not_there_is_an_unknown_upload(
    blobs: BlobStore, wrong: Callable[[Piece], Piece]
) -> None:
    """Neither hash nor publish takes a piece that is gone or has lost bytes."""
    piece = await put_piece(blobs, SESSION, 0, b"content")
    digest = Digest.of(b"content")
    for pieces in ([wrong(piece)], [piece, wrong(piece)]):
        with pytest.raises(UploadUnknown):
            await blobs.hash(SESSION, pieces, Algorithm.SHA256)
        with pytest.raises(UploadUnknown):
            await blobs.publish(SESSION, pieces, digest)
    with pytest.raises(BlobDamaged):
        await blobs.open(digest, Generation(SESSION))


async def test_publishing_twice_is_publishing_once(blobs: BlobStore) -> None:
    """Who comes second, or again after a crash, finds the copy, and it is not touched."""
    piece = await put_piece(blobs, SESSION, 0, LARGE)
    digest = Digest.of(LARGE)
    outcomes = await asyncio.gather(*(blobs.publish(SESSION, [piece], digest) for _ in range(3)))
    assert outcomes == [Generation(SESSION)] * 3
    assert await content_of(blobs, digest, Generation(SESSION)) == LARGE
    with pytest.raises(UploadUnknown):
        await blobs.publish(SESSION, [piece], Digest.of(b"other"))
    with pytest.raises(UploadUnknown):
        await blobs.publish(SESSION, [replace(piece, length=piece.length - 1)], digest)


async def test_two_writers_of_one_number_never_share_a_file(blobs: BlobStore) -> None:
    """Each finds its own bytes, although both wrote piece 0 of one session at once."""
    one, two = blobs.piece(SESSION, 0), blobs.piece(SESSION, 0)
    for n in range(20):
        await one.write(b"1" * 100_000)
        await two.write(b"2" * (n + 1))
    first, second = await one.seal(), await two.seal()
    assert first.name != second.name
    verifier = await blobs.hash(SESSION, [first], Algorithm.SHA256)
    verifier.verify(Digest.of(b"1" * 2_000_000))
    verifier = await blobs.hash(SESSION, [second], Algorithm.SHA256)
    verifier.verify(Digest.of(b"2" * 210))


async def test_generations_never_collide(blobs: BlobStore) -> None:
    """One digest under two sessions is two copies: removing one leaves the other readable."""
    digest, first = await put(blobs, b"content", SESSION)
    _, second = await put(blobs, b"content", OTHER)
    assert first != second
    await blobs.delete(digest, first)
    await blobs.delete(digest, first)
    with pytest.raises(BlobDamaged) as caught:
        await blobs.open(digest, first)
    assert caught.value.digest == str(digest)
    assert await content_of(blobs, digest, second) == b"content"


@pytest.mark.parametrize("content", [b"content", LARGE], ids=["small", "large"])
async def test_an_open_copy_outlives_its_removal(blobs: BlobStore, content: bytes) -> None:
    """A pull that began goes on to its end (RELIABILITY 5.3)."""
    digest, generation = await put(blobs, content)
    blob = await blobs.open(digest, generation)
    await blobs.delete(digest, generation)
    assert await blob.read(0, len(content)) == content
    blob.close()


async def test_recover_finds_the_longest_of_each_number_up_to_a_gap(blobs: BlobStore) -> None:
    """After a crash the pieces stand in order of their numbers; what follows a gap is no use."""
    await put_piece(blobs, SESSION, 0, b"short")
    zero = await put_piece(blobs, SESSION, 0, b"longer than short")
    tail = [await put_piece(blobs, SESSION, n, b"%d" % n) for n in range(1, 12)]
    await put_piece(blobs, SESSION, 13, b"after the gap")
    assert await blobs.recover(SESSION) == (zero, *tail)
    assert await blobs.recover(OTHER) == ()


async def test_recover_needs_the_first_number(blobs: BlobStore) -> None:
    """Without its beginning nothing of a session is of use."""
    await put_piece(blobs, SESSION, 1, b"second")
    assert await blobs.recover(SESSION) == ()


@pytest.mark.parametrize("algorithm", list(Algorithm))
async def test_hashing_again_equals_hashing_at_once(blobs: BlobStore, algorithm: Algorithm) -> None:
    """The pieces read again give the digest of their bytes; exactly the recorded ones count."""
    pieces = [
        await put_piece(blobs, SESSION, 0, LARGE),
        await put_piece(blobs, SESSION, 1, b""),
        await put_piece(blobs, SESSION, 2, b"the end, and more"),
    ]
    pieces[2] = Piece(pieces[2].name, 7)
    verifier = await blobs.hash(SESSION, pieces, algorithm)
    verifier.verify(Digest.of(LARGE + b"the end", algorithm))
    assert verifier.size == len(LARGE) + 7
    with pytest.raises(DigestMismatch):
        verifier.verify(Digest.of(LARGE, algorithm))


async def test_one_verifier_goes_through_several_pieces(blobs: BlobStore) -> None:
    """A process that wrote all pieces needs no second look at them."""
    verifier = Verifier()
    for number, body in enumerate((LARGE, b"more", LARGE)):
        await put_piece(blobs, SESSION, number, body, verifier=verifier)
    verifier.verify(Digest.of(LARGE + b"more" + LARGE))


async def test_abort_removes_a_session_and_nothing_else(blobs: BlobStore) -> None:
    """Pieces go, copies and other sessions stay, and an unknown session is no error."""
    digest, generation = await put(blobs, b"content")
    piece = await put_piece(blobs, SESSION, 1, LARGE)
    other = await put_piece(blobs, OTHER, 0, b"other")
    await blobs.abort(SESSION)
    await blobs.abort(SESSION)
    assert await blobs.recover(SESSION) == ()
    with pytest.raises(UploadUnknown):
        await blobs.publish(SESSION, [piece], Digest.of(LARGE))
    assert await blobs.recover(OTHER) == (other,)
    assert await content_of(blobs, digest, generation) == b"content"


async def test_a_dropped_piece_is_gone(blobs: BlobStore) -> None:
    """Dropping forgets what was written, also if nothing was, and may be done twice."""
    writer = blobs.piece(SESSION, 0)
    await writer.write(LARGE)
    await writer.drop()
    await writer.drop()
    await blobs.piece(SESSION, 0).drop()
    assert await blobs.recover(SESSION) == ()


async def test_a_writer_learns_that_its_session_is_gone(blobs: BlobStore) -> None:
    """What is written after an abort is refused, and never lands in a file that was published."""
    writer = blobs.piece(SESSION, 0)
    await writer.write(LARGE)
    await eventually(recovering(blobs, SESSION), 60, "the first bytes are there")
    await blobs.abort(SESSION)
    with pytest.raises(UploadUnknown):
        await write_and_seal(writer, LARGE)


async def test_opening_what_never_was_is_damage(blobs: BlobStore) -> None:
    """A record without a copy is the blob's damage, not an absence."""
    with pytest.raises(BlobDamaged):
        await blobs.open(Digest.of(b"never"), Generation("never"))


async def test_usage_and_check_answer(blobs: BlobStore) -> None:
    """Sizes are sane, and a store that works says so without leaving anything behind."""
    await blobs.check()
    usage = await blobs.usage()
    assert 0 < usage.free_bytes <= usage.total_bytes
    assert await blobs.recover(SESSION) == ()


async def test_the_store_tells_of_which_sessions_it_holds_bytes(blobs: BlobStore) -> None:
    """A session is there from its first byte to its end, and a copy is none."""
    await put(blobs, LARGE)
    await blobs.abort(SESSION)
    assert list(await blobs.sessions()) == []
    await put_piece(blobs, OTHER, 0, b"some")
    assert list(await blobs.sessions()) == [OTHER]
    await blobs.check()
    await blobs.abort(OTHER)
    assert list(await blobs.sessions()) == []


async def test_copies_that_are_missing_are_told(blobs: BlobStore) -> None:
    """Those that never were, are gone, or have another length; whatever their generation is."""
    digest, generation = await put(blobs, LARGE)
    there = Copy(digest, generation, len(LARGE))
    _, other = await put(blobs, LARGE, OTHER)
    await blobs.delete(digest, other)
    missing = [
        replace(there, generation=other),
        replace(there, size=len(LARGE) - 1),
        Copy(Digest.of(b"never"), generation, 5),
        replace(there, generation=Generation("../escape")),
        replace(there, generation=Generation("")),
    ]
    assert list(await blobs.missing([there, *missing, there])) == missing
    assert list(await blobs.missing([])) == []


async def test_every_copy_of_a_digest_is_told_and_no_other(blobs: BlobStore) -> None:
    """Named by a record or not; of what never was, there is none."""
    digest, first = await put(blobs, LARGE)
    _, second = await put(blobs, LARGE, OTHER)
    await put(blobs, b"another", SessionId("session-3"))
    assert set(await blobs.generations(digest)) == {first, second}
    await blobs.delete(digest, first)
    assert list(await blobs.generations(digest)) == [second]
    assert list(await blobs.generations(Digest.of(b"never"))) == []
    assert list(await blobs.generations(Digest.of(LARGE, Algorithm.SHA512))) == []


@pytest.mark.parametrize("content", [b"", b"small", LARGE], ids=["0", "5", "large"])
async def test_a_copy_is_published_once_more_from_itself(blobs: BlobStore, content: bytes) -> None:
    """Both copies stand by themselves: whichever goes, the other has the bytes."""
    digest, first = await put(blobs, content)
    piece = await blobs.reuse(OTHER, digest, first)
    assert piece.length == len(content)
    (await blobs.hash(OTHER, [piece], Algorithm.SHA256)).verify(digest)
    second = await blobs.publish(OTHER, [piece], digest)
    await blobs.abort(OTHER)
    assert await content_of(blobs, digest, first) == content
    await blobs.delete(digest, first)
    assert await content_of(blobs, digest, second) == content


async def test_what_is_reused_and_given_up_leaves_the_copy(blobs: BlobStore) -> None:
    """The end of the session takes nothing from the copy; of a copy that is gone there is none."""
    digest, generation = await put(blobs, LARGE)
    await blobs.reuse(OTHER, digest, generation)
    await blobs.abort(OTHER)
    assert OTHER not in await blobs.sessions()
    assert await content_of(blobs, digest, generation) == LARGE
    with pytest.raises(BlobDamaged):
        await blobs.reuse(OTHER, digest, Generation("never"))
    assert await blobs.recover(OTHER) == ()
