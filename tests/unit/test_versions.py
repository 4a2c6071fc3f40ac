"""Sites of different versions: what one does not know costs nothing that both know."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

import pytest
from grpc import StatusCode, aio

from node import keys
from node.change import Change
from node.globs import Filter
from node.keys import TagName
from node.records import Cursor
from node.reference import Repository, Tag
from node.register import Register
from node.wire import feed_codec, hello_codec
from node.wire import feed_pb2 as pb
from node.wire.feed_channel import SERVICE, credentials
from node.wire.feed_codec import MINOR, Batch, Start
from node.wire.feed_pb2_grpc import FeedStub
from replicator import follow as follow_module
from tests.fake_kv import MemoryKV
from tests.feeds import peer_at, served, site_of, telling
from tests.following import Here, There
from tests.model import Model
from tests.ports import free_port
from tests.waiting import eventually

DEADLINE_S: Final = 120.0
# A field of number 100 that holds one byte: nobody here has given it a meaning.
FROM_THE_FUTURE: Final = b"\xa2\x06\x01x"


@pytest.fixture(autouse=True)
def _saves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between saves is too long for tests."""
    monkeypatch.setattr(follow_module, "_SAVE_S", 0.01)


def _told(tag: str, revision: int) -> Change:
    return Change(TagName(Repository("a"), Tag(tag)), Register({"x": revision}), revision)


def _newer(message: pb.Change) -> pb.Change:
    """The change of a name of a kind that this version does not know."""
    message.ClearField("name")
    return pb.Change.FromString(message.SerializeToString() + FROM_THE_FUTURE)


async def test_a_newer_minor_version_is_followed() -> None:
    """Its Hello may say more than we know."""
    newer = pb.HelloReply.FromString(
        pb.HelloReply(site="fra", incarnation="1", protocol=1, minor=99).SerializeToString()
        + FROM_THE_FUTURE
    )
    assert hello_codec.read_hello(newer).minor == 99
    async with telling(Batch("1", [], 3, False, 3), minor=MINOR + 1) as client:
        assert (await client.hello(1)).minor == MINOR + 1


async def test_a_name_of_a_newer_kind_is_left_out() -> None:
    """It parks nothing and stops nothing: what else was told is applied, and the cursor passes."""
    batch = feed_codec.batch_message(Batch("1", [_told("v1", 1), _told("x", 2)], 3, False, 3))
    batch.changes[1].CopyFrom(_newer(batch.changes[1]))
    assert feed_codec.read_batch(batch).unknown == 1
    here = Here()
    async with telling(batch, minor=MINOR + 1) as client, asyncio.TaskGroup() as group:
        running = group.create_task(here.follower(client, await here.leads()).run())
        await eventually(here.passed, DEADLINE_S, "the cursor is behind it")
        running.cancel()
    assert here.tags == ["v1"]
    assert here.parks == []


def test_a_change_of_no_kind_at_all_is_nonsense() -> None:
    """Only what holds something that we don't know is left for a newer version."""
    batch = feed_codec.batch_message(Batch("1", [_told("v1", 1)], 3, False, 3))
    batch.changes[0].ClearField("name")
    found = feed_codec.read_batch(batch)
    assert set(found.unreadable) == {"a"}
    assert found.unknown == 0


async def test_who_knows_more_is_told_all_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a version left out comes with the next one, which knows it; once."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up():
        for minor, times in ((MINOR, 1), (MINOR, 1), (MINOR + 1, 2)):
            monkeypatch.setattr(follow_module, "MINOR", minor)
            told = partial(lambda times: here.tags == ["v1"] * times, times)
            async with here.following(there.peer):
                await eventually(told, DEADLINE_S, "it is told")
                await eventually(here.passed, DEADLINE_S, "the cursor is behind it")


async def test_a_request_of_a_newer_kind_ends_no_stream() -> None:
    """A receiver of a newer version may say more on the stream of acks; acks go on to count."""
    model, port = Model(MemoryKV()), free_port()
    await model.image("v1")
    async with (
        served(site_of(model), [peer_at(free_port(), "nyc")], port),
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call = FeedStub(channel).Changes(metadata=credentials("nyc", None))
        start = Start(Cursor("1", 0), Filter())
        await call.write(feed_codec.start_message(start))
        await call.write(pb.ChangesRequest.FromString(FROM_THE_FUTURE))
        await call.write(pb.ChangesRequest(ack=pb.Ack(incarnation="1", revision=2)))

        await eventually(
            lambda: keys.ack("nyc") in model.kv.entries(), DEADLINE_S, "the ack is recorded"
        )
        call.cancel()


async def test_a_call_that_is_not_known_is_answered_so() -> None:
    """A newer peer learns that we don't have it, and can do without."""
    port = free_port()
    async with (
        served(site_of(Model(MemoryKV())), [peer_at(free_port(), "nyc")], port),
        aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = channel.unary_unary(f"/{SERVICE}/Foretell")
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"")
    assert caught.value.code() is StatusCode.UNIMPLEMENTED


async def test_revisions_that_go_back_are_told_and_followed_anew() -> None:
    """A feed that contradicts itself is refused by name, and all of it is asked for again."""
    here = Here()
    feed = (Batch("1", [_told("v1", 9)], 9, False, 9), Batch("1", [_told("v2", 5)], 5, False, 9))
    async with telling(*feed) as client, asyncio.TaskGroup() as group:
        running = group.create_task(here.follower(client, await here.leads()).run())

        async def refused() -> bool:
            status = await here.status(peer_at(1, "fra"))
            assert status.last_error == (
                "peer fra sent a feed that can't be read: revision 5 after 9"
            )
            return status.state == "refused"

        await eventually(refused, DEADLINE_S, "it is refused")
        await eventually(lambda: here.tags.count("v1") > 1, DEADLINE_S, "it is told anew")
        running.cancel()
    assert "v2" not in here.tags
