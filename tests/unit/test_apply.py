"""Applying a peer's change to a site over fakes: what the plan's rows alone do not show."""

from __future__ import annotations

import json

import pytest

from node.change import Change
from node.digest import Digest
from node.errors import PeerLied, PeerUnavailable, StorageFull
from node.keys import ManifestName, Name, TagName
from node.manifest import OCI_ARTIFACT, OCI_MANIFEST
from node.records import Pushed
from node.reference import Tag
from node.register import Dot, Register
from node.replica import Replica
from replicator.apply import Applied, Apply, Parked
from replicator.bodies import Bodies
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model, descriptor


class _Silent:
    """A source that answers nothing, or this error, and a transfer that has nothing to bring."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error

    async def keys(self, names: object) -> dict[Name, Change | None]:
        """See Source."""
        raise self._error or AssertionError(names)

    async def body(self, *of: object) -> bytes:
        """See Source."""
        raise AssertionError(of)

    async def ensure(self, *wanted: object) -> None:
        """See Blobs."""
        raise AssertionError(wanted)


@pytest.fixture
def model() -> Model:
    """The site that applies."""
    return Model(MemoryKV())


def _replica(model: Model) -> Replica:
    return Replica(model.decider, new_id=model.new_id)


def _apply(model: Model, error: Exception | None = None) -> Apply:
    silent = _Silent(error)
    return Apply(_replica(model), silent, silent, Bodies(model.content, model.uploads))


async def _artifact(model: Model) -> ManifestName:
    """An artifact manifest, which only what its pusher said tells from an image's."""
    blob = await model.upload(b"blob")
    document = {"schemaVersion": 2, "artifactType": "a/b", "blobs": [descriptor(blob)]}
    digest = await model.push(json.dumps(document).encode(), media_type=OCI_ARTIFACT)
    return ManifestName(REPOSITORY, digest)


async def _tombstone(model: Model, name: ManifestName) -> Change:
    held = await _replica(model).manifest(name, None)
    return Change(name, Register(held.register.ctx), 9)


def _references(model: Model, by: Digest) -> list[bytes]:
    return [k for k in model.kv.entries() if k.startswith(b"r/") and k.endswith(by.packed)]


async def test_a_deleted_artifact_lets_go_of_its_blobs(model: Model) -> None:
    """Its media type is remembered from when it lived, for its body does not tell it."""
    name = await _artifact(model)
    assert _references(model, name.digest)
    assert await _apply(model).apply(await _tombstone(model, name)) == Applied()
    assert not _references(model, name.digest)


async def test_a_dead_body_that_does_not_say_what_it_was_parks_nothing(model: Model) -> None:
    """After a crash between the delete and the tidying up nobody knows its media type."""
    name = await _artifact(model)
    tombstone = await _tombstone(model, name)
    held = await _replica(model).manifest(name, None)
    await _replica(model).bury(name, held, tombstone.register)
    assert await _apply(model).apply(tombstone) == Applied()


@pytest.mark.parametrize(
    ("error", "everywhere"),
    [
        pytest.param(PeerUnavailable("nyc", "no route", reached=False), True, id="peer away"),
        pytest.param(StorageFull(0), True, id="disk full"),
        pytest.param(PeerUnavailable("nyc", "answered 500"), False, id="peer failed at this"),
        pytest.param(PeerLied("nyc", "a", "b"), False, id="peer lied"),
    ],
)
async def test_what_is_not_the_changes_own_fault_is_told_apart(
    model: Model, error: Exception, everywhere: bool
) -> None:
    """Whoever tries many changes stops at a reason that the others share, and at no other."""
    _, body = await model.image()
    shown = Pushed(1, Digest.of(body + b" "), OCI_MANIFEST, len(body) + 1, "op")
    change = Change(TagName(REPOSITORY, Tag("v1")), Register({"n": 1}, {Dot("n", 1): shown}), 1)
    assert await _apply(model, error).apply(change) == Parked(str(error), everywhere)
