"""What a site tells its peers, without gRPC: how changes are cut, and what is left out."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

import pytest
from structlog.testing import CapturingLogger

from gateway.feed_registers import Registers
from gateway.feed_source import FeedSource
from node import keys
from node.digest import Algorithm, Digest
from node.errors import MetadataUnavailable, PeerUnavailable
from node.keys import ManifestName, TagName
from node.kv import Put
from node.manifest import OCI_MANIFEST
from node.records import Cursor, Pushed, Report
from node.reference import Tag
from node.register import Dot, Register
from node.wire import codec, feed_codec
from node.wire.feed_codec import BATCH_BYTES, BATCH_CHANGES, MESSAGE_BYTES, Batch
from replicator.book import Ledger
from replicator.feed_client import FeedClient
from tests import fake_kv
from tests.fake_kv import MemoryKV
from tests.feeds import feed, site_of, told
from tests.model import REPOSITORY, Model
from tests.waiting import eventually

CHILDREN = 20_000


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


def _digest(n: int) -> Digest:
    return Digest(Algorithm.SHA256, hashlib.sha256(n.to_bytes(4, "big")).digest())


def _register(digest: Digest, artifact_type: str | None = None) -> Register[Pushed]:
    value = Pushed(5, digest, OCI_MANIFEST, 8, "op", artifact_type=artifact_type)
    return Register({"fra#1": 7}, {Dot("fra#1", 7): value})


async def _write(model: Model, count: int, artifact_type: str | None = None) -> None:
    """Registers of so many manifests and of the tag `last`, all in one revision."""
    puts = [
        Put(
            keys.manifest(REPOSITORY, digest),
            codec.encode_register(_register(digest, artifact_type)),
        )
        for digest in map(_digest, range(count))
    ]
    tag = Put(keys.tag(REPOSITORY, Tag("last")), codec.encode_register(_register(_digest(0))))
    await model.kv.txn([], [*puts, tag])


async def _told(model: Model, after: int, count: int) -> list[Batch]:
    """What is told over gRPC after a revision, until it is so many changes."""
    found: list[Batch] = []
    async with feed(model) as client, told(client, Cursor("1", after)) as (_, batches):
        async for batch in batches:
            found.append(batch)
            if sum(len(one.changes) for one in found) >= count:
                return found
    raise AssertionError("the stream ended")


def _bytes(batch: Batch) -> int:
    return feed_codec.batch_message(batch).ByteSize()


@pytest.fixture(autouse=True)
def _without_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd may be told to take larger transactions than ours are: the feed tells any."""
    monkeypatch.setattr(fake_kv, "check_txn", lambda _guards, _ops: None)


async def test_an_index_of_twenty_thousand_children_passes_the_feed(model: Model) -> None:
    """A revision of any size is told, and no cursor passes it before all of it is applied."""
    await model.upload(b"before")
    before = (await model.kv.read([])).revision
    await _write(model, CHILDREN)
    found = await _told(model, before, CHILDREN + 1)
    assert max(len(batch.changes) for batch in found) <= BATCH_CHANGES
    assert max(map(_bytes, found)) <= BATCH_BYTES
    assert len({change.name for batch in found for change in batch.changes}) == CHILDREN + 1
    assert [batch.revision for batch in found] == [before] * (len(found) - 1) + [before + 1]
    assert not any(batch.scanning for batch in found)
    ledger = Ledger(Cursor("1", before))
    for batch in found:
        assert (ledger.taken, ledger.cursor.revision) == (before, before)
        ledger.enter(batch.revision, 0, scanning=batch.scanning)
    assert (ledger.taken, ledger.cursor.revision) == (before + 1, before + 1)


async def test_what_comes_around_a_large_revision_keeps_its_own(model: Model) -> None:
    """Each batch names a revision of which, and of all before it, everything has been told."""
    before = (await model.kv.read([])).revision
    await model.image("v1")
    await _write(model, 3 * BATCH_CHANGES)
    await model.metadata.delete_tag(REPOSITORY, Tag("v1"))
    last: dict[int, int] = {}
    found = await _told(model, before, 3 * BATCH_CHANGES + 3)
    for at, batch in enumerate(found):
        last.update({change.revision: at for change in batch.changes})
    for at, batch in enumerate(found):
        assert all(end <= at for revision, end in last.items() if revision <= batch.revision)
    assert sorted(batch.revision for batch in found) == [batch.revision for batch in found]
    assert found[-1].revision == max(last)


