"""The feed between two sites, over gRPC: who is told what, and what nonsense does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import grpc
import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships none

from gateway.feed import FeedServer
from node import keys
from node.change import Change
from node.config import ConfigError
from node.config_values import Address
from node.digest import Digest
from node.errors import Denied, PeerUnavailable, Unauthenticated
from node.keys import ManifestName, Name, TagName
from node.kv import Put
from node.records import Cursor, Report
from node.reference import Repository, Tag
from node.register import Register
from node.telemetry import Metrics
from node.wire import codec, feed_codec
from node.wire import feed_pb2 as pb
from node.wire.feed_channel import DIALLER_OPTIONS, SERVICE
from node.wire.feed_codec import BATCH_BYTES, BATCH_CHANGES, Batch
from node.wire.feed_pb2_grpc import FeedStub
from replicator.feed_client import FeedClient, FeedDamaged, FeedStream
from tests.fake_kv import MemoryKV
from tests.feeds import babbling, dialled, feed, peer_at, served, site_of, telling, told, unheard
from tests.model import OTHER, REPOSITORY, Model, image_body
from tests.ports import free_port
from tests.waiting import eventually

FROM_START = Cursor("", 0)


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


async def _scan(client: FeedClient, cursor: Cursor = FROM_START) -> list[Batch]:
    """All batches up to the one that ends the scan."""
    found: list[Batch] = []
    async with told(client, cursor) as (_, batches):
        async for batch in batches:
            found.append(batch)
            if not batch.scanning:
                return found
    raise AssertionError("the stream ended")


async def _next(batches: AsyncIterator[Batch]) -> Batch:
    """The next batch that says anything."""
    async for batch in batches:
        if batch.changes:
            return batch
    raise AssertionError("the stream ended")


async def test_hello_tells_who_is_there(model: Model) -> None:
    """Name, incarnation and how far the site has come."""
    await model.image("v1")
    async with feed(model) as client:
        hello = await client.hello(5)
    assert (hello.site, hello.incarnation) == ("fra", "1")
    assert hello.revision == (await model.kv.read([])).revision


async def test_a_scan_tells_manifests_before_tags_and_then_follows(model: Model) -> None:
    """First all that is, with small bodies; then each change as it comes."""
    digest, body = await model.image("v1", "v2")
    async with feed(model) as client, told(client, FROM_START) as (_, batches):
        scanned = await _next(batches)
        end = await anext(batches)
        await model.metadata.delete_tag(REPOSITORY, Tag("v1"))
        followed = await _next(batches)
    assert scanned.scanning
    kinds = [type(change.name) for change in scanned.changes]
    assert kinds == [ManifestName, TagName, TagName]
    assert scanned.changes[0].body == body
    assert (end.scanning, end.changes) == (False, ())
    assert end.revision >= scanned.revision
    assert [change.name for change in followed.changes] == [TagName(REPOSITORY, Tag("v1"))]
    assert not followed.changes[0].register.live
    assert followed.revision == followed.changes[0].revision > end.revision
    assert [value.digest for value in scanned.changes[0].register.siblings.values()] == [digest]


async def test_a_cursor_of_this_life_is_gone_on_from(model: Model) -> None:
    """Nothing that was taken is told again."""
    await model.image("v1")
    async with feed(model) as client:
        (*_, end) = await _scan(client)
        await model.image("v2", layer=b"other")
        async with told(client, Cursor("1", end.revision)) as (_, batches):
            followed = await _next(batches)
    assert not followed.scanning
    assert {c.name.tag for c in followed.changes if isinstance(c.name, TagName)} == {"v2"}


@pytest.mark.parametrize("revision", [4, 10_000])
async def test_a_cursor_of_another_life_is_a_scan(model: Model, revision: int) -> None:
    """Its revision means nothing here."""
    await model.image("v1")
    async with feed(model) as client:
        found = await _scan(client, Cursor("another life", revision))
    assert len(found[0].changes) == 2
    assert found[0].scanning


async def test_many_changes_come_in_batches_that_fit(model: Model) -> None:
    """No batch is larger than agreed, and each ends where a revision does."""
    config = await model.upload(b"{}")
    for n in range(60):
        await model.push(image_body(config, note="x" * 50_000, n=n), f"v{n}")
    async with feed(model) as client:
        scanned = await _scan(client)
        followed: list[Batch] = []
        async with told(client, Cursor("1", 1)) as (_, batches):
            while sum(len(batch.changes) for batch in followed) < 120:
                followed.append(await _next(batches))
    assert sum(len(batch.changes) for batch in scanned) == 120
    for batch in (*scanned, *followed):
        assert len(batch.changes) <= BATCH_CHANGES
        assert sum(len(change.body or b"") for change in batch.changes) <= BATCH_BYTES
    for before, after in pairwise(followed):
        assert max(change.revision for change in before.changes) <= before.revision
        assert min(change.revision for change in after.changes) > before.revision


async def test_both_filters_must_let_a_name_through(model: Model) -> None:
    """What the receiver asks for, less what this site does not tell it."""
    await model.image("v1")
    await model.image("v1", repository=OTHER)
    port = free_port()
    async with served(site_of(model), [peer_at(1, "nyc", repositories=["team/**"])], port):
        async with dialled(peer_at(port, "fra")) as client:
            scanned = await _scan(client)
            names: list[Name] = [TagName(REPOSITORY, Tag("v1")), TagName(OTHER, Tag("v1"))]
            answers = await client.keys(names)
            hidden = [batch async for batch in client.repository(OTHER)]
        async with dialled(peer_at(port, "fra", repositories=["other"])) as client:
            nothing = await _scan(client)
    assert {change.name.repository for batch in scanned for change in batch.changes} == {REPOSITORY}
    assert [answers[name] is None for name in names] == [False, True]
    assert [batch.changes for batch in hidden] == [()]
    assert [batch.changes for batch in nothing] == [()]


async def test_a_repository_is_told_whole(model: Model) -> None:
    """Manifests, then tags, tombstones too, and as of which revision."""
    await model.image("v1", "gone")
    await model.image("v1", repository=OTHER)
    await model.metadata.delete_tag(REPOSITORY, Tag("gone"))
    async with feed(model) as client:
        *pages, end = [batch async for batch in client.repository(REPOSITORY)]
    changes = [change for page in pages for change in page.changes]
    assert {change.name.repository for change in changes} == {REPOSITORY}
    assert [type(change.name) for change in changes] == [ManifestName, TagName, TagName]
    assert end.revision == (await model.kv.read([])).revision
    assert all(page.scanning for page in pages)
    assert not end.scanning


async def test_keys_are_answered_by_name(model: Model) -> None:
    """None where there is no register."""
    digest, body = await model.image("v1")
    names: list[Name] = [ManifestName(REPOSITORY, digest), TagName(REPOSITORY, Tag("never"))]
    async with feed(model) as client:
        answers = await client.keys(names)
    answer = answers[names[0]]
    assert answer is not None
    assert answer.body == body
    assert answers[names[1]] is None


async def test_acks_are_recorded_for_this_life_only(model: Model) -> None:
    """An ack of another life, or of what was never sent, says nothing."""
    await model.image("v1")

    def acked() -> int:
        value = model.kv.entries().get(keys.ack("nyc"))
        return 0 if value is None else codec.decode_ack(value).report.revision

    async with feed(model) as client, told(client, FROM_START) as (stream, batches):
        batch = await anext(batches)
        await stream.ack(Report("another life", 2))
        await stream.ack(Report("1", batch.head + 1000))
        await stream.ack(Report("1", batch.head))
        await eventually(lambda: acked() == batch.head, 60, "the ack is recorded")


async def test_what_a_peer_was_not_asked_for_is_dropped() -> None:
    """A peer that ignores our filters writes to no other repository, and no other tag."""
    batch = Batch("1", [_told("a", "v1"), _told("a", "x"), _told("b", "v1")], 3, False, 3)
    async with telling(batch, repositories=("a",), tags=("v*",)) as client:
        (heard,) = [one async for one in client.repository(Repository("a"))]
        assert [change.name for change in heard.changes] == [TagName(Repository("a"), Tag("v1"))]
        async with told(client, FROM_START) as (_, batches):
            assert await anext(batches) == heard
            assert heard.revision == batch.revision


async def test_a_repository_is_not_told_within_another() -> None:
    """What a catch-up of one repository brings is of that one."""
    batch = Batch("1", [_told("a", "v1"), _told("b", "v1")], 3, False, 3)
    async with telling(batch) as client:
        (heard,) = [one async for one in client.repository(Repository("b"))]
    assert [change.name.repository for change in heard.changes] == ["b"]


async def test_a_change_that_cannot_be_read_spoils_no_other() -> None:
    """It is told by its repository, if that is ours to take; without one nothing can be said."""
    batch = feed_codec.batch_message(
        Batch("1", [_told("a", "v1"), _told("b", "v1"), _told("c", "v1")], 3, False, 3)
    )
    for spoilt in (batch.changes[1], batch.changes[2]):
        spoilt.tag = "/"
    only = telling(batch, repositories=("a", "b"))
    async with only as client, told(client, FROM_START) as (_, batches):
        heard = await anext(batches)
    assert [change.name.repository for change in heard.changes] == ["a"]
    assert set(heard.unreadable) == {"b"}
    batch.changes[0].repository = "/"
    async with telling(batch) as client, told(client, FROM_START) as (_, batches):
        with pytest.raises(FeedDamaged):
            await anext(batches)


def _told(repository: str, tag: str) -> Change:
    return Change(TagName(Repository(repository), Tag(tag)), Register({"x": 1}), 1)


class _Cancelled:
    """A call that somebody cancels while a message is being written to it."""

    async def write(self, message: pb.ChangesRequest) -> None:
        """As grpc answers then."""
        del message
        raise asyncio.CancelledError


async def test_a_stream_that_is_cancelled_under_an_ack_does_not_end_who_acks() -> None:
    """It is told that the stream is over; only its own cancellation cancels it."""
    call: Any = _Cancelled()
    with pytest.raises(PeerUnavailable):
        await FeedStream(call, "fra", lambda batch: batch).ack(Report("1", 2))


# --- who calls


async def test_the_secret_of_the_pair_opens_the_feed(model: Model) -> None:
    """The right one does; a wrong one, none, or another site's name does not."""
    port, right = free_port(), "0123456789abcdef"
    async with served(site_of(model), [peer_at(1, "nyc", right)], port):
        async with dialled(peer_at(port, "fra", right)) as client:
            await client.hello(1)
        for secret, name in (("wrong" * 4, "nyc"), (None, "nyc"), (right, "lon")):
            async with dialled(peer_at(port, "fra", secret), name) as client:
                with pytest.raises(Unauthenticated):
                    await client.hello(1)
                with pytest.raises(Unauthenticated):
                    await client.keys([TagName(REPOSITORY, Tag("v1"))])
                with pytest.raises(Unauthenticated):
                    await _scan(client)


