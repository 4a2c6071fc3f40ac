"""Blobs of a site: who sees them, how they arrive, what a lost reply does."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from node import content, keys
from node.blobs import SessionId
from node.digest import Algorithm, Digest
from node.errors import (
    BlobDamaged,
    BlobUnknown,
    BodyBroken,
    BodyCut,
    DigestMismatch,
    InUse,
    MetadataUnavailable,
    StorageFull,
    UploadOutOfOrder,
    UploadUnknown,
)
from node.kv import prefix
from node.reference import Repository
from node.wire import codec
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import Fault, MemoryKV, once
from tests.model import GRACE_MS, OTHER, REPOSITORY, Model, chunks


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


async def _cut(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
    raise BodyBroken(sum(map(len, parts)))


def _sessions(model: Model) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(b"s/")]


async def test_a_body_for_an_upload_that_is_over_leaves_nothing(model: Model) -> None:
    """Its bytes may be written while the upload is cancelled: who finds it gone takes them away."""
    upload = await model.uploads.append(await model.uploads.start(REPOSITORY), chunks(b"one"))
    await model.uploads.abort(upload)
    with pytest.raises(UploadUnknown):
        await model.uploads.finish(upload, Digest.of(b"onetwo"), chunks(b"two"))
    assert list(await model.blobs.sessions()) == []


async def test_a_finished_upload_is_visible_in_its_repository_only(model: Model) -> None:
    """A blob is readable where it was pushed, and nowhere else."""
    digest = await model.upload(b"hello")
    blob = await model.content.stat(REPOSITORY, digest)
    assert blob.record.size == 5
    assert await model.content.read(digest) == b"hello"
    with pytest.raises(BlobUnknown):
        await model.content.stat(OTHER, digest)
    assert _sessions(model) == []


async def test_pieces_of_several_requests_become_one_blob(model: Model) -> None:
    """An upload may come in pieces, its end in the finishing request."""
    upload = await model.uploads.start(REPOSITORY)
    upload = await model.uploads.append(upload, chunks(b"he", b"l"))
    upload = await model.uploads.append(upload, chunks(b"lo"))
    assert upload.offset == 5
    await model.uploads.finish(upload, Digest.of(b"hello!"), chunks(b"!"))
    assert await model.content.read(Digest.of(b"hello!")) == b"hello!"


async def test_an_upload_begins_though_the_reply_was_lost(model: Model) -> None:
    """A session that was made goes on, one that was not is made, and not more often than twice."""
    for fault in (Fault.LOST_REPLY, Fault.LOST_REQUEST):
        model.kv.faults = once(fault)
        await model.uploads.finish(await model.uploads.start(REPOSITORY), Digest.of(b""))
    model.kv.faults = once(Fault.LOST_REQUEST, Fault.LOST_REQUEST)
    with pytest.raises(MetadataUnavailable):
        await model.uploads.start(REPOSITORY)
    assert _sessions(model) == []


async def test_another_process_may_go_on_with_an_upload(model: Model) -> None:
    """Nothing of an upload is in one gateway's memory only."""
    upload = await model.uploads.start(REPOSITORY)
    await model.uploads.append(upload, chunks(b"one"))
    second = Model(model.kv, model.blobs, site="fra#2")
    resumed = await second.uploads.resume(REPOSITORY, upload.session_id)
    assert resumed.offset == 3
    await second.uploads.finish(resumed, Digest.of(b"onetwo"), chunks(b"two"))
    assert await model.content.read(Digest.of(b"onetwo")) == b"onetwo"


async def test_a_digest_of_another_algorithm_is_hashed_again(model: Model) -> None:
    """sha512 may be asked for at the end, though sha256 ran meanwhile."""
    digest = Digest.of(b"hello", Algorithm.SHA512)
    upload = await model.uploads.append(await model.uploads.start(REPOSITORY), chunks(b"hello"))
    await model.uploads.finish(upload, digest)
    assert (await model.content.stat(REPOSITORY, digest)).record.size == 5


async def test_an_empty_blob_is_a_blob(model: Model) -> None:
    """A session without any byte finishes as the empty blob."""
    digest = Digest.of(b"")
    await model.uploads.finish(await model.uploads.start(REPOSITORY), digest)
    assert await model.content.read(digest) == b""


