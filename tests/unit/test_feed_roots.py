"""Sums and names over gRPC: what a peer is told, and what is believed of one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from grpc import StatusCode, aio

from node.errors import Unauthenticated
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.reference import Repository, Tag
from node.roots import BUCKETS, Roots, Scanned, Sum
from node.wire import feed_pb2 as pb
from node.wire import follow_codec, roots_codec
from node.wire.follow_codec import Compared, FollowRecord, Verdict
from node.wire.roots_codec import TheirNames, TheirRoots
from replicator.feed_client import FeedClient, FeedDamaged
from tests.fake_kv import MemoryKV
from tests.feeds import babbling, dialled, feed, peer_at, served, site_of
from tests.model import REPOSITORY, Model
from tests.ports import free_port

SUMS = tuple(range(BUCKETS))


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


async def _names(client: FeedClient, *buckets: int) -> dict[Name, int]:
    found: dict[Name, int] = {}
    async for told in client.names(buckets or tuple(range(BUCKETS))):
        assert told.incarnation == "1"
        found |= told.hashes
    return found


async def test_sums_and_names_are_those_of_the_site(model: Model) -> None:
    """Of one life, as of its newest revision; the names of all buckets add up to the sums."""
    await model.image("v1")
    await model.metadata.delete_tag(REPOSITORY, Tag("v1"))
    newest = (await model.kv.read([])).revision
    async with feed(model) as client:
        told = await client.roots()
        assert told is not None
        names = await _names(client)
    assert (told.incarnation, told.scanned.exact) == ("1", True)
    assert told.scanned.revision >= newest
    roots = told.scanned.roots
    assert (roots.live, roots.tombstones) == (1, 1)
    assert {type(name) for name in names} == {TagName, ManifestName}
    total = Sum()
    total.add_hashes(names)
    assert total.roots.agrees(roots, range(BUCKETS))


async def test_both_filters_must_let_a_name_through(model: Model) -> None:
    """What either site does not take is in no sum and in no list."""
    for tag in ("v1", "v2", "x1"):
        await model.image(tag)
    port = free_port()
    theirs = peer_at(free_port(), "nyc", None, tags=("v*",))
    async with (
        served(site_of(model), [theirs], port),
        dialled(peer_at(port, "fra", None, tags=("*1",))) as client,
    ):
        told = await client.roots()
        names = await _names(client)
        hello = await client.hello(1)
    assert told is not None
    assert told.scanned.roots.registers == len(names)
    assert [name.tag for name in names if isinstance(name, TagName)] == ["v1"]
    assert hello.filter == Filter(("**",), ("v*",))


async def test_the_secret_of_the_pair_opens_them(model: Model) -> None:
    """Nobody else is told how much there is, nor what."""
    port = free_port()
    async with (
        served(site_of(model), [peer_at(free_port(), "nyc", "secret")], port),
        dialled(peer_at(port, "fra", "guessed")) as client,
    ):
        with pytest.raises(Unauthenticated):
            await client.roots()
        with pytest.raises(Unauthenticated):
            await _names(client)


async def test_nonsense_is_not_believed() -> None:
    """Sums that are too few, a name without a hash: nothing is compared by them."""
    async with babbling() as client:
        with pytest.raises(FeedDamaged):
            await client.roots()
        with pytest.raises(FeedDamaged):
            await _names(client)


async def test_a_request_for_no_bucket_is_refused(model: Model) -> None:
    """There are 256 of them."""
    async with feed(model) as client:
        call = client._stub.Bucket(
            pb.BucketRequest(buckets=[BUCKETS]), metadata=client._credentials
        )
        with pytest.raises(aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT


async def test_a_version_without_sums_is_not_compared_with(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no error that a peer is older."""
    async with feed(model) as client:
        channel = client._channel
        unknown = channel.unary_unary(
            "/entrepot.feed.v1.Feed/NotBuiltThen",
            request_serializer=pb.RootsRequest.SerializeToString,
            response_deserializer=pb.RootsReply.FromString,
        )
        monkeypatch.setattr(client._stub, "Roots", unknown)
        assert await client.roots() is None


def test_messages_arrive_as_they_were_sent() -> None:
    """Sums of 16 bytes, names with their hashes, requests with their filters."""
    wanted = Filter(("a/**",), ("v*",))
    assert roots_codec.read_roots_request(roots_codec.roots_request(wanted)) == wanted
    theirs = TheirRoots("life", Scanned(Roots((2**128 - 1, *SUMS[1:]), 3, 4), 9, True), 5)
    assert roots_codec.read_roots_reply(roots_codec.roots_reply(theirs)) == theirs
    asked = roots_codec.bucket_request(wanted, [3, 255])
    assert roots_codec.read_bucket_request(asked) == (wanted, frozenset({3, 255}))
    names = TheirNames("life", {TagName(Repository("a"), Tag("b")): 7})
    assert roots_codec.read_bucket_reply(roots_codec.bucket_reply(names)) == names


def _reply() -> pb.RootsReply:
    return roots_codec.roots_reply(TheirRoots("life", Scanned(Roots(SUMS), 9, True)))


def _short() -> pb.RootsReply:
    reply = _reply()
    reply.sums[4] = b"short"
    return reply


def _one_more() -> pb.RootsReply:
    reply = _reply()
    reply.sums.append(reply.sums[0])
    return reply


def _no_life() -> pb.RootsReply:
    reply = _reply()
    reply.incarnation = ""
    return reply


@pytest.mark.parametrize("spoilt", [_short, _one_more, _no_life])
def test_sums_that_cannot_be_are_refused(spoilt: Callable[[], pb.RootsReply]) -> None:
    """Nothing is compared with half of an answer."""
    with pytest.raises(ValueError, match=r"\w"):
        roots_codec.read_roots_reply(spoilt())


def test_what_was_found_is_kept_as_it_was() -> None:
    """Also by a process of a version before the one that found it: it can't say what it is."""
    compared = Compared(Verdict.DIFFERS, 1, 2, 3, 4, 5, 6, "why", 7, "ours", "theirs")
    record = FollowRecord("following", compared=compared, stands=True)
    written = follow_codec.encode_follow(record)
    assert follow_codec.decode_follow(written) == record
    later = pb.FollowRecord.FromString(written)
    later.compared.result = "sublime"
    read = follow_codec.decode_follow(later.SerializeToString()).compared
    assert read is not None
    assert read.result is Verdict.UNKNOWN
