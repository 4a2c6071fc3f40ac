"""Blobs taken from files that no record names: verified, and never at the cost of the file."""

from __future__ import annotations

import pytest

from node import keys
from node.blobs import Generation, Piece, SessionId, Usage
from node.digest import Digest
from node.errors import BlobUnknown, StorageFull
from node.manifest import Descriptor
from replicator.bodies import Bodies
from tests.blob_calls import once, put
from tests.blob_peers import BlobPeer, transfer
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV
from tests.model import OTHER, REPOSITORY, Model
from tests.salvaging import salvage_of

CONTENT = b"what the site still has"
DIGEST = Digest.of(CONTENT)
LEFT = SessionId("left")


class _Full(MemoryBlobs):
    """A store that may be down to its reserve."""

    free_bytes = 1000
    reused = 0

    async def usage(self) -> Usage:
        """See BlobStore."""
        return Usage(1000, self.free_bytes)

    async def reuse(self, session: SessionId, digest: Digest, generation: Generation) -> Piece:
        """See BlobStore."""
        self.reused += 1
        return await super().reuse(session, digest, generation)


@pytest.fixture
def model() -> Model:
    """A site without metadata."""
    return Model(MemoryKV(), _Full())


async def _leave(model: Model, content: bytes, session: SessionId) -> None:
    """Have a file that no record names."""
    await put(model.blobs, content, session)
    await model.blobs.abort(session)


async def _visible(model: Model) -> bool:
    try:
        blob = await model.content.stat(REPOSITORY, DIGEST)
    except BlobUnknown:
        return False
    opened = await model.content.open(DIGEST, blob.record)
    return await opened.read(0, 1000) == CONTENT


def _sessions(model: Model) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(b"s/")]


async def test_a_file_becomes_the_blob(model: Model) -> None:
    """It is pinned in the repository under a generation of its own, and the file stays."""
    await _leave(model, CONTENT, LEFT)
    assert await salvage_of(model).take(REPOSITORY, DIGEST)
    assert await _visible(model)
    record = (await model.content.stat(REPOSITORY, DIGEST)).record
    assert record.generation != Generation(LEFT)
    assert (DIGEST, Generation(LEFT)) in model.blobs.copies
    assert _sessions(model) == []
    assert await model.blobs.sessions() == []


async def test_nothing_is_taken_where_nothing_is(model: Model) -> None:
    """A site that never had the blob writes nothing for it."""
    await _leave(model, b"another blob", LEFT)
    assert not await salvage_of(model).take(REPOSITORY, DIGEST)
    assert model.kv.entries() == {}


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b".", b"", CONTENT[::-1]])
async def test_a_file_of_other_bytes_is_no_blob(model: Model, content: bytes) -> None:
    """Cut short, too long, empty or changed: it is left alone, and so is nothing else."""
    await _leave(model, CONTENT, LEFT)
    model.blobs.damage(DIGEST, Generation(LEFT), content)
    assert not await salvage_of(model).take(REPOSITORY, DIGEST)
    assert not await _visible(model)
    assert model.blobs.copies == {(DIGEST, Generation(LEFT)): content}
    assert _sessions(model) == []
    assert await model.blobs.sessions() == []


async def test_a_file_of_other_bytes_is_read_once(model: Model) -> None:
    """However often its blob is looked for while no peer has it; another file of it is read."""
    assert isinstance(model.blobs, _Full)
    await _leave(model, CONTENT, LEFT)
    model.blobs.damage(DIGEST, Generation(LEFT), CONTENT[::-1])
    salvage = salvage_of(model)
    for _ in range(3):
        assert not await salvage.take(REPOSITORY, DIGEST)
    assert model.blobs.reused == 1
    await _leave(model, CONTENT, SessionId("sound"))
    assert await salvage.take(REPOSITORY, DIGEST)


async def test_a_sound_file_is_taken_beside_a_damaged_one(model: Model) -> None:
    """Of several copies any sound one will do."""
    for session in ("bad-1", "good", "bad-2"):
        await _leave(model, CONTENT, SessionId(session))
    model.blobs.damage(DIGEST, Generation("bad-1"), b"bad")
    model.blobs.damage(DIGEST, Generation("bad-2"), b"bad")
    assert await salvage_of(model).take(REPOSITORY, DIGEST)
    assert await _visible(model)


async def test_the_file_of_an_upload_that_is_not_done_yet_stays_its_own(model: Model) -> None:
    """Its T1 comes later, finds the blob sound, and removes no name but its own."""
    upload = await model.uploads.start(OTHER)
    await _leave(model, CONTENT, upload.session_id)
    assert await salvage_of(model).take(REPOSITORY, DIGEST)
    await model.uploads.finish(upload, DIGEST, once(CONTENT))
    assert await _visible(model)
    await model.content.stat(OTHER, DIGEST)
    assert len(model.blobs.copies) == 1


async def test_a_record_without_its_file_is_mended_by_another_file(model: Model) -> None:
    """The blob's own copy was lost: the record then names the one that was found."""
    await model.upload(CONTENT)
    lost = (await model.content.stat(REPOSITORY, DIGEST)).record.generation
    await _leave(model, CONTENT, LEFT)
    model.blobs.lose(DIGEST, lost)
    assert await salvage_of(model).take(REPOSITORY, DIGEST)
    assert await _visible(model)


async def test_a_full_store_takes_nothing(model: Model) -> None:
    """At the reserve nothing is begun, and nothing is left of the attempt."""
    await _leave(model, CONTENT, LEFT)
    assert isinstance(model.blobs, _Full)
    model.blobs.free_bytes = 10
    with pytest.raises(StorageFull):
        await salvage_of(model).take(REPOSITORY, DIGEST)
    assert model.kv.entries() == {}


async def test_transfers_and_bodies_look_for_files_first(model: Model) -> None:
    """No peer is asked for what a file here has: neither for layers nor for manifests' bodies."""
    salvage = salvage_of(model)
    layer, body = b"a layer", b'{"schemaVersion": 2}'
    await _leave(model, layer, LEFT)
    await _leave(model, body, SessionId("left-too"))
    wanted = Descriptor("application/octet-stream", Digest.of(layer), len(layer))
    await transfer(model, BlobPeer({})).ensure(REPOSITORY, [wanted])
    await model.content.stat(REPOSITORY, wanted.digest)
    bodies = Bodies(model.content, model.uploads, salvage)
    assert await bodies.read(Digest.of(body)) is None
    assert await bodies.find(REPOSITORY, Digest.of(body)) == body
    assert await bodies.find(REPOSITORY, DIGEST) is None


async def test_all_is_found_again_when_the_metadata_is_gone(model: Model) -> None:
    """A whole image can be taken back into an empty KV, as often as that is lost."""
    digest, body = await model.image("v1", layer=CONTENT)
    for _ in range(2):
        model.kv.lose(*(key for key in model.kv.entries() if key != keys.SITE))
        for wanted in (DIGEST, Digest.of(b"{}"), digest):
            assert await salvage_of(model).take(REPOSITORY, wanted)
        assert await model.content.read(digest) == body
        assert await _visible(model)
