"""Comparing with a peer while it is followed: what is mended, and how long sameness is said."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

import pytest

from node import keys
from node.change import Change
from node.errors import MetadataUnavailable
from node.keys import Name, TagName
from node.kv import Changes, Put, Range
from node.records import Pushed
from node.reference import Tag
from node.register import Dot, Register
from node.replication_status import FRESH_S, ask_to_compare
from node.wire import codec
from node.wire.feed_codec import Batch
from node.wire.roots_codec import TheirNames, TheirRoots
from replicator import follow as follow_module
from replicator import reconcile as reconcile_module
from replicator.feed_client import FeedClient
from tests import fake_kv
from tests.fake_kv import Fault
from tests.feeds import dialled, peer_at, telling
from tests.following import DEADLINE_S, Here, There
from tests.model import REPOSITORY
from tests.waiting import eventually

V1 = TagName(REPOSITORY, Tag("v1"))
OURS = TagName(REPOSITORY, Tag("ours"))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes between comparisons are too long for tests."""
    monkeypatch.setattr(follow_module, "_SAVE_S", 0.01)
    monkeypatch.setattr(reconcile_module, "_SOON_S", 0.05)
    monkeypatch.setattr(reconcile_module, "_SETTLES_S", 0.0)
    monkeypatch.setattr(reconcile_module, "_SHARE", 0)


async def _write(here: Here, name: Name, register: Register[Pushed]) -> None:
    await here.kv.txn([], [Put(keys.register(name), codec.encode_register(register))])


def _tombstone(n: int = 1) -> Register[Pushed]:
    return Register({"nyc#1": n}, {})


async def test_two_sites_that_hold_the_same_are_said_to_be_in_sync() -> None:
    """After the first scan, by a comparison, with how much it was and as of when."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        status = await here.sees(there.peer, "same", in_sync=True)
    assert status.compared is not None
    assert (status.compared.live, status.compared.tombstones) == (2, 0)
    assert status.compared.same_ms == status.compared.ms == 1_000_000
    assert status.compared.peer_revision >= 1


async def test_a_key_that_is_lost_here_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor has passed it and will not go back: only comparing finds it."""
    monkeypatch.setattr(fake_kv, "_check_kept", lambda *_: None)
    here, there = Here(), There()
    for tag in ("v1", "v2"):
        await there.model.image(tag, layer=tag.encode())
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        before = here.reached
        here.kv.lose(keys.register(V1))
        await ask_to_compare(here.kv, "fra")
        await eventually(lambda: keys.register(V1) in here.kv.entries(), DEADLINE_S, "it is back")
        await here.sees(there.peer, "same", in_sync=True)
        assert here.reached >= before
    assert here.tags.count("v1") == 2
    assert here.tags.count("v2") == 1


async def test_what_a_comparison_brings_moves_no_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be newer than what the stream has told; what is in between is still to come (I13)."""
    keys_of = FeedClient.keys

    async def told(self: FeedClient, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        found = await keys_of(self, names)
        return {n: c and Change(c.name, c.register, 999_999, c.body) for n, c in found.items()}

    monkeypatch.setattr(FeedClient, "keys", told)
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        here.kv.lose(keys.register(V1))
        await ask_to_compare(here.kv, "fra")
        await eventually(lambda: keys.register(V1) in here.kv.entries(), DEADLINE_S, "it is back")
        await here.sees(there.peer, "same", in_sync=True)
    assert here.reached <= await there.revision()


async def test_what_is_written_here_ends_it_at_once() -> None:
    """Whoever asks in the moment after a push is not told that the sites are the same."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        for n in range(1, 4):
            await here.sees(there.peer, "same" if n == 1 else "holds", in_sync=n == 1)
            await _write(here, OURS, _tombstone(n))
            assert not (await here.status(there.peer)).in_sync


