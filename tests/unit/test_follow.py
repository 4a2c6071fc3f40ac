"""Following a peer: what is remembered, what is acknowledged, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from node import keys
from node.change import Change
from node.config_models import Peer
from node.election import Candidate, Leadership
from node.keys import TagName
from node.kv import Delete, Put
from node.records import Cursor
from node.replication_status import PeerStatus, peers_status
from node.wire import codec
from replicator import follow as follow_module
from replicator.apply import Applied, Parked, Result
from replicator.follow import Follow
from tests.fake_kv import MemoryKV
from tests.feeds import babbling, dialled, peer_at, served, site_of
from tests.model import REPOSITORY, Model
from tests.ports import free_port
from tests.waiting import eventually

DEADLINE_S = 10.0


@pytest.fixture(autouse=True)
def _saves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between saves is too long for tests."""
    monkeypatch.setattr(follow_module, "_SAVE_S", 0.01)


@dataclass
class _Here:
    """The following site: its KV, what it applied, and what it can't."""

    kv: MemoryKV = field(default_factory=MemoryKV)
    applied: list[Change] = field(default_factory=list)
    failing: str = ""

    async def apply(self, change: Change) -> Result:
        """See Applying."""
        await asyncio.sleep(0)
        if self.failing:
            return Parked(self.failing)
        self.applied.append(change)
        return Applied()

    def cursor(self) -> Cursor | None:
        """What is written down."""
        value = self.kv.entries().get(keys.cursor("fra"))
        return None if value is None else codec.decode_cursor(value)

    def passed(self) -> bool:
        """Whether a scan has come to its end."""
        cursor = self.cursor()
        return cursor is not None and cursor.revision > 0

    @property
    def parks(self) -> list[bytes]:
        """The keys of what is parked."""
        return [key for key in self.kv.entries() if key.startswith(b"park/")]

    @property
    def tags(self) -> list[str]:
        """The tags that were applied, in their order."""
        return [c.name.tag for c in self.applied if isinstance(c.name, TagName)]

    async def leads(self) -> Leadership:
        """A new leadership; one before it is over."""
        for entry in (await self.kv.read([keys.candidates("follow/fra")])).ranges[0]:
            await self.kv.txn([], [Delete(entry.key)])
        return await Candidate(self.kv, "follow/fra", "w", await self.kv.grant(5)).enter()

    @asynccontextmanager
    async def following(self, peer: Peer) -> AsyncIterator[Follow]:
        """A follower that runs until the body ends."""
        async with dialled(peer) as client, asyncio.TaskGroup() as group:
            follow = Follow(self.kv, client, self, await self.leads(), clock_ms=lambda: 1_000_000)
            task = group.create_task(follow.run())
            yield follow
            task.cancel()

    async def status(self, peer: Peer) -> PeerStatus:
        """What is said of the peer."""
        (status,) = await peers_status(self.kv, [peer], clock_ms=lambda: 1_000_000)
        return status


@dataclass
class _There:
    """The followed site and its feed."""

    model: Model = field(default_factory=lambda: Model(MemoryKV()))
    port: int = field(default_factory=free_port)
    incarnation: str = "1"

    @property
    def peer(self) -> Peer:
        """How it is configured at the follower."""
        return peer_at(self.port, "fra")

    @asynccontextmanager
    async def up(self, **filters: Sequence[str]) -> AsyncIterator[None]:
        """Serve the feed until the body ends, through these filters."""
        site = site_of(self.model, "fra", self.incarnation)
        async with served(site, [peer_at(1, "nyc", None, **filters)], self.port):
            yield

    async def revision(self) -> int:
        """The newest."""
        return (await self.model.kv.read([])).revision

    def acked(self) -> int:
        """What the follower has acknowledged."""
        value = self.model.kv.entries().get(keys.ack("nyc"))
        return 0 if value is None else codec.decode_ack(value).revision


async def test_all_that_is_and_all_that_comes_is_applied() -> None:
    """First the state, then each change; the cursor is saved and acknowledged behind them."""
    here, there = _Here(), _There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the state is applied")
        await there.model.image("v2", layer=b"other")
        pushed = await there.revision()
        await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "the change is applied")
        await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "it is acknowledged")
        cursor = here.cursor()
        assert cursor is not None
        assert cursor.incarnation == "1"
        assert cursor.revision >= pushed
        status = await here.status(there.peer)
    assert (status.state, status.parked, status.last_error) == ("following", 0, None)
    assert status.cursor == cursor.revision


async def test_a_follower_goes_on_where_the_one_before_it_was() -> None:
    """Nothing is told twice to the next leader."""
    here, there = _Here(), _There()
    await there.model.image("v1")
    async with there.up():
        async with here.following(there.peer):
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the first is applied")
        await there.model.image("v2", layer=b"other")
        async with here.following(there.peer):
            await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "the second")


