"""Applying a peer's change to a site over fakes: what the plan's rows alone do not show."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

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
from tests.model import REPOSITORY, Model, descriptor, image_body
from tests.salvaging import salvage_of


class _Silent:
    """A source that answers nothing, or this error, and a transfer of what is `brought`."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.brought: Callable[[], Awaitable[object]] | None = None

    async def keys(self, names: object) -> dict[Name, Change | None]:
        """See Source."""
        raise self._error or AssertionError(names)

    async def body(self, *of: object) -> bytes:
        """See Source."""
        raise AssertionError(of)

    async def ensure(self, *wanted: object) -> None:
        """See Blobs."""
        if self.brought is None:
            raise self._error or AssertionError(wanted)
        await self.brought()


@pytest.fixture
def model() -> Model:
    """The site that applies."""
    return Model(MemoryKV())


def _replica(model: Model) -> Replica:
    return Replica(model.decider, model.staging, new_id=model.new_id)


def _apply(model: Model, error: Exception | None = None, silent: _Silent | None = None) -> Apply:
    silent = silent or _Silent(error)
    bodies = Bodies(model.content, model.uploads, salvage_of(model))
    return Apply(_replica(model), silent, silent, bodies)


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


def _pushed(body: bytes) -> Change:
    """What a peer tells of an image."""
    shown = Pushed(1, Digest.of(body), OCI_MANIFEST, len(body), "op")
    name = ManifestName(REPOSITORY, shown.digest)
    return Change(name, Register({"n": 1}, {Dot("n", 1): shown}), 1, body)


async def test_preparing_brings_all_and_shows_nothing(model: Model) -> None:
    """What a change needs is here before its turn, and only its turn makes it live."""
    layer = Digest.of(b"layer")
    change = _pushed(image_body(await model.upload(b"{}"), layer))
    peer = _Silent()
    peer.brought = lambda: model.upload(b"layer")
    apply = _apply(model, silent=peer)
    body = await apply.prepare(change)
    assert body is not None
    assert [blob.digest for blob in body.blobs][1:] == [layer]
    assert isinstance(change.name, ManifestName)
    held = await _replica(model).manifest(change.name, body)
    assert (held.register, held.body_here, held.missing_blobs) == (Register(), True, ())
    peer.brought = None  # it is not asked again
    assert await apply.apply(change, body) == Applied()
    assert (await _replica(model).manifest(change.name, body)).register == change.register


async def test_what_cannot_be_prepared_is_for_its_turn_to_tell(model: Model) -> None:
    """A peer that is away keeps nothing from being tried again, and says why only then."""
    away = PeerUnavailable("nyc", "no route", reached=False)
    change = _pushed(image_body(await model.upload(b"{}"), Digest.of(b"layer")))
    apply = _apply(model, away)
    body = await apply.prepare(change)
    assert await apply.apply(change, body) == Parked(str(away), everywhere=True)