async def test_what_the_peer_writes_ends_it_until_it_is_applied_and_compared() -> None:
    """Its change is on its way, then applied, then compared anew."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        before = (await here.sees(there.peer, "same", in_sync=True)).compared
        await there.model.image("v2", layer=b"other")

        async def anew() -> bool:
            status = await here.status(there.peer)
            assert status.in_sync
            assert before is not None
            assert status.compared is not None
            return status.compared.live > before.live

        await eventually(anew, DEADLINE_S, "both are the same again")


async def test_a_change_that_is_heard_while_comparing_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer's sums were of before it, and a delete that is not taken writes nothing here."""
    here, there = Here(deletes=False), There()
    await there.model.image("v1")
    peer = there.peer.model_copy(update={"deletes": False})
    async with there.up(), dialled(peer) as client, asyncio.TaskGroup() as group:
        await here.lives(client.record.incarnation)
        following = group.create_task(here.follower(client, await here.leads()).run())
        await here.sees(peer, "same", in_sync=True)
        ask = client.roots

        async def roots() -> TheirRoots | None:
            told = await ask()
            if len(here.tags) == 1:
                mine = codec.decode_register(there.model.kv.entries()[keys.register(V1)])
                dead = codec.encode_register(mine.delete(Dot("fra#1", 99)))
                await there.model.kv.txn([], [Put(keys.register(V1), dead)])
                await eventually(lambda: len(here.tags) == 2, DEADLINE_S, "it is heard")
            return told

        monkeypatch.setattr(client, "roots", roots)
        await ask_to_compare(here.kv, "fra")
        await here.sees(peer, "holds")
        following.cancel()


async def test_what_only_this_site_has_is_no_reason_to_fetch() -> None:
    """It has all that the peer does and more, and says so; nothing is told again."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        await _write(here, OURS, _tombstone())
        status = await here.sees(there.peer, "holds")
    assert status.compared is not None
    assert (status.compared.differing, status.compared.tombstones) == (0, 1)
    assert status.compared.same_ms == 1_000_000
    assert here.tags == ["v1"]


async def test_what_was_held_is_not_gone_through_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A site that has more than its peer would else read all that both have, each minute."""
    asked: list[Sequence[int]] = []
    names = FeedClient.names

    def counted(self: FeedClient, buckets: Sequence[int]) -> AsyncGenerator[TheirNames, None]:
        asked.append(buckets)
        return names(self, buckets)

    monkeypatch.setattr(FeedClient, "names", counted)
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        await _write(here, OURS, _tombstone())
        before = await here.sees(there.peer, "holds")
        await ask_to_compare(here.kv, "fra")

        async def again() -> bool:
            return (await here.status(there.peer)).compared != before.compared

        here.time_ms += 1
        await eventually(again, DEADLINE_S, "it is compared again")
        await here.sees(there.peer, "holds")
    assert len(asked) == 1


async def test_a_later_register_holds_what_the_peer_has() -> None:
    """A tag that was pushed again here differs from the peer's, and lacks nothing of it."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        mine = codec.decode_register(here.kv.entries()[keys.register(V1)])
        await _write(here, V1, mine.delete(Dot("nyc#1", 9)))
        await here.sees(there.peer, "holds")
    assert here.tags == ["v1"]


async def test_nothing_is_said_while_something_is_parked() -> None:
    """What could not be applied is missing, whatever the sums say."""
    here, there = Here(), There()
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        here.failing = "no blob"
        await there.model.image("v1")
        await eventually(lambda: here.parks, DEADLINE_S, "it is parked")
        assert not (await here.status(there.peer)).in_sync
        await here.sees(there.peer, "differs")
        here.failing = ""
        await here.sees(there.peer, "same", in_sync=True)


async def test_nothing_is_said_while_the_peer_is_away() -> None:
    """It may have changed unheard; when it is back it is compared with at once."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with here.following(there.peer):
        async with there.up():
            await here.sees(there.peer, "same", in_sync=True)
        await here.sees(there.peer, "same", in_sync=False)
        async with there.up():
            await here.sees(there.peer, "same", in_sync=True)


async def test_a_peer_that_is_back_is_compared_with_before_anything_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was found before it was away says nothing of what it did since."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with here.following(there.peer):
        async with there.up():
            await here.sees(there.peer, "same", in_sync=True)
        await here.sees(there.peer, "same", in_sync=False)
        asked, go_on, roots = asyncio.Event(), asyncio.Event(), FeedClient.roots

        async def later(self: FeedClient) -> TheirRoots | None:
            asked.set()
            await go_on.wait()
            return await roots(self)

        monkeypatch.setattr(FeedClient, "roots", later)
        async with there.up():
            async with asyncio.timeout(DEADLINE_S):
                await asked.wait()

            async def followed() -> bool:
                return (await here.status(there.peer)).state == "following"

            await eventually(followed, DEADLINE_S, "it is followed again")
            assert not (await here.status(there.peer)).in_sync
            go_on.set()
            await here.sees(there.peer, "same", in_sync=True)


