"""Compare what a peer holds with what this site does, and have what is missing here applied.

    my roots -> the peer's roots -> the buckets that differ -> the names -> the registers -> lanes

"The same" is a statement about one moment, and is only made with its proof (ADR 15): the sums of
this site were in force before the peer was asked, the peer's were in force when it answered, and
then those of this site still were.  Sums that are equal without that prove nothing: each site may
have held them at a time of its own.

What only this site has is none of its business here: the peer compares too.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from node import keys
from node.change import Change
from node.errors import PeerUnavailable
from node.keys import Name
from node.kv import KV, Entry, only
from node.records import Pushed
from node.register import Register
from node.roots import Filters, Roots, Scanned, Sum, hash_of, holds
from node.scans import Scans
from node.wire import codec
from node.wire.follow_codec import Compared, Verdict
from node.wire.roots_codec import TheirNames, TheirRoots

# What is missing here and is asked for in one comparison; the next one goes on.
MOST: Final = 50_000
# Names asked for at a time; a read of the KV takes 128 ranges.
_ASKED: Final = 100

States: TypeAlias = tuple[Roots, Roots]


class Peer(Protocol):
    """The site that is compared with, and whether its deletes are taken; see `FeedClient`."""

    site: str
    deletes: bool

    async def roots(self) -> TheirRoots | None:
        """What all adds up to that it has for us."""
        ...

    def names(self, buckets: Sequence[int]) -> AsyncGenerator[TheirNames, None]:
        """The names that it has in some buckets."""
        ...

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """Its present registers of these names."""
        ...


@dataclass(slots=True)
class _Found:
    """What going through the differing buckets came to.

    `whole`: all names were those of the sums.
    """

    lacking: int = 0
    whole: bool = True


class _Here:
    """The names that this site has in some buckets, in the order of their keys, page by page."""

    def __init__(self, pages: AsyncIterator[Mapping[Name, int]]) -> None:
        self.sum = Sum()
        self._pages = pages
        self._page: Mapping[Name, int] = {}
        self._last = b""

    async def lacks(self, told: Mapping[Name, int]) -> dict[Name, int]:
        """Those of a peer's names that are not here, or not with this hash.

        Some that are, too, if the peer goes back in the order of keys.
        """
        unlike = dict(told)
        last = max(map(keys.register, told), default=b"")
        while True:
            for name, hashed in self._page.items():
                if unlike.get(name) == hashed:
                    del unlike[name]
            if self._last >= last or not await self._next():
                return unlike

    async def end(self) -> None:
        """Go through what is left."""
        while await self._next():
            pass

    async def _next(self) -> bool:
        page = await anext(self._pages, None)
        if page is None:
            return False
        self._page, self._last = page, keys.register(list(page)[-1])
        self.sum.add_hashes(page)
        return True


class Compare:
    """One comparison with a life of a peer, of what the filters of both sites take.

    `doubt` says why nothing may be said now, if there is a reason, and `feed` has changes applied.
    `anew`: all that this site has is read, whatever is known of it.  `held` are two states of which
    it is known that the first says all that the second does; `states` are those that were compared.
    """

    def __init__(
        self,
        kv: KV,
        scans: Scans,
        peer: Peer,
        filters: Filters,
        life: str,
        *,
        doubt: Callable[[], str],
        feed: Callable[[Sequence[Change]], Awaitable[None]],
        clock_ms: Callable[[], int],
        anew: bool = False,
        held: States | None = None,
    ) -> None:
        self.states: States | None = None
        self._held = held
        self._anew = anew
        self._kv = kv
        self._scans = scans
        self._peer = peer
        self._filters = filters
        self._life = life
        self._doubt = doubt
        self._feed = feed
        self._clock_ms = clock_ms

    async def run(self) -> Compared:
        """Compare, and have what is found missing applied; that may still be on its way then.

        Raises:
            FeedDamaged, PeerUnavailable, Refused: The peer did not answer as it should.
            MetadataUnavailable: This site's KV did not answer.
        """
        mine = await self._scans.roots(self._filters, anew=self._anew)
        told = await self._peer.roots()
        if told is None:
            return Compared(Verdict.UNSUPPORTED, self._clock_ms(), mine.revision)
        self._check(told.incarnation)
        theirs = told.scanned
        differing = mine.roots.differing(theirs.roots)
        self.states = (mine.roots, theirs.roots)
        found = _Found()
        if self.states != self._held:
            found = await self._descend(differing, mine.roots, theirs.roots)
        doubt = await self._doubts(mine, told, found)
        if found.lacking:
            verdict = Verdict.DIFFERS
        elif doubt:
            verdict = Verdict.UNKNOWN
        else:
            verdict = Verdict.HOLDS if differing else Verdict.SAME
        return Compared(
            verdict,
            self._clock_ms(),
            mine.revision,
            theirs.revision,
            found.lacking,
            mine.roots.live,
            mine.roots.tombstones,
            doubt if verdict is Verdict.UNKNOWN else "",
        )

    async def _doubts(self, mine: Scanned, theirs: TheirRoots, found: _Found) -> str:
        """Why what was found may not be what both sites hold at one moment, if there is a reason.

        The order counts: what is asked last is what must hold last.
        """
        if not mine.exact:
            return "something was written here while it was read, or can't be read"
        if not theirs.scanned.exact:
            return "something was written at the peer while it was read, or can't be read"
        if not found.whole:
            return "something was written at the peer meanwhile"
        if theirs.lost:
            return f"blobs are lost at the peer: {theirs.lost}"
        if not await self._scans.still(mine):
            return "something was written here meanwhile"
        return self._doubt()

    async def _descend(self, differing: Sequence[int], mine: Roots, theirs: Roots) -> _Found:
        """Go once through the names of the buckets that differ, beside each other."""
        found, there = _Found(), Sum()
        if not differing:
            return found
        async with (
            aclosing(self._scans.names(self._filters, differing)) as pages,
            aclosing(self._peer.names(differing)) as answers,
        ):
            here = _Here(pages)
            async for told in answers:
                self._check(told.incarnation)
                there.add_hashes(told.hashes)
                await self._fetch(await here.lacks(told.hashes), found)
                if found.lacking >= MOST:
                    return found
            await here.end()
        agree = here.sum.roots.agrees(mine, differing) and there.roots.agrees(theirs, differing)
        found.whole = found.whole and agree
        return found

    async def _fetch(self, hashes: Mapping[Name, int], found: _Found) -> None:
        """Have those applied of which the peer knows more than this site."""
        names = list(hashes)
        for start in range(0, len(names), _ASKED):
            if found.lacking >= MOST:
                return
            some = names[start : start + _ASKED]
            told = await self._peer.keys(some)
            held = await self._kv.read([only(keys.register(name)) for name in some])
            lacking = []
            for name, entries in zip(some, held.ranges, strict=True):
                change = told.get(name)
                if change is None or hash_of(name, change.register) != hashes[name]:
                    found.whole = False  # it is not what it was when the sums were made
                if change is not None and not self._holds(entries, change.register):
                    lacking.append(change)
            if lacking:
                await self._feed(lacking)
                found.lacking += len(lacking)

    def _holds(self, entries: Sequence[Entry], theirs: Register[Pushed]) -> bool:
        return holds(_register(entries), theirs, deletes=self._peer.deletes)

    def _check(self, incarnation: str) -> None:
        if incarnation != self._life:
            raise PeerUnavailable(self._peer.site, "it began a new life")


def _register(entries: Sequence[Entry]) -> Register[Pushed]:
    """What this site holds; of what can't be read, nothing: applying says what is wrong."""
    try:
        return codec.decode_register(entries[0].value) if entries else Register()
    except ValueError:
        return Register()
