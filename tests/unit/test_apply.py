"""Applying a peer's change to a site over fakes: what the plan's rows alone do not show."""

from __future__ import annotations

import json

import pytest

from node.change import Change
from node.digest import Digest
from node.keys import ManifestName, Name
from node.manifest import OCI_ARTIFACT
from node.register import Register
from node.replica import Replica
from replicator.apply import Applied, Apply
from replicator.bodies import Bodies
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model, descriptor


class _Silent:
    """A source that is asked for nothing, and a transfer that has nothing to bring."""

    async def keys(self, names: object) -> dict[Name, Change | None]:
        """See Source."""
        raise AssertionError(names)

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


def _apply(model: Model) -> Apply:
    silent = _Silent()
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