async def test_another_site_at_the_address_is_refused(model: Model) -> None:
    """Two sites whose addresses were swapped by mistake do not mix."""
    port = free_port()
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port),
        dialled(peer_at(port, "lon")) as client,
    ):
        with pytest.raises(Denied, match="site fra"):
            await client.hello(1)


async def test_a_port_in_use_is_a_problem_of_the_configuration(model: Model) -> None:
    """It is said by the key's name, and nobody shares a port silently."""
    port = free_port()
    async with served(site_of(model), [], port):
        second = FeedServer(site_of(model), [], Metrics("gateway"), heard=unheard)
        with pytest.raises(ConfigError, match=r"grpc\.listen"):
            await second.start(Address("127.0.0.1", port))


async def test_health_is_served(model: Model) -> None:
    """What Kubernetes and grpc clients ask first."""
    port = free_port()
    async with (
        served(site_of(model), [], port),
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_streams_end_with_the_server(model: Model) -> None:
    """A gateway that stops ends its streams, and the follower hears of it."""
    port = free_port()
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port) as server,
        dialled(peer_at(port, "fra")) as client,
        told(client, FROM_START) as (_, batches),
    ):
        await anext(batches)
        await server.stop()
        with pytest.raises(PeerUnavailable):
            await anext(batches)