async def test_the_wrong_digest_leaves_nothing_behind(model: Model) -> None:
    """A mismatch ends the session and shows no blob."""
    upload = await model.uploads.start(REPOSITORY)
    with pytest.raises(DigestMismatch):
        await model.uploads.finish(upload, Digest.of(b"right"), chunks(b"wrong"))
    assert _sessions(model) == []
    assert not any(key.startswith(b"b/") for key in model.kv.entries())
    with pytest.raises(UploadUnknown):
        await model.uploads.resume(REPOSITORY, upload.session_id)


async def test_a_late_chunk_is_refused_and_dropped(model: Model) -> None:
    """Of two requests that began at one offset the second keeps nothing."""
    stale = await model.uploads.start(REPOSITORY)
    upload = await model.uploads.append(stale, chunks(b"abc"))
    with pytest.raises(UploadOutOfOrder) as refused:
        await model.uploads.append(stale, chunks(b"abc"))
    assert refused.value.offset == 3
    await model.uploads.finish(upload, Digest.of(b"abcd"), chunks(b"d"))


async def test_a_stale_finish_is_refused(model: Model) -> None:
    """Finishing from an offset that has moved on says where the upload is."""
    stale = await model.uploads.start(REPOSITORY)
    await model.uploads.append(stale, chunks(b"abc"))
    with pytest.raises((UploadOutOfOrder, UploadUnknown)):
        await model.uploads.finish(stale, Digest.of(b"xyz"), chunks(b"xyz"))


async def test_what_arrived_of_a_cut_body_stays(model: Model) -> None:
    """A client that was cut off finds its bytes and goes on after them."""
    upload = await model.uploads.start(REPOSITORY)
    with pytest.raises(BodyCut):
        await model.uploads.append(upload, _cut(b"abc"))
    upload = await model.uploads.resume(REPOSITORY, upload.session_id)
    assert upload.offset == 3
    await model.uploads.finish(upload, Digest.of(b"abcdef"), chunks(b"def"))


async def test_a_last_body_that_was_cut_may_be_sent_again(model: Model) -> None:
    """A client that tries its last request again, as it was, succeeds."""
    upload = await model.uploads.start(REPOSITORY)
    upload = await model.uploads.append(upload, chunks(b"abc"))
    with pytest.raises(BodyCut):
        await model.uploads.finish(upload, Digest.of(b"abcdef"), _cut(b"d"))
    upload = await model.uploads.resume(REPOSITORY, upload.session_id)
    await model.uploads.finish(upload, Digest.of(b"abcdef"), chunks(b"def"))


async def test_a_body_of_one_step_that_is_cut_leaves_nothing(model: Model) -> None:
    """A client that was never told of a session can't go on with it."""
    with pytest.raises(BodyCut):
        await model.uploads.put(REPOSITORY, Digest.of(b"abcdef"), _cut(b"abc"))
    assert _sessions(model) == []


async def test_a_session_is_its_repositorys_and_ends(model: Model) -> None:
    """Another repository, an aborted and an expired session are all unknown."""
    upload = await model.uploads.start(REPOSITORY)
    with pytest.raises(UploadUnknown):
        await model.uploads.resume(OTHER, upload.session_id)
    await model.uploads.abort(upload)
    with pytest.raises(UploadUnknown):
        await model.uploads.abort(upload)
    late = await model.uploads.start(REPOSITORY)
    model.time_ms = late.session.expires_ms
    with pytest.raises(UploadUnknown):
        await model.uploads.resume(REPOSITORY, late.session_id)
    with pytest.raises(UploadUnknown):
        await model.uploads.resume(REPOSITORY, SessionId("never"))


async def test_the_same_blob_twice_is_stored_once(model: Model) -> None:
    """The second copy of a blob is discarded; its repository sees the first."""
    digest = await model.upload(b"hello")
    first = (await model.content.stat(REPOSITORY, digest)).record.generation
    await model.upload(b"hello", OTHER)
    assert (await model.content.stat(OTHER, digest)).record.generation == first
    assert len(model.blobs.copies) == 1


