"""Comparing simulated sites: the real comparison, and a witness of whether it is right (I20).

The witness sees both sites at every write, so it knows which of their states were in force at one
moment.  What a comparison says of two revisions must be true of two such states.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from node import keys
from node.change import Change
from node.globs import Filter
from node.keys import Name
from node.records import Pushed
from node.register import Register
from node.roots import holds
from node.wire.follow_codec import Compared, Verdict
from node.wire.roots_codec import TheirNames, TheirRoots
from replicator.compare import Compare
from tests.scenario.checker import require
from tests.scenario.follower import Follower
from tests.scenario.judge import NEVER, Judge
from tests.scenario.site import Network, SimSite

_FILTERS: Final = (Filter(), Filter())


class Witness:
    """Sees two sites while they are compared.

    `same` and `held` are the states that were in force at one moment, each named by the newest
    revision of a register at both sites: those in which the sites were equal, and those in which
    the first had all that the second did.
    """

    def __init__(self, site: SimSite, source: SimSite) -> None:
        self._site = site
        self._source = source
        self._states: list[tuple[int, int]] = []
        self._same: set[tuple[int, int]] = set()
        self._held: set[tuple[int, int]] = set()
        self.look()

    def look(self) -> None:
        """Something may have been written."""
        mine, theirs = _state(self._site), _state(self._source)
        now = (_newest(self._site), _newest(self._source))
        self._states.append(now)
        if mine == theirs:
            self._same.add(now)
        deletes = self._source.name not in self._site.kept_from
        if all(holds(mine.get(n, NEVER), of, deletes=deletes) for n, of in theirs.items()):
            self._held.add(now)

    def judge(self, compared: Compared) -> None:
        """What was found must be so."""
        at = (
            max(mine for mine, _ in self._states if mine <= compared.revision),
            max(theirs for _, theirs in self._states if theirs <= compared.peer_revision),
        )
        pair = (self._site.name, self._source.name)
        if compared.result is Verdict.SAME:
            require(at in self._same, "{} were said to be the same at {}", pair, compared)
        if compared.result is Verdict.HOLDS:
            require(at in self._held, "{} was said to have all of {}", *pair)
        if compared.result in {Verdict.SAME, Verdict.HOLDS}:
            parked = self._site.kv._stored.within(*keys.all_parked(self._source.name))
            require(not parked, "{}, of which something is parked, was said to be here", pair)


class Comparison:
    """One site's comparisons with another; it is the Peer of its own Compare."""

    def __init__(self, site: SimSite, source: SimSite, network: Network, judge: Judge) -> None:
        self.site = source.name
        self.deletes = source.name not in site.kept_from
        self._site = site
        self._source = source
        self._network = network
        self._judge = judge
        self._follower = Follower(site, source, network)

    async def run(self) -> Compared:
        """Compare, while anything may happen."""
        with self._witnessed() as witness:
            compared = await Compare(
                self._site.kv,
                self._site.scans(f"for {self._source.name}"),
                self,
                _FILTERS,
                self._source.actor,
                doubt=self.doubt,
                feed=self._feed,
                clock_ms=self._site.clock,
            ).run()
            witness.judge(compared)
        return compared

    async def compare(self) -> None:
        """Compare, whatever comes of it."""
        await self.run()

    async def prove(self) -> None:
        """Compare at rest: that sites are the same is found where they are."""
        compared = await self.run()
        is_same = _state(self._site) == _state(self._source)
        expected = Verdict.SAME if is_same else Verdict.HOLDS
        require(compared.result is expected, "at rest it is {}, found {}", expected, compared)

    def doubt(self) -> str:
        """See Compare."""
        parked = self._site.kv._stored.within(*keys.all_parked(self._source.name))
        return "some repositories are parked" if parked else ""

    @contextmanager
    def _witnessed(self) -> Iterator[Witness]:
        witness = Witness(self._site, self._source)
        self._judge.watching.append(witness.look)
        try:
            yield witness
        finally:
            self._judge.watching.remove(witness.look)

    async def _feed(self, changes: Sequence[Change]) -> None:
        # As they were written; of one revision, manifests before tags.
        order = sorted(changes, key=lambda c: (c.revision, keys.register(c.name)))
        await self._follower.take(order)

    # --- the Peer of replicator.compare

    async def roots(self) -> TheirRoots | None:
        """See replicator.compare.Peer."""
        await self._reach()
        scans = self._source.scans(f"asked by {self._site.name}")
        told = TheirRoots(self._source.actor, await scans.roots(_FILTERS))
        await self._reach()
        return told

    async def names(self, buckets: Sequence[int]) -> AsyncGenerator[TheirNames, None]:
        """See replicator.compare.Peer."""
        await self._reach()
        scans = self._source.scans(f"asked by {self._site.name}")
        async for page in scans.names(_FILTERS, buckets):
            yield TheirNames(self._source.actor, page)
            await self._reach()

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """See replicator.compare.Peer."""
        return await self._follower.keys(names)

    async def _reach(self) -> None:
        await self._network.pause()
        self._network.reach(self._site, self._source)


def _state(site: SimSite) -> dict[Name, Register[Pushed]]:
    return {change.name: change.register for change in site.registers()}


def _newest(site: SimSite) -> int:
    return max((change.revision for change in site.registers()), default=0)
