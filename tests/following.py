"""Two sites of which one follows the other: the real follower, over KVs in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from node import keys
from node.change import Change
from node.config_models import Peer
from node.election import Candidate, Leadership
from node.keys import Name, TagName
from node.kv import Delete, Put
from node.losses import Losses
from node.manifest import Manifest
from node.records import Cursor, Pushed, SiteRecord
from node.register import Register, taken
from node.replication_status import PeerStatus, peers_status
from node.scans import Scans
from node.telemetry import Metrics
from node.wire import codec
from replicator.apply import Applied, Parked, Result
from replicator.feed_client import FeedClient
from replicator.follow import Follow
from replicator.measures import Measures
from replicator.progress import ScanProgress
from replicator.reconcile import Numbers, Reconcile
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV
from tests.feeds import dialled, peer_at, served, site_of
from tests.model import Model
from tests.ports import free_port
from tests.waiting import eventually

DEADLINE_S = 120.0


@dataclass
class Here:
    """The following site: its KV, what it applied, and what it can't."""

    kv: MemoryKV = field(default_factory=MemoryKV)
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    applied: list[Change] = field(default_factory=list)
    failing: str = ""
    deletes: bool = True
    """Whether what is deleted there is taken."""
    most: int | None = None
    """Changes that are applied before the next ones wait for `go_on`; None: all."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    forgetful: bool = True
    """Whether it applies again what it has, so that all that is told is seen in `applied`."""
    time_ms: int = 1_000_000
    known: list[int] = field(default_factory=list)
    """How far peers knew of this site, as they said it."""
    metrics: Metrics = field(default_factory=lambda: Metrics("replicator"))

    def __post_init__(self) -> None:
        self.measures = Measures(self.metrics)
        self.numbers = Numbers(self.metrics)

    async def prepare(self, change: Change) -> None:
        """See Applying."""

    async def apply(self, change: Change, _body: Manifest | None = None) -> Result:
        """See Applying."""
        await asyncio.sleep(0)
        if self.most is not None and len(self.applied) >= self.most:
            await self.go_on.wait()
        if self.failing:
            return Parked(self.failing)
        self.applied.append(change)
        mine = self._register(change.name)
        merged = taken(mine, change.register, deletes=self.deletes)
        if merged != mine:
            put = Put(keys.register(change.name), codec.encode_register(merged))
            await self.kv.txn([], [put])
        return Applied()

    async def registers(self, names: Collection[Name]) -> Mapping[Name, Register[Pushed]]:
        """See Held."""
        return {name: Register() if self.forgetful else self._register(name) for name in names}

    def _register(self, name: Name) -> Register[Pushed]:
        value = self.kv.entries().get(keys.register(name))
        return Register() if value is None else codec.decode_register(value)

    async def heard(self, revision: int) -> None:
        """See Follow."""
        self.known.append(revision)

    def cursor(self) -> Cursor | None:
        """What is written down."""
        value = self.kv.entries().get(keys.cursor("fra"))
        return None if value is None else codec.decode_cursor(value)

    @property
    def reached(self) -> int:
        """The revision of the cursor."""
        cursor = self.cursor()
        return 0 if cursor is None else cursor.revision

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

    async def lives(self, incarnation: str) -> None:
        """Begin this life of the site."""
        record = codec.encode_site(SiteRecord("nyc", incarnation))
        await self.kv.txn([], [Put(keys.SITE, record)])

    async def leads(self) -> Leadership:
        """A new leadership; one before it is over."""
        for entry in (await self.kv.read([keys.candidates("follow/fra")])).ranges[0]:
            await self.kv.txn([], [Delete(entry.key)])
        return await Candidate(self.kv, "follow/fra", "w", await self.kv.grant(5)).enter()

    def reconcile(self, client: FeedClient) -> Reconcile:
        """Comparisons that do not run yet."""
        return Reconcile(
            self.kv,
            Scans(self.kv),
            Losses(self.kv, self.blobs),
            client,
            self.numbers,
            clock_ms=lambda: self.time_ms,
        )

    def follower(self, client: FeedClient, leadership: Leadership) -> Follow:
        """A follower that does not run yet."""
        return Follow(
            self.kv,
            client,
            self,
            leadership,
            held=self,
            reconcile=self.reconcile(client),
            heard=self.heard,
            progress=ScanProgress(),
            measures=self.measures.of("fra"),
            clock_ms=lambda: self.time_ms,
        )

    @asynccontextmanager
    async def following(self, peer: Peer) -> AsyncIterator[Follow]:
        """A follower that runs until the body ends."""
        async with dialled(peer) as client, asyncio.TaskGroup() as group:
            await self.lives(client.record.incarnation)
            follow = self.follower(client, await self.leads())
            task = group.create_task(follow.run())
            yield follow
            task.cancel()

    def measured(self, name: str, **labels: str) -> float | None:
        """What a metric about the peer says; None if it says nothing."""
        return self.metrics.registry.get_sample_value(f"entrepot_{name}", {"peer": "fra", **labels})

    async def status(self, peer: Peer) -> PeerStatus:
        """What is said of the peer."""
        (status,) = await peers_status(self.kv, [peer], clock_ms=lambda: self.time_ms)
        return status

    async def sees(self, peer: Peer, result: str, *, in_sync: bool = False) -> PeerStatus:
        """Wait until this is what is said of a comparison with the peer."""
        found: list[PeerStatus] = []

        async def said() -> bool:
            status = await self.status(peer)
            assert status.compared is not None
            assert (status.compared.result, status.in_sync) == (result, in_sync), status
            found.append(status)
            return True

        await eventually(said, DEADLINE_S, f"{result} is said")
        return found[-1]


@dataclass
class There:
    """The followed site and its feed."""

    model: Model = field(default_factory=lambda: Model(MemoryKV()))
    port: int = field(default_factory=free_port)
    incarnation: str = "1"

    @property
    def peer(self) -> Peer:
        """How it is configured at the follower."""
        return self.seen_through()

    def seen_through(self, **filters: Sequence[str]) -> Peer:
        """How it is configured at a follower that takes these only."""
        return peer_at(self.port, "fra", None, **filters)

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
        return 0 if value is None else codec.decode_ack(value).report.revision