async def test_pushing_a_lost_blob_again_heals_it(model: Model) -> None:
    """A record whose file is gone gets the new copy (P9)."""
    digest = await model.upload(b"hello")
    old = (await model.content.stat(REPOSITORY, digest)).record.generation
    model.blobs.lose(digest, old)
    await model.upload(b"hello")
    assert (await model.content.stat(REPOSITORY, digest)).record.generation != old
    assert await model.content.read(digest) == b"hello"


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST])
@pytest.mark.parametrize("nth", range(3))
async def test_an_upload_survives_a_lost_reply(model: Model, fault: Fault, nth: int) -> None:
    """Whatever reply of the last two transactions is lost, the blob is there, whole, once."""
    upload = await model.uploads.start(REPOSITORY)
    digest = Digest.of(b"hello")
    model.kv.faults = once(*[None] * nth, fault)
    await model.uploads.finish(upload, digest, chunks(b"hello"))
    model.kv.faults = once()
    assert await model.content.read(digest) == b"hello"
    assert len(model.blobs.copies) == 1
    assert _sessions(model) == []


async def test_a_lost_reply_to_an_append_keeps_the_piece(model: Model) -> None:
    """An append whose reply was lost is found in the session."""
    upload = await model.uploads.start(REPOSITORY)
    model.kv.faults = once(Fault.LOST_REPLY)
    upload = await model.uploads.append(upload, chunks(b"abc"))
    assert upload.offset == 3


async def test_a_ghost_of_an_upload_lands_once(model: Model) -> None:
    """A transaction that lands after its retry changes nothing."""
    upload = await model.uploads.start(REPOSITORY)
    digest = Digest.of(b"hello")
    await model.uploads.append(upload, chunks())
    model.kv.faults = once(None, None, Fault.GHOST)
    await model.uploads.finish(upload, digest, chunks(b"hello"))
    before = model.kv.entries()
    for _ in range(len(model.kv.ghosts)):
        model.kv.land()
    assert model.kv.entries() == before


async def test_a_mount_needs_a_source_that_sees_the_blob(model: Model) -> None:
    """A digest alone opens nothing: the source must see it (I19)."""
    digest = await model.upload(b"hello")
    with pytest.raises(BlobUnknown):
        await model.content.mount(REPOSITORY, OTHER, digest)
    await model.content.mount(OTHER, REPOSITORY, digest)
    await model.content.stat(OTHER, digest)


async def test_a_hidden_blob_is_gone_here_and_stays_elsewhere(model: Model) -> None:
    """Deleting a blob hides it in one repository; pushing it again shows it."""
    digest = await model.upload(b"hello")
    await model.content.mount(OTHER, REPOSITORY, digest)
    await model.content.hide(REPOSITORY, digest)
    with pytest.raises(BlobUnknown):
        await model.content.stat(REPOSITORY, digest)
    with pytest.raises(BlobUnknown):
        await model.content.hide(REPOSITORY, digest)
    await model.content.stat(OTHER, digest)
    await model.upload(b"hello")
    await model.content.stat(REPOSITORY, digest)


async def test_a_lost_reply_to_a_delete_is_no_404(model: Model) -> None:
    """A delete that was applied says so, though its reply was lost."""
    digest = await model.upload(b"hello")
    model.kv.faults = once(Fault.LOST_REPLY)
    await model.content.hide(REPOSITORY, digest)


async def test_a_referenced_blob_is_not_deleted(model: Model) -> None:
    """A visible tag stays wholly pullable (P3)."""
    await model.image("v1", layer=b"layer")
    with pytest.raises(InUse):
        await model.content.hide(REPOSITORY, Digest.of(b"layer"))


async def test_head_renews_an_old_pin_and_only_that(model: Model) -> None:
    """A client that was told of a blob finds it for the grace time; a young pin costs no write."""
    digest = await model.upload(b"hello")
    key = keys.pin(digest, REPOSITORY)
    blob = await model.content.stat(REPOSITORY, digest)
    before = model.kv.entries()[key]
    await model.content.renew(REPOSITORY, blob, GRACE_MS)
    assert model.kv.entries()[key] == before
    model.time_ms += GRACE_MS // 2
    await model.content.renew(REPOSITORY, blob, GRACE_MS)
    assert codec.decode_pin(model.kv.entries()[key]).expires_ms == model.time_ms + GRACE_MS


async def test_a_failed_renewal_never_fails_the_read(model: Model) -> None:
    """A HEAD answers although its pin could not be renewed."""
    blob = await model.content.stat(REPOSITORY, await model.upload(b"hello"))
    model.time_ms += GRACE_MS
    model.kv.faults = once(Fault.REFUSED)
    await model.content.renew(REPOSITORY, blob, GRACE_MS)


