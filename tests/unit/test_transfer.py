"""Bringing blobs here: once, whole, resumed, and never what they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import pytest
from prometheus_client import CollectorRegistry, Counter

from node.blobs import Usage
from node.digest import Digest
from node.errors import BlobUnknown, PeerLied, PeerUnavailable, StorageFull
from node.manifest import Descriptor
from node.reference import Repository
from node.remote import RemoteBlob
from replicator import transfer as transfers
from replicator.transfer import Flights, Transfer
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV
from tests.model import OTHER, REPOSITORY, Model

CHUNK = 10
CONTENT = bytes(range(100))
LARGE = Descriptor("application/octet-stream", Digest.of(CONTENT), len(CONTENT))


@dataclass
class _Peer:
    """A peer that has some blobs, and may do as it likes with them on the way."""

    blobs: dict[Digest, bytes]
    site: str = "fra"
    cut_at: list[int] = field(default_factory=list)
    """Offsets at which connections are cut, one each; then they are not."""
    asked: list[int] = field(default_factory=list)
    """The offsets that it was asked for."""
    announced: int | None = None
    """How long it says that its blobs are; None: as long as they are."""
    sent: int = 0
    held: asyncio.Event | None = None
    halfway: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0
    ) -> AsyncIterator[RemoteBlob]:
        """See BlobSource."""
        del repository
        if digest not in self.blobs:
            raise BlobUnknown(str(digest))
        self.asked.append(start)
        cut_at = self.cut_at.pop(0) if self.cut_at else None
        content = self.blobs[digest]
        said = len(content) if self.announced is None else self.announced
        yield RemoteBlob(said, self._chunks(content, start, cut_at))

    async def _chunks(self, content: bytes, start: int, cut_at: int | None) -> AsyncIterator[bytes]:
        for at in range(start, len(content), CHUNK):
            await asyncio.sleep(0)
            if cut_at is not None and at >= cut_at:
                raise PeerUnavailable(self.site, "cut")
            if self.held is not None and at >= len(content) // 2:
                self.halfway.set()
                await self.held.wait()
            self.sent += len(content[at : at + CHUNK])
            yield content[at : at + CHUNK]


class _Disk(MemoryBlobs):
    """A store that is as full as the test says."""

    free_share = 1.0

    async def usage(self) -> Usage:
        """See BlobStore."""
        return Usage(1000, int(1000 * self.free_share))


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the few bytes of a test take the way of large blobs, unless it is about small ones."""
    if "small" not in request.node.name:
        monkeypatch.setattr(transfers, "SMALL_BYTES", 1)


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV(), _Disk())


def _transfer(model: Model, peer: _Peer, flights: Flights | None = None) -> Transfer:
    received = Counter("received", "Bytes.", registry=CollectorRegistry())
    return Transfer(
        model.content,
        model.uploads,
        model.blobs,
        peer,
        flights or Flights(),
        in_flight=2,
        received=received,
    )


async def _has(model: Model, repository: Repository = REPOSITORY) -> bool:
    try:
        blob = await model.content.stat(repository, LARGE.digest)
    except BlobUnknown:
        return False
    opened = await model.content.open(LARGE.digest, blob.record)
    return await opened.read(0, 1000) == CONTENT


def _sessions(model: Model) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(b"s/")]


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_blob_is_fetched_and_visible(model: Model, size: str) -> None:
    """Small or large: it is there, pinned in its repository only, and no session is left."""
    del size
    await _transfer(model, _Peer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [LARGE])
    assert await _has(model)
    assert not await _has(model, OTHER)
    assert _sessions(model) == []


async def test_an_empty_small_blob_is_fetched(model: Model) -> None:
    """A layer of no bytes is a blob like others."""
    empty = Descriptor("application/octet-stream", Digest.of(b""), 0)
    await _transfer(model, _Peer({empty.digest: b""})).ensure(REPOSITORY, [empty])
    assert (await model.content.stat(REPOSITORY, empty.digest)).record.size == 0


async def test_what_the_site_has_is_not_fetched(model: Model) -> None:
    """A blob of another repository is pinned here instead."""
    await model.upload(CONTENT, OTHER)
    peer = _Peer({})
    await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert await _has(model)
    assert peer.asked == []


async def test_many_who_want_a_blob_cause_one_fetch(model: Model) -> None:
    """Over peers and repositories: the others wait and then find it."""
    peer, flights = _Peer({LARGE.digest: CONTENT}), Flights()
    one, other = _transfer(model, peer, flights), _transfer(model, peer, flights)
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(one.ensure(REPOSITORY, [LARGE, LARGE]))
            group.create_task(other.ensure(OTHER, [LARGE]))
    assert peer.asked == [0]
    assert await _has(model)
    assert await _has(model, OTHER)


