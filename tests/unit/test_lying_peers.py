"""Peers that lie: what they say that is not so is told, shows nothing, and stops nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pytest

from node.change import Change
from node.digest import Digest
from node.errors import RegistryError
from node.keys import ManifestName, Name, TagName
from node.manifest import OCI_MANIFEST
from node.records import Pushed
from node.reference import Reference, Repository, Tag
from node.register import Dot, Register
from node.replica import Replica
from replicator.apply import Applied, Apply, Parked
from replicator.bodies import Bodies
from replicator.sources import Sources
from tests.blob_peers import BlobPeer, source, transfer_of
from tests.fake_kv import MemoryKV
from tests.model import Model, image_body
from tests.salvaging import salvage_of

REPOSITORY = Repository("team/app")
CONFIG, LAYER = b"{}", b"a layer of bytes"
BODY = image_body(Digest.of(CONFIG), Digest.of(LAYER))
DIGEST = Digest.of(BODY)
TAG = TagName(REPOSITORY, Tag("v1"))
DOT = Dot("fra#1", 1)
HONEST = Pushed(1, DIGEST, OCI_MANIFEST, len(BODY), "op")


@dataclass
class _Source:
    """A peer's registers and bodies, as it tells them."""

    sources: Sources

    async def keys(self, names: Sequence[Name]) -> dict[Name, Change | None]:
        """See Source."""
        return dict.fromkeys(names)

    async def body(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See Source."""
        return await self.sources.manifest(repository, digest, size)


@pytest.fixture
def model() -> Model:
    """The site that is lied to."""
    return Model(MemoryKV())


def _apply(model: Model, *peers: BlobPeer) -> Apply:
    told_by, *others = [source(peer) for peer in peers]
    sources = Sources(told_by, others)
    bodies = Bodies(model.content, model.uploads, salvage_of(model))
    replica = Replica(model.decider, model.staging, new_id=model.new_id)
    return Apply(replica, _Source(sources), transfer_of(model, sources), bodies)


def _peer(lies: Mapping[str, bytes] | None = None, site: str = "fra") -> BlobPeer:
    contents = {"config": CONFIG, "layer": LAYER, "body": BODY}
    sent = contents | dict(lies or {})
    return BlobPeer({Digest.of(contents[part]): sent[part] for part in contents}, site)


def _told(name: Name, value: Pushed = HONEST, body: bytes | None = None) -> Change:
    return Change(name, Register({DOT.actor: 1}, {DOT: value}), 1, body)


def _manifest(value: Pushed = HONEST, body: bytes | None = BODY) -> Change:
    return _told(ManifestName(REPOSITORY, DIGEST), value, body)


async def _shows(model: Model, reference: Reference) -> bool:
    try:
        resolved = await model.metadata.resolve(REPOSITORY, reference)
    except RegistryError:
        return False
    return resolved.digest == DIGEST


async def test_a_body_that_is_another_ones_is_asked_for(model: Model) -> None:
    """What a change carries is taken only if it is what it is called."""
    change = _manifest(body=BODY + b" ")
    assert await _apply(model, _peer()).apply(change) == Applied()
    assert await _shows(model, DIGEST)


@pytest.mark.parametrize("part", ["config", "layer", "body"])
async def test_a_lie_is_parked_by_its_peers_name(model: Model, part: str) -> None:
    """With nobody honest to ask nothing is shown; with somebody, all is."""
    lies = {part: b"something else"}
    result = await _apply(model, _peer(lies)).apply(_manifest(body=None))
    assert isinstance(result, Parked)
    assert "peer fra sent" in result.reason
    assert not result.everywhere
    assert not await _shows(model, DIGEST)
    honest = _peer(site="nyc")
    assert await _apply(model, _peer(lies), honest).apply(_manifest(body=None)) == Applied()
    assert await _shows(model, DIGEST)


async def test_a_size_that_is_not_the_bodys_is_not_told_on(model: Model) -> None:
    """A manifest said to be longer than it is could be fetched by no site that believed it."""
    longer = replace(HONEST, size=HONEST.size + 1)
    result = await _apply(model, _peer()).apply(_manifest(longer))
    assert isinstance(result, Parked)
    assert f"it has {HONEST.size} bytes" in result.reason
    assert not await _shows(model, DIGEST)


async def test_a_tag_that_lies_about_its_manifest_is_not_shown(model: Model) -> None:
    """What a tag says of a manifest has to be what the manifest says of itself."""
    apply = _apply(model, _peer())
    assert await apply.apply(_manifest()) == Applied()
    longer = replace(HONEST, size=HONEST.size + 1)
    result = await apply.apply(_told(TAG, longer))
    assert isinstance(result, Parked)
    assert f"has {longer.size} bytes, not {HONEST.size}" in result.reason
    assert not await _shows(model, TAG.tag)
    assert await apply.apply(_told(TAG)) == Applied()
    assert await _shows(model, TAG.tag)


async def test_a_lie_in_one_repository_stops_no_other(model: Model) -> None:
    """The peer's other changes are applied as ever."""
    apply = _apply(model, _peer({"layer": b"something else"}))
    assert isinstance(await apply.apply(_manifest()), Parked)
    body = image_body(Digest.of(CONFIG), Digest.of(CONFIG))
    other = ManifestName(Repository("other"), Digest.of(body))
    value = replace(HONEST, digest=other.digest, size=len(body))
    assert await apply.apply(_told(other, value, body)) == Applied()