async def test_adopting_takes_what_the_site_has(model: Model) -> None:
    """Replication fetches only what no repository of the site has, or what is damaged."""
    digest = await model.upload(b"hello")
    assert await model.content.adopt(OTHER, digest)
    assert not await model.content.adopt(OTHER, Digest.of(b"unknown"))
    generation = (await model.content.stat(OTHER, digest)).record.generation
    model.blobs.lose(digest, generation)
    assert not await model.content.adopt(Repository("third"), digest)


async def test_a_full_store_takes_no_upload() -> None:
    """Below the reserve an upload is refused before its first byte."""
    model = Model(MemoryKV(), MemoryBlobs(capacity_bytes=100))
    await model.upload(b"x" * 96)
    with pytest.raises(StorageFull):
        await model.uploads.start(REPOSITORY)


async def test_what_says_that_an_operation_was_applied_goes_away() -> None:
    """Operations are bound to a lease: nobody has to remove them."""
    seconds = 0.0
    model = Model(MemoryKV(clock=lambda: seconds))
    await model.upload(b"hello")
    (operations,) = (await model.kv.read([prefix(b"o/")])).ranges
    assert operations
    seconds = 3 * 3600.0
    (operations,) = (await model.kv.read([prefix(b"o/")])).ranges
    assert operations == ()


async def test_a_body_that_lost_the_race_never_lends_its_hash(model: Model) -> None:
    """Two requests write at one offset: the digest of one never names the bytes of the other."""
    stale = await model.uploads.start(REPOSITORY)
    mine, theirs = b"m" * 10, b"t" * 10
    upload = await model.uploads.append(stale, chunks(mine))
    with pytest.raises(UploadOutOfOrder):
        await model.uploads.append(stale, chunks(theirs))
    with pytest.raises(DigestMismatch):
        await model.uploads.finish(upload, Digest.of(theirs))


async def test_a_refused_append_never_lends_its_hash(model: Model) -> None:
    """What a gateway could not record is forgotten, hash and all."""
    stale = await model.uploads.start(REPOSITORY)
    model.kv.faults = once(Fault.REFUSED)
    with pytest.raises(MetadataUnavailable):
        await model.uploads.append(stale, chunks(b"m" * 10))
    other = Model(model.kv, model.blobs, site="fra#2")
    upload = await other.uploads.append(stale, chunks(b"t" * 10))
    with pytest.raises(DigestMismatch):
        await model.uploads.finish(upload, Digest.of(b"m" * 10))


async def test_a_finish_that_was_refused_may_be_repeated(model: Model) -> None:
    """The copy has its name and the KV refused: the client's next try finds it and succeeds."""
    digest = Digest.of(b"hello")
    upload = await model.uploads.append(await model.uploads.start(REPOSITORY), chunks(b"hello"))
    model.kv.faults = once(Fault.REFUSED)
    with pytest.raises(MetadataUnavailable):
        await model.uploads.finish(upload, digest)
    again = Model(model.kv, model.blobs, site="fra#2")
    await again.uploads.finish(await again.uploads.resume(REPOSITORY, upload.session_id), digest)
    assert await model.content.read(digest) == b"hello"


async def test_a_session_whose_bytes_are_lost_ends(model: Model) -> None:
    """A power cut took the pieces: nothing waits for them for ever."""
    digest = Digest.of(b"hello")
    upload = await model.uploads.append(
        await model.uploads.start(REPOSITORY, digest), chunks(b"hello")
    )
    await model.blobs.abort(upload.session_id)
    with pytest.raises(UploadUnknown):
        await model.uploads.recover(upload)
    assert _sessions(model) == []


async def test_a_copy_that_was_cut_short_is_healed_by_a_push(model: Model) -> None:
    """A copy of the wrong length is damaged, for a reader and for the next push alike (P9)."""
    digest = await model.upload(b"hello")
    old = (await model.content.stat(REPOSITORY, digest)).record.generation
    model.blobs.damage(digest, old, b"hel")
    with pytest.raises(BlobDamaged):
        await model.content.read(digest)
    await model.upload(b"hello")
    assert await model.content.read(digest) == b"hello"


async def test_no_large_blob_is_read_into_memory(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what can be a manifest's body is read whole."""
    monkeypatch.setattr(content, "SMALL_BYTES", 4)
    digest = await model.upload(b"hello")
    with pytest.raises(BlobUnknown):
        await model.content.read(digest)