async def test_a_cut_costs_a_connection_and_no_bytes(model: Model) -> None:
    """The next connection asks for the rest."""
    peer = _Peer({LARGE.digest: CONTENT}, cut_at=[30, 70])
    await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == [0, 30, 70]
    assert peer.sent == len(CONTENT)
    assert await _has(model)


async def test_a_peer_that_is_gone_leaves_what_it_sent(model: Model) -> None:
    """Cut for good, the transfer fails; the next attempt asks for the rest."""
    peer = _Peer({LARGE.digest: CONTENT}, cut_at=[50, 0, 0, 0])
    with pytest.raises(PeerUnavailable):
        await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert not await _has(model)
    await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.sent == len(CONTENT)
    assert await _has(model)
    assert _sessions(model) == []


async def test_a_stop_leaves_what_was_fetched(model: Model) -> None:
    """Cancelled half-way, another process goes on from there, for another repository too."""
    peer = _Peer({LARGE.digest: CONTENT}, held=asyncio.Event())
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_transfer(model, peer).ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        first.cancel()
    peer.held = None
    again = Model(model.kv, model.blobs, site="fra#2")
    await _transfer(again, peer).ensure(OTHER, [LARGE])
    assert peer.asked == [0, 50]
    assert await _has(model, OTHER)
    assert _sessions(model) == []


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_peer_that_lies_leaves_nothing(model: Model, size: str) -> None:
    """Other bytes than the digest says are dropped, and it is said who sent them."""
    del size
    peer = _Peer({LARGE.digest: bytes(len(CONTENT))})
    with pytest.raises(PeerLied) as caught:
        await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert (caught.value.site, caught.value.digest) == ("fra", str(LARGE.digest))
    assert not await _has(model)
    assert _sessions(model) == []
    assert model.blobs.copies == {}


async def test_more_bytes_than_announced_are_a_lie(model: Model) -> None:
    """A peer can't fill the disk with a blob that it calls small."""
    peer = _Peer({LARGE.digest: CONTENT * 100}, announced=len(CONTENT))
    with pytest.raises(PeerLied):
        await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.sent <= len(CONTENT) + CHUNK
    assert _sessions(model) == []


async def test_parts_that_do_not_fit_are_fetched_anew(model: Model) -> None:
    """What a crash left may be damaged: the peer is not blamed, and the next attempt is whole."""
    upload = await model.uploads.start(REPOSITORY, LARGE.digest)
    await model.uploads.append(upload, _bytes(b"x" * 40))
    peer = _Peer({LARGE.digest: CONTENT})
    with pytest.raises(PeerUnavailable):
        await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == [40, 0]
    assert await _has(model)


@pytest.mark.parametrize("size", [1, 50, 1000])
async def test_a_manifest_may_be_wrong_about_sizes(model: Model, size: int) -> None:
    """What a pusher wrote into a descriptor parks no repository: the digest decides."""
    wrong = replace(LARGE, size=size)
    await _transfer(model, _Peer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [wrong])
    assert await _has(model)


async def test_a_small_blob_that_is_large_does_not_pass_through_memory(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that says one byte of a large blob takes the way of large ones."""
    monkeypatch.setattr(transfers, "SMALL_BYTES", 50)
    peer = _Peer({LARGE.digest: CONTENT}, cut_at=[0, 60])
    await _transfer(model, peer).ensure(REPOSITORY, [replace(LARGE, size=1)])
    assert peer.asked == [0, 0, 60], "one look, and then a fetch that resumes"
    assert await _has(model)


async def test_one_that_is_missing_does_not_stop_the_others(model: Model) -> None:
    """What can be had is had; the error names what can't."""
    gone = replace(LARGE, digest=Digest.of(b"gone"))
    with pytest.raises(PeerUnavailable, match=str(gone.digest)):
        await _transfer(model, _Peer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [gone, LARGE])
    assert await _has(model)


async def test_replication_pauses_on_a_disk_that_is_nearly_full(model: Model) -> None:
    """At nine tenths nothing is fetched, long before pushes are refused."""
    assert isinstance(model.blobs, _Disk)
    model.blobs.free_share = 0.09
    peer = _Peer({LARGE.digest: CONTENT})
    with pytest.raises(StorageFull):
        await _transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == []
    model.blobs.free_share = 0.11
    await _transfer(model, peer).ensure(REPOSITORY, [LARGE])


async def _bytes(content: bytes) -> AsyncIterator[bytes]:
    yield content