# --- nonsense


async def test_nonsense_is_answered_as_such(model: Model) -> None:
    """A call that can't be read ends with INVALID_ARGUMENT, and the server goes on."""
    port = free_port()
    metadata = (("entrepot-site", "nyc"),)
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port),
        aio.insecure_channel(f"127.0.0.1:{port}", options=DIALLER_OPTIONS) as channel,
    ):
        stub = FeedStub(channel)
        keys_request = pb.KeysRequest(names=[pb.Name(repository="../..", tag="v1")])
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Keys(keys_request, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        call = stub.Changes(metadata=metadata)
        await call.write(pb.ChangesRequest(ack=pb.Ack(incarnation="1", revision=1)))
        with pytest.raises(aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await stub.Keys(pb.KeysRequest(), metadata=metadata)


async def test_a_peer_that_talks_nonsense_is_named() -> None:
    """Nothing of it is handed on; the error says which side it was."""
    async with babbling() as client:
        with pytest.raises(FeedDamaged) as caught:
            await client.hello(1)
        assert caught.value.site == "fra"
        with pytest.raises(FeedDamaged):
            await _scan(client)
        with pytest.raises(FeedDamaged):
            await anext(client.repository(REPOSITORY))
        with pytest.raises(PeerUnavailable, match="can't be read"):
            await client.keys([TagName(REPOSITORY, Tag("v1"))])


async def test_a_key_of_a_kind_that_is_not_known_is_not_told(model: Model) -> None:
    """A newer version's replicated keys do not stop this one's feed."""
    await model.kv.txn([], [Put(b"P/team/**", b"a policy")])
    await model.image("v1")
    async with feed(model) as client:
        (first, *_) = await _scan(client)
    assert len(first.changes) == 2


async def test_have_tells_what_can_be_read(model: Model) -> None:
    """Only of the repository that is asked about."""
    digest = await model.upload(b"blob")
    port = free_port()
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port),
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = FeedStub(channel)
        for repository, expected in (("team/app", [digest.packed]), ("other", [])):
            asked = [digest.packed, Digest.of(b"none").packed]
            reply = await stub.Have(
                pb.HaveRequest(repository=repository, digests=asked),
                metadata=(("entrepot-site", "nyc"),),
            )
            assert list(reply.digests) == expected