async def test_an_answer_that_may_be_old_proves_nothing() -> None:
    """Without a majority what was written here may not show, and the rest of the status does."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        here.kv.behind = here.kv.copy()
        status = await here.status(there.peer)
        here.kv.behind = None
        assert (status.state, status.in_sync) == ("following", False)


async def test_a_new_life_has_proven_nothing() -> None:
    """A backup brings what was said when it was made, which may be a moment ago."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        status = await here.sees(there.peer, "same", in_sync=True)
        assert status.compared is not None
        assert status.compared.peer_incarnation == there.incarnation
        await here.lives("another")
        assert not (await here.status(there.peer)).in_sync


async def test_the_status_is_told_where_the_proof_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The KV has answered, and then goes away: there is something to say, but not that."""
    here, there = Here(), There()
    await there.model.image("v1")

    async def away(_within: Range, _after: int) -> AsyncIterator[Changes]:
        raise MetadataUnavailable("it went away")
        yield

    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        monkeypatch.setattr(here.kv, "changes", away)
        status = await here.status(there.peer)
        assert (status.state, status.in_sync) == ("following", False)


async def test_nothing_is_said_for_long_where_it_could_not_be_taken_back() -> None:
    """A full store takes no writes, and the follower's lease in it goes on."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        here.kv.faults = lambda _guards, _ops: Fault.REFUSED
        await there.model.image("v2", layer=b"other")
        await eventually(lambda: here.measured("in_sync") == 0, DEADLINE_S, "it is heard")
        here.time_ms += int(FRESH_S * 1000) + 1
        assert not (await here.status(there.peer)).in_sync


async def test_what_stands_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sites at rest stay in sync, however long."""
    monkeypatch.setattr(follow_module, "_RENEWED_S", 0.02)
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        for _ in range(3):
            await here.sees(there.peer, "same", in_sync=True)
            here.time_ms += 2 * int(FRESH_S * 1000)


async def test_all_is_applied_anew_where_that_is_asked_for() -> None:
    """Also what is the same; the cursor stays, and the request is gone when it is done."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        before = here.reached
        await ask_to_compare(here.kv, "fra", full=True)
        await eventually(lambda: here.tags == ["v1", "v1"], DEADLINE_S, "all is told again")

        def answered() -> bool:
            return keys.request("fra") not in here.kv.entries()

        await eventually(answered, DEADLINE_S, "the request is answered")
        await here.sees(there.peer, "same", in_sync=True)
        assert here.reached >= before


async def test_a_request_waits_for_the_next_leader() -> None:
    """It is written down, so whoever follows next does what was asked for."""
    here, there = Here(), There()
    await there.model.image("v1")
    await ask_to_compare(here.kv, "fra", full=True)
    await ask_to_compare(here.kv, "fra")  # asks for no less than was asked for before
    async with there.up(), here.following(there.peer):
        await eventually(lambda: here.tags == ["v1", "v1"], DEADLINE_S, "all is told twice")
        await here.sees(there.peer, "same", in_sync=True)


@pytest.mark.parametrize("side", ["source", "receiver"])
async def test_only_what_both_filters_take_is_compared(side: str) -> None:
    """Sites that replicate a part are in sync when that part is the same."""
    here, there = Here(), There()
    for tag in ("v1", "x1"):
        await there.model.image(tag)
    ours, theirs = ({"tags": ("v*",)}, {}) if side == "receiver" else ({}, {"tags": ("v*",)})
    async with there.up(**theirs), here.following(there.seen_through(**ours)):
        await here.sees(there.peer, "same", in_sync=True)
    assert here.tags == ["v1"]


async def test_a_peer_of_an_older_version_is_followed_and_not_compared() -> None:
    """It tells no filter, so there is nothing to say, and nothing fails."""
    here = Here()
    batch = Batch("1", (), 5, False, 5)
    async with telling(batch) as client, asyncio.TaskGroup() as group:
        following = group.create_task(here.follower(client, await here.leads()).run())
        await here.sees(peer_at(1, "fra"), "unsupported")
        following.cancel()


async def test_metrics_tell_what_was_found() -> None:
    """Registers by kind, comparisons by result, and whether both are the same now."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await here.sees(there.peer, "same", in_sync=True)
        assert here.measured("in_sync") == 1
        assert here.measured("keys", state="live") == 2
        assert here.measured("keys", state="tombstone") == 0
        assert here.measured("reconcile_total", result="same") == 1
        assert here.measured("reconcile_seconds_count") == 1
        await _write(here, OURS, _tombstone())
        await eventually(lambda: here.measured("in_sync") == 0, DEADLINE_S, "it is over")
    assert here.measured("in_sync") == 0
