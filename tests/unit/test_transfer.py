"""Bringing blobs here: once, whole, resumed, and never what they are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from node.blobs import Usage
from node.digest import Digest
from node.errors import PeerLied, PeerUnavailable, StorageFull
from node.manifest import Descriptor
from replicator import transfer as transfers
from replicator.transfer import Flights, Transfer
from tests.blob_peers import CHUNK, CONTENT, LARGE, BlobPeer, has, sessions, transfer
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV
from tests.model import OTHER, REPOSITORY, Model


class _Disk(MemoryBlobs):
    """A store that is as full as the test says."""

    free_share = 1.0
    answers: asyncio.Event | None = None

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def usage(self) -> Usage:
        """See BlobStore."""
        if self.answers is not None:
            answers, self.answers = self.answers, None
            self.asked.set()
            await answers.wait()
        return Usage(1000, int(1000 * self.free_share))


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the few bytes of a test take the way of large blobs, unless it is about small ones."""
    if "small" not in request.node.name:
        monkeypatch.setattr(transfers, "SMALL_BYTES", 1)


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV(), _Disk())


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_blob_is_fetched_and_visible(model: Model, size: str) -> None:
    """Small or large: it is there, pinned in its repository only, and no session is left."""
    del size
    await transfer(model, BlobPeer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert not await has(model, OTHER)
    assert sessions(model) == []


async def test_an_empty_small_blob_is_fetched(model: Model) -> None:
    """A layer of no bytes is a blob like others."""
    empty = Descriptor("application/octet-stream", Digest.of(b""), 0)
    await transfer(model, BlobPeer({empty.digest: b""})).ensure(REPOSITORY, [empty])
    assert (await model.content.stat(REPOSITORY, empty.digest)).record.size == 0


async def test_what_the_site_has_is_not_fetched(model: Model) -> None:
    """A blob of another repository is pinned here instead."""
    await model.upload(CONTENT, OTHER)
    peer = BlobPeer({})
    await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert peer.asked == []


async def test_many_who_want_a_blob_cause_one_fetch(model: Model) -> None:
    """Over peers and repositories: the others wait and then find it."""
    peer, flights = BlobPeer({LARGE.digest: CONTENT}), Flights()
    one, other = (transfer(model, peer, flights=flights) for _ in range(2))
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(one.ensure(REPOSITORY, [LARGE, LARGE]))
            group.create_task(other.ensure(OTHER, [LARGE]))
    assert peer.asked == [0]
    assert await has(model)
    assert await has(model, OTHER)


async def test_a_cut_costs_a_connection_and_no_bytes(model: Model) -> None:
    """The next connection asks for the rest."""
    peer = BlobPeer({LARGE.digest: CONTENT}, cut_at=[30, 70])
    await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == [0, 30, 70]
    assert peer.sent == len(CONTENT)
    assert await has(model)


async def test_a_peer_that_is_gone_leaves_what_it_sent(model: Model) -> None:
    """Cut for good, the transfer fails; the next attempt asks for the rest."""
    peer = BlobPeer({LARGE.digest: CONTENT}, cut_at=[50, 0, 0, 0])
    with pytest.raises(PeerUnavailable):
        await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert not await has(model)
    await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.sent == len(CONTENT)
    assert await has(model)
    assert sessions(model) == []


async def test_a_stop_leaves_what_was_fetched(model: Model) -> None:
    """Cancelled half-way, another process goes on from there, for another repository too."""
    peer = BlobPeer({LARGE.digest: CONTENT}, held=asyncio.Event())
    async with asyncio.TaskGroup() as group:
        first = group.create_task(transfer(model, peer).ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        first.cancel()
    peer.held = None
    again = Model(model.kv, model.blobs, site="fra#2")
    await transfer(again, peer).ensure(OTHER, [LARGE])
    assert peer.asked == [0, 50]
    assert await has(model, OTHER)
    assert sessions(model) == []


async def test_two_processes_at_one_blob_do_not_undo_each_other(model: Model) -> None:
    """Who is overtaken leaves what it brought: the other's part of the blob begins after it."""
    overtaken = BlobPeer({LARGE.digest: CONTENT}, held=asyncio.Event())
    peer = BlobPeer({LARGE.digest: CONTENT}, held=asyncio.Event())
    again = Model(model.kv, model.blobs, site="fra#2")
    async with asyncio.TaskGroup() as group:
        late = group.create_task(_failure(transfer(model, overtaken)))
        await overtaken.halfway.wait()
        group.create_task(transfer(again, peer).ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        assert overtaken.held is not None
        overtaken.held.set()
        assert isinstance(await late, PeerUnavailable)
        assert peer.held is not None
        peer.held.set()
    assert peer.sent == len(CONTENT) // 2
    assert await has(model)
    assert sessions(model) == []


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_peer_that_lies_leaves_nothing(model: Model, size: str) -> None:
    """Other bytes than the digest says are dropped, and it is said who sent them."""
    del size
    peer = BlobPeer({LARGE.digest: bytes(len(CONTENT))})
    with pytest.raises(PeerLied) as caught:
        await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert (caught.value.site, caught.value.digest) == ("fra", str(LARGE.digest))
    assert not await has(model)
    assert sessions(model) == []
    assert model.blobs.copies == {}


async def test_more_bytes_than_announced_are_a_lie(model: Model) -> None:
    """A peer can't fill the disk with a blob that it calls small."""
    peer = BlobPeer({LARGE.digest: CONTENT * 100}, announced=len(CONTENT))
    with pytest.raises(PeerLied):
        await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.sent <= len(CONTENT) + CHUNK
    assert sessions(model) == []


async def test_parts_that_do_not_fit_are_fetched_anew(model: Model) -> None:
    """What a crash left may be damaged: the peer is not blamed, and asked for the whole."""
    upload = await model.uploads.start(REPOSITORY, LARGE.digest)
    await model.uploads.append(upload, _bytes(b"x" * 40))
    peer = BlobPeer({LARGE.digest: CONTENT})
    await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == [40, 0]
    assert await has(model)


@pytest.mark.parametrize("size", [1, 50, 1000])
async def test_a_manifest_may_be_wrong_about_sizes(model: Model, size: int) -> None:
    """What a pusher wrote into a descriptor parks no repository: the digest decides."""
    wrong = replace(LARGE, size=size)
    await transfer(model, BlobPeer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [wrong])
    assert await has(model)


async def test_a_small_blob_that_is_large_does_not_pass_through_memory(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A descriptor that says one byte of a large blob takes the way of large ones."""
    monkeypatch.setattr(transfers, "SMALL_BYTES", 50)
    peer = BlobPeer({LARGE.digest: CONTENT}, cut_at=[0, 60])
    await transfer(model, peer).ensure(REPOSITORY, [replace(LARGE, size=1)])
    assert peer.asked == [0, 0, 60], "one look, and then a fetch that resumes"
    assert await has(model)


async def test_one_that_is_missing_does_not_stop_the_others(model: Model) -> None:
    """What can be had is had; the error names what can't."""
    gone = replace(LARGE, digest=Digest.of(b"gone"))
    with pytest.raises(PeerUnavailable, match=str(gone.digest)):
        await transfer(model, BlobPeer({LARGE.digest: CONTENT})).ensure(REPOSITORY, [gone, LARGE])
    assert await has(model)


async def test_replication_pauses_on_a_disk_that_is_nearly_full(model: Model) -> None:
    """At nine tenths nothing is fetched, long before pushes are refused."""
    assert isinstance(model.blobs, _Disk)
    model.blobs.free_share = 0.09
    peer = BlobPeer({LARGE.digest: CONTENT})
    with pytest.raises(StorageFull):
        await transfer(model, peer).ensure(REPOSITORY, [LARGE])
    assert peer.asked == []
    model.blobs.free_share = 0.21
    await transfer(model, peer).ensure(REPOSITORY, [LARGE])


async def test_there_is_room_for_all_that_is_under_way(model: Model) -> None:
    """Two blobs that each would fit are not begun at once where only one does."""
    assert isinstance(model.blobs, _Disk)
    model.blobs.free_share = 0.21
    other = replace(LARGE, digest=Digest.of(CONTENT[::-1]))
    peer = BlobPeer({LARGE.digest: CONTENT, other.digest: CONTENT[::-1]}, held=asyncio.Event())
    both = transfer(model, peer)
    async with asyncio.TaskGroup() as group:
        group.create_task(both.ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        with pytest.raises(StorageFull):
            await both.ensure(REPOSITORY, [other])
        assert peer.held is not None
        peer.held.set()
    await both.ensure(REPOSITORY, [other])


async def test_room_is_kept_while_it_is_looked_for_again(model: Model) -> None:
    """A blob that goes on over another connection has not lost its place on the disk meanwhile."""
    assert isinstance(model.blobs, _Disk)
    disk, answers = model.blobs, asyncio.Event()
    disk.free_share = 0.21
    other = replace(LARGE, digest=Digest.of(CONTENT[::-1]))
    blobs = {LARGE.digest: CONTENT, other.digest: CONTENT[::-1]}
    peer = BlobPeer(blobs, cut_at=[60], held=asyncio.Event())
    both = transfer(model, peer)
    async with asyncio.TaskGroup() as group:
        group.create_task(both.ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        disk.answers = answers
        assert peer.held is not None
        peer.held.set()
        await disk.asked.wait()
        with pytest.raises(StorageFull):
            await both.ensure(REPOSITORY, [other])
        answers.set()


async def _failure(one: Transfer) -> Exception | None:
    try:
        await one.ensure(REPOSITORY, [LARGE])
    except PeerUnavailable as err:
        return err
    return None


async def _bytes(content: bytes) -> AsyncIterator[bytes]:
    yield content