async def test_large_registers_of_one_revision_are_told_apart(model: Model) -> None:
    """Each is less than a message holds, together they are more."""
    before = (await model.kv.read([])).revision
    await _write(model, 3, "x" * (3 * MESSAGE_BYTES // 4))
    found = await _told(model, before, 4)
    assert max(map(_bytes, found)) <= MESSAGE_BYTES
    assert sum(len(batch.changes) for batch in found) == 4


REGISTER = _register(_digest(0))
NAME, TAG = keys.manifest(REPOSITORY, _digest(0)), keys.tag(REPOSITORY, Tag("v9"))
UNREADABLE: dict[str, tuple[bytes, bytes]] = {
    "a damaged value": (TAG, b"\xff no message"),
    "a newer site's digest": (
        TAG,
        codec.register_message(REGISTER)
        .SerializeToString()
        .replace(_digest(0).packed, b"\x09" + _digest(0).raw),
    ),
    "a key of a newer digest": (NAME[:-33] + b"\x09" + NAME[-32:], codec.encode_register(REGISTER)),
    "a key that is cut": (NAME[:-1], codec.encode_register(REGISTER)),
    "a key with more behind it": (NAME + b"\0", codec.encode_register(REGISTER)),
    "a key that is no text": (b"T/\xff\0v1\0", codec.encode_register(REGISTER)),
    "a name that breaks the grammar": (b"T/No Name\0v1\0", codec.encode_register(REGISTER)),
    "a tag that breaks the grammar": (b"T/name\0no tag\0", codec.encode_register(REGISTER)),
    "a sibling that nobody has seen": (
        TAG,
        codec.encode_register(Register({}, REGISTER.siblings)),
    ),
    "more than a message holds": (
        TAG,
        codec.encode_register(_register(_digest(0), "x" * MESSAGE_BYTES)),
    ),
}


@pytest.mark.parametrize(("key", "value"), UNREADABLE.values(), ids=UNREADABLE.keys())
async def test_a_register_that_no_peer_can_take_is_left_out(
    model: Model, key: bytes, value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others are told, by a scan and after it, and the log names it once."""
    await model.kv.txn([], [Put(key, value)])
    await model.image("v1")
    end = (await model.kv.read([])).revision
    log = CapturingLogger()
    monkeypatch.setattr("gateway.feed_registers._log", log)
    async with feed(model) as client:
        for after in (0, 1):
            async with told(client, Cursor("1", after)) as (_, batches):
                found = await anext(batches)
            assert len(found.changes) == 2
            assert found.revision == end
        assert not any((await client.keys([TagName(REPOSITORY, Tag("v9"))])).values())
    assert [call.method_name for call in log.calls] == ["error"]


async def _changes(client: FeedClient) -> None:
    async with told(client, Cursor("", 0)) as (_, batches):
        await anext(batches)


async def _repository(client: FeedClient) -> None:
    async with aclosing(client.repository(REPOSITORY)) as batches:
        await anext(batches)


async def _keys(client: FeedClient) -> None:
    await client.keys([ManifestName(REPOSITORY, _digest(n)) for n in range(3)])


@pytest.mark.parametrize("ask", [_changes, _repository, _keys])
async def test_metadata_that_goes_away_between_bodies_is_weather(
    model: Model, ask: Callable[[FeedClient], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer is told so, not that something unknown is wrong."""
    await _write(model, 3)

    async def read(digest: Digest) -> bytes:
        raise MetadataUnavailable(f"no answer about {digest}")

    monkeypatch.setattr(model.content, "read", read)
    async with feed(model) as client:
        with pytest.raises(PeerUnavailable, match=r"unavailable: .*no answer about"):
            await ask(client)


async def test_a_body_that_is_not_as_long_as_it_should_be_is_not_sent_along(model: Model) -> None:
    """Else registers that lie about it would make a batch larger than a message."""
    digest = await model.upload(b"x" * (2 * MESSAGE_BYTES))
    value = Pushed(5, digest, OCI_MANIFEST, 8, "op")
    register = Register({"fra#1": 7}, {Dot("fra#1", 7): value})
    await model.kv.txn(
        [], [Put(keys.manifest(REPOSITORY, digest), codec.encode_register(register))]
    )
    (found,) = await _told(model, 1, 1)
    assert found.changes[0].body is None


async def test_damaged_records_of_blobs_do_not_end_a_stream(model: Model) -> None:
    """The change is told without the body, and the other digests can be had."""
    digest, _ = await model.image("v1")
    layer = Digest.of(b"layer")
    await model.kv.txn([], [Put(keys.blob(digest), b"\xff no message")])
    (found,) = await _told(model, 1, 2)
    assert [change.body for change in found.changes] == [None, None]
    source = FeedSource(site_of(model), Registers(), [])
    assert await source.have(REPOSITORY, [digest, layer]) == [layer]


async def test_a_damaged_ack_is_replaced(model: Model) -> None:
    """It ends no stream, and the next ack heals it."""
    await model.image("v1")
    await model.kv.txn([], [Put(keys.ack("nyc"), b"\xff no message")])

    def acked() -> int:
        return codec.decode_ack(model.kv.entries()[keys.ack("nyc")]).report.revision

    async with feed(model) as client, told(client, Cursor("", 0)) as (stream, batches):
        batch = await anext(batches)
        await stream.ack(Report("1", batch.head))

        def healed() -> bool:
            with suppress(ValueError):
                return acked() == batch.head
            return False

        await eventually(healed, 60, "the ack is recorded")


async def test_everything_is_told_again_after_a_time(model: Model) -> None:
    """Where a watch may lose an event, a scan finds what it lost, however busy the stream is."""
    await model.image("v1")
    site = replace(site_of(model), rescan_s=0.0)
    revision = (await model.kv.read([])).revision
    scanned = 0
    async with aclosing(FeedSource(site, Registers(), []).changes(Cursor("1", 1))) as stream:
        async for batch in stream:
            scanned += batch.scanning
            if scanned and batch.revision >= revision and not batch.scanning:
                break
    assert scanned
