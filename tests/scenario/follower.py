"""One site following another, as simulated: cursor, parks, retries (RELIABILITY 6.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node import keys
from node.change import Change
from node.digest import Digest
from node.errors import PeerUnavailable, StorageFull
from node.keys import Name
from node.kv import Entry, only
from node.manifest import Descriptor
from node.records import Cursor, Parked
from node.reference import Repository
from node.transaction import Transaction
from node.wire import codec
from replicator.apply import Applied, Apply
from replicator.sift import sift
from tests.scenario.checker import require
from tests.scenario.images import CONTENT
from tests.scenario.site import Network, SimSite


class Follower:
    """Applies at a site what a source tells; it is the Source and the Blobs of its own Apply."""

    def __init__(self, site: SimSite, source: SimSite, network: Network) -> None:
        self.site = site
        self.source = source
        self._network = network

    async def follow(self) -> None:
        """Take some changes after the cursor, apply or park them, move the cursor."""
        await self._network.pause()
        cursor = await self.cursor()
        self._network.reach(self.site, self.source)
        changes = self.source.registers(cursor)
        revision = self.source.revision
        if changes and self._network.chance(0.4):
            changes = changes[: 1 + len(changes) // 3]
            revision = changes[-1].revision
            changes = [c for c in self.source.registers(cursor) if c.revision <= revision]
        await self.take(self._disorder(changes))
        await self._move(revision)

    async def take(self, changes: Sequence[Change]) -> None:
        """Apply changes in their order, or park their repositories; the cursor stays."""
        if self._network.chance(0.5):  # else what is known is found to be nothing, one by one
            changes = (await sift(self.site.replica, changes)).news
        parked = await self.parked()
        for change in changes:
            repository = change.name.repository
            if repository in parked or not await self._apply(change):
                parked = await self._park(repository, change.revision)

    def _disorder(self, changes: list[Change]) -> list[Change]:
        """Repositories pass each other; within one there is order; some come twice."""
        order = [change.name.repository for change in changes]
        if self._network.chance(0.5):
            order.sort()
        lanes = {r: iter([c for c in changes if c.name.repository == r]) for r in order}
        sent = [next(lanes[repository]) for repository in order]
        return sent + sent[-2:] if self._network.chance(0.2) else sent

    async def _apply(self, change: Change) -> bool:
        deletes = self.source.name not in self.site.kept_from
        work = Apply(self.site.replica, self, self, self.site, deletes=deletes)
        result = await work.apply(change)
        return isinstance(result, Applied)

    async def relay(self, name: Name) -> None:
        """Read one key now, and apply it some time later: stale and out of order."""
        self._network.reach(self.site, self.source)
        change = self.source.register(name)
        for _ in range(6):
            await self._network.pause()
        if change is not None:
            await self._apply(change)

    async def retry(self, repository: Repository) -> None:
        """Go through all that the source has of a parked repository (6.3)."""
        await self._network.pause()
        self._network.reach(self.site, self.source)
        until = self.source.revision
        names = [c.name for c in self.source.registers() if c.name.repository == repository]
        done = True
        for name in sorted(names, key=keys.register):
            await self._network.pause()
            self._network.reach(self.site, self.source)
            change = self.source.register(name)
            done = (change is None or await self._apply(change)) and done
        if done:
            await self._unpark(repository, until)

    async def cursor(self) -> int:
        """How far a source is applied here."""
        entry = (await self.site.decider.look([only(keys.cursor(self.source.name))])).entry(
            keys.cursor(self.source.name)
        )
        return self._revision(entry)

    def _revision(self, entry: Entry | None) -> int:
        """How far the source's life is applied; of an earlier one nothing counts."""
        if entry is None:
            return 0
        cursor = codec.decode_cursor(entry.value)
        return cursor.revision if cursor.incarnation == self.source.actor else 0

    async def _move(self, revision: int) -> None:
        """Move the cursor, guarded: a late write of an earlier one must not move it back."""
        key = keys.cursor(self.source.name)

        def decision(txn: Transaction) -> None:
            entry = txn.seen.entry(key)
            txn.unchanged(key)
            if self._revision(entry) < revision:
                txn.put(key, codec.encode_cursor(Cursor(self.source.actor, revision)))

        await self.site.decide(Repository(""), decision, [only(key)])

    async def parked(self) -> dict[Repository, Parked]:
        """What is not."""
        within = keys.all_parked(self.source.name)
        entries = (await self.site.decider.look([within])).entries(within)
        return {keys.parked_repository(e.key): codec.decode_parked(e.value) for e in entries}

    async def _park(self, repository: Repository, revision: int) -> dict[Repository, Parked]:
        key = keys.parked(self.source.name, repository)

        def decision(txn: Transaction) -> None:
            entry = txn.seen.entry(key)
            txn.unchanged(key)
            known = None if entry is None else codec.decode_parked(entry.value)
            first = revision if known is None else min(known.first, revision)
            last = revision if known is None else max(known.last, revision)
            txn.put(key, codec.encode_parked(Parked(first, last, 1, "", self.site.clock())))

        await self.site.decide(repository, decision, [only(key)])
        return await self.parked()

    async def _unpark(self, repository: Repository, until: int) -> None:
        key = keys.parked(self.source.name, repository)

        def decision(txn: Transaction) -> None:
            entry = txn.seen.entry(key)
            if entry is None:
                return
            txn.unchanged(key)
            known = codec.decode_parked(entry.value)
            if known.last <= until:
                txn.delete(key)
            else:
                later = Parked(until + 1, known.last, 1, "", self.site.clock())
                txn.put(key, codec.encode_parked(later))

        await self.site.decide(repository, decision, [only(key)])

    # --- Source and Blobs of replicator.apply

    async def ensure(self, repository: Repository, descriptors: Sequence[Descriptor]) -> None:
        """See replicator.apply.Blobs."""
        for descriptor in descriptors:
            if self._network.fails():
                raise StorageFull(0)
            if not await self.site.adopt(repository, descriptor.digest):
                await self._fetch(repository, descriptor.digest)

    async def _fetch(self, repository: Repository, digest: Digest) -> None:
        for peer in self._network.peers(self.site):
            try:
                self._network.reach(self.site, peer)
            except PeerUnavailable:
                continue
            if peer.holds(digest):
                await self.site.upload(repository, digest)
                return
        raise PeerUnavailable("any", "nobody has the blob")

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """See replicator.apply.Source."""
        await self._network.pause()
        self._network.reach(self.site, self.source)
        answers = {name: self.source.register(name) for name in names}
        await self._network.pause()
        return answers

    async def body(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See replicator.apply.Source."""
        await self._network.pause()
        self._network.reach(self.site, self.source)
        if not self.source.holds(digest):
            raise PeerUnavailable(self.source.name, f"has no body {digest}")
        require(len(CONTENT[digest]) == size, "{} has another size", digest)
        return CONTENT[digest]
