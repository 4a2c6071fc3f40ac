"""Bodies that are in memory: stored by one call, and what is left where that fails."""

from __future__ import annotations

from itertools import product

import pytest

from node.errors import StorageFailed, StorageFull
from tests.fake_blobs import Call
from tests.fake_kv import Fault, MemoryKV, once
from tests.model import OTHER, REPOSITORY, Model, chunks

BROKEN = StorageFailed("broken")


@pytest.fixture
def model() -> Model:
    """An empty site."""
    return Model(MemoryKV())


def _sessions(model: Model) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(b"s/")]


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST])
@pytest.mark.parametrize("store", [True, False])
async def test_a_second_copy_goes_though_a_reply_was_lost(
    model: Model, fault: Fault, store: bool
) -> None:
    """Nobody is told then that the record names the first one, so it is looked up."""
    digest = await model.upload(b"hello")
    upload = await model.uploads.start(REPOSITORY)
    if store:
        model.kv.faults = once(None, fault)
        await model.uploads.store(OTHER, digest, b"hello")
        await model.uploads.abort(upload)
    else:
        model.kv.faults = once(fault)
        await model.uploads.finish(upload, digest, chunks(b"hello"))
    model.kv.faults = once()
    assert await model.content.read(digest) == b"hello"
    assert len(model.blobs.copies) == 1
    assert _sessions(model) == []


@pytest.mark.parametrize(
    ("call", "error"),
    [
        *product([Call.WRITE, Call.PUBLISH, Call.PUBLISHED], [StorageFull(0), BROKEN]),
        (Call.OPEN, BROKEN),
    ],
)
async def test_a_body_that_can_not_be_stored_leaves_nothing(
    model: Model, call: Call, error: StorageFull | StorageFailed
) -> None:
    """No session of it is left, no piece, and what the record names stays."""
    digest = await model.upload(b"hello")
    model.blobs.faults.fail_next(call, error)
    with pytest.raises(type(error)):
        await model.uploads.store(OTHER, digest, b"hello")
    assert _sessions(model) == []
    assert list(await model.blobs.sessions()) == []
    assert await model.content.read(digest) == b"hello"
    assert call is Call.PUBLISHED or len(model.blobs.copies) == 1