async def test_what_is_parked_is_not_acknowledged() -> None:
    """The cursor passes it, the ack stays below it; when it is caught up the ack follows."""
    here, there = _Here(failing="no blob"), _There()
    async with there.up(), here.following(there.peer):
        await eventually(here.cursor, DEADLINE_S, "the empty state is taken")
        await there.model.image("v1")
        await eventually(lambda: here.parks, DEADLINE_S, "the repository is parked")
        (entry,) = (await here.kv.read([keys.all_parked("fra")])).ranges[0]
        record = codec.decode_parked(entry.value)
        assert keys.parked_repository(entry.key) == REPOSITORY
        assert record.reason == "no blob"
        cursor = here.cursor()
        assert cursor is not None
        assert cursor.revision >= record.last
        assert there.acked() < record.first
        status = await here.status(there.peer)
        assert (status.state, status.parked, status.last_error) == ("parked", 1, "no blob")
        here.failing = ""
        await eventually(lambda: not here.parks, DEADLINE_S, "it has caught up")
        await eventually(lambda: there.acked() >= record.last, DEADLINE_S, "it is acknowledged")
    assert here.tags == ["v1"]


async def test_a_peer_that_is_away_is_followed_when_it_is_back() -> None:
    """Unreachable meanwhile, and nothing is told twice."""
    here, there = _Here(), _There()

    async def state(expected: str) -> None:
        async def reached() -> bool:
            status = await here.status(there.peer)
            assert status.state == expected, status
            return True

        assert await eventually(reached, DEADLINE_S, expected)

    async with here.following(there.peer):
        await state("unreachable")
        async with there.up():
            await there.model.image("v1")
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "it is followed")
            await state("following")
        await state("unreachable")
        await there.model.image("v2", layer=b"other")
        async with there.up():
            await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "and again")


async def test_a_new_life_of_the_source_is_told_from_the_beginning() -> None:
    """A restored site's revisions mean nothing to an old cursor."""
    here, there = _Here(), _There()
    await there.model.image("v1")
    async with here.following(there.peer):
        async with there.up():
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the first life")
        there.incarnation = "2"
        async with there.up():
            await eventually(lambda: here.tags == ["v1", "v1"], DEADLINE_S, "the next")
    cursor = here.cursor()
    assert cursor is not None
    assert cursor.incarnation == "2"


@pytest.mark.parametrize("side", ["source", "receiver"])
async def test_a_wider_filter_brings_what_the_cursor_has_passed(side: str) -> None:
    """What existed before is told too, once, whichever of the two sites let go of its filter."""
    here, there = _Here(), _There()
    narrow: Mapping[str, Sequence[str]] = {"tags": ("v*",)}
    ours, theirs = (narrow, {}) if side == "receiver" else ({}, narrow)
    for tag in ("v1", "x1"):
        await there.model.image(tag)
    async with there.up(**theirs), here.following(peer_at(there.port, "fra", None, **ours)):
        await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "what passes both is applied")
        await eventually(here.passed, DEADLINE_S, "the cursor is behind it")
    for _ in range(2):
        async with there.up(), here.following(there.peer):
            await eventually(lambda: here.tags == ["v1", "v1", "x1"], DEADLINE_S, "all is told")
            await eventually(here.passed, DEADLINE_S, "the cursor is behind it")


async def test_a_deposed_follower_stops() -> None:
    """When somebody else leads its save is refused, and it applies no more."""
    here, there = _Here(), _There()
    async with there.up(), dialled(there.peer) as client:
        leadership = await here.leads()
        follow = Follow(here.kv, client, here, leadership, clock_ms=lambda: 0)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_quietly(follow))
            await eventually(here.cursor, DEADLINE_S, "it follows")
            await here.kv.revoke(leadership.lease)
            await there.model.image("v1")
            await eventually(running.done, DEADLINE_S, "it has stopped")


async def test_a_feed_that_makes_no_sense_is_refused() -> None:
    """Nothing of it is applied, no cursor moves, and the status says who sent it."""
    here = _Here()
    async with babbling() as client, asyncio.TaskGroup() as group:
        follow = Follow(here.kv, client, here, await here.leads(), clock_ms=lambda: 0)
        running = group.create_task(follow.run())

        async def refused() -> bool:
            status = await here.status(peer_at(1, "fra"))
            assert status.state == "refused", status
            assert "fra" in (status.last_error or "")
            return True

        assert await eventually(refused, DEADLINE_S, "it is refused")
        running.cancel()
    assert here.applied == []
    assert here.cursor() == Cursor("", 0)


async def test_what_does_not_concern_us_writes_nothing() -> None:
    """The peer's own writes are passed in memory: two idle sites keep each other no busier."""
    here, there = _Here(), _There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer) as follow:
        pushed = await there.revision()
        await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "all is told")
        before = (await here.kv.read([])).revision
        for n in range(5):
            await there.model.kv.txn([], [Put(b"local", str(n).encode())])
            newest = await there.revision()
            await eventually(partial(_heard, follow, newest), DEADLINE_S, "it is heard of")
        assert (await here.kv.read([])).revision == before


def _heard(follow: Follow, revision: int) -> bool:
    return follow._head >= revision and not follow._news.is_set()


async def _quietly(follow: Follow) -> None:
    with pytest.raises(ExceptionGroup):
        await follow.run()
