"""Scans of a site's registers, for comparing it with another (ADR 15).

A scan goes through all keys by pages while others write.  What it adds up is the state of one
moment only if nothing replicated was written from before its first page to its last; it asks the KV
for changes in between, and says so.  The last scan is kept for each filter: as long as nothing
replicated was written since, it still says what the site holds, and two sites at rest are compared
for a handful of small reads.  Now and then all is read again, for what no change tells of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Container, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Final, Protocol, TypeVar

from node import keys
from node.change import Change
from node.keys import Name
from node.kv import KV, Compacted, Entry, Range, following, only
from node.roots import Filters, Scanned, Sum, bucket_of, hash_of, passes
from node.wire import feed_codec

R = TypeVar("R")

PAGE: Final = 500
# A key that went without a trace, by hand or by a fault, shows only when all is read again.
KEPT_S: Final = 600.0
# Filters of which the last scan is kept: there is one for each peer.
_KEPT: Final = 64


class InThread(Protocol):
    """Calls a function where it does not hold up the event loop; `asyncio.to_thread` is one."""

    def __call__(self, work: Callable[[], R], /) -> Awaitable[R]:
        """What the function returns."""
        ...


async def untouched(kv: KV, after: int, until: int) -> bool:
    """Whether nothing replicated was written after one revision, up to another that was read.

    It is False too where nobody can say: so it is after a later write, which may have taken the
    place of one in between.

    Raises:
        MetadataUnavailable: No answer.
    """
    if after >= until:
        return after == until
    try:
        async with following(kv, keys.REPLICATED, after) as stream:
            async for news in stream:
                if news.entries:
                    return False
                if news.revision >= until:
                    return True
    except Compacted:
        return False
    return False


class Scans:
    """The scans of one process; one runs at a time.

    `clock` is monotonic, in seconds; `page` is how many keys are read at a time.
    """

    def __init__(
        self,
        kv: KV,
        *,
        in_thread: InThread = asyncio.to_thread,
        clock: Callable[[], float] = time.monotonic,
        page: int = PAGE,
    ) -> None:
        self._page = page
        self._kv = kv
        self._in_thread = in_thread
        self._clock = clock
        self._scanning = asyncio.Lock()
        self._kept: dict[Filters, tuple[Scanned, float]] = {}
        # What all scans took of a core, in seconds; waiting does not count.
        self.spent_s = 0.0

    async def roots(self, filters: Filters, *, anew: bool = False) -> Scanned:
        """The roots of all that the filters take; if exact, of a moment after this was called.

        `anew`: everything is read, whatever is known.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        async with self._scanning:
            known, until = self._kept.pop(filters, (None, 0.0))
            now = self._clock()
            scanned = None if anew or now >= until else await self._renewed(known)
            if scanned is None:
                scanned, until = await self._scan(filters), now + KEPT_S
            self._kept[filters] = scanned, until
            if len(self._kept) > _KEPT:
                del self._kept[next(iter(self._kept))]
            return scanned

    async def still(self, scanned: Scanned) -> bool:
        """Whether the site holds what was scanned to this moment.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        return await self._renewed(scanned) is not None

    async def names(
        self, filters: Filters, buckets: Collection[int]
    ) -> AsyncGenerator[dict[Name, int], None]:
        """The names that the filters take of some buckets, and the hash of each, by pages.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        wanted = frozenset(buckets)
        async with aclosing(self._pages()) as pages:
            async for page, _ in pages:
                hashes, took_s = await self._in_thread(partial(_hashes, page, filters, wanted))
                self.spent_s += took_s
                if hashes:
                    yield hashes

    async def _scan(self, filters: Filters) -> Scanned:
        noted = until = await self._newest()
        total, whole = Sum(), True
        async with aclosing(self._pages()) as pages:
            async for page, revision in pages:
                read, took_s = await self._in_thread(partial(_add, total, page, filters))
                whole, until = whole and read, revision
                self.spent_s += took_s
        exact = whole and await untouched(self._kv, noted, until)
        return Scanned(total.roots, until, exact)

    async def _renewed(self, scanned: Scanned | None) -> Scanned | None:
        """The same at the newest revision, if nothing replicated was written meanwhile."""
        if scanned is None or not scanned.exact:
            return None
        newest = await self._newest()
        stands = await untouched(self._kv, scanned.revision, newest)
        return replace(scanned, revision=newest) if stands else None

    async def _newest(self) -> int:
        return (await self._kv.read([only(keys.SITE)])).revision

    async def _pages(self) -> AsyncGenerator[tuple[tuple[Entry, ...], int], None]:
        """All registers, and of which revision each page is."""
        start, end, _ = keys.REPLICATED
        while True:
            snapshot = await self._kv.read([Range(start, end, self._page)])
            (page,) = snapshot.ranges
            yield page, snapshot.revision
            if len(page) < self._page:
                return
            start = page[-1].key + b"\0"


def _add(total: Sum, page: Sequence[Entry], filters: Filters) -> tuple[bool, float]:
    """Add a page up: whether all of it can be read, and how long it took."""
    readable, began = True, time.thread_time()
    for entry in page:
        try:
            change = _change(entry, filters)
        except ValueError:
            readable = False
            continue
        if change is not None:
            total.add(change.name, change.register)
    return readable, time.thread_time() - began


def _hashes(
    page: Sequence[Entry], filters: Filters, buckets: Container[int]
) -> tuple[dict[Name, int], float]:
    """The hashes of a page's names, and how long it took."""
    found: dict[Name, int] = {}
    began = time.thread_time()
    for entry in page:
        with suppress(ValueError):  # the roots are not exact for it, and no peer is told of it
            change = _change(entry, filters)
            if change is not None and bucket_of(change.name) in buckets:
                found[change.name] = hash_of(change.name, change.register)
    return found, time.thread_time() - began


def _change(entry: Entry, filters: Filters) -> Change | None:
    name = keys.parse_register(entry.key)
    if name is None or not passes(name, filters):
        return None
    return feed_codec.read_entry(name, entry)
