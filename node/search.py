"""Search: the site's repositories in the memory of a gateway, brought up to date by each search.

The first search reads the catalog page by page; every later one asks the KV for what has changed
since.  So a search sees all that was acknowledged before it began (P2), nothing runs between
searches, and a KV that does not answer fails the search and nothing else (docs/adr/0012).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node import keys
from node.catalog import Catalog, Listed, Matches
from node.kv import KV, Compacted, Entry, following, only
from node.transaction import Reader
from node.wire import codec

# Keys read at a time, and rows matched at a time: each some millisecond of the loop.
_PAGE: Final = 500
_SLICE: Final = 2000


@dataclass(frozen=True, slots=True)
class Found:
    """One page of what a term matched, and how many it matched in all."""

    rows: list[Listed]
    total: int


class Search:
    """Finds repositories of one site; `page` is how many keys are read at a time."""

    def __init__(self, kv: KV, reader: Reader, *, page: int = _PAGE) -> None:
        self._kv = kv
        self._reader = reader
        self._page = page
        self._catalog: Catalog | None = None
        self._revision = 0
        self._turn = asyncio.Lock()

    async def find(self, term: str, first: int, count: int) -> Found:
        """At most `count` repositories that match, from a position on; the best is at 0.

        Raises:
            MetadataUnavailable: The KV did not answer.
        """
        rows = (await self._current()).rows()
        matches = Matches(term)
        for start in range(0, len(rows), _SLICE):
            matches.look(rows[start : start + _SLICE])
            await asyncio.sleep(0)  # other requests' turn
        return Found(matches.page(first, count), len(matches))

    async def _current(self) -> Catalog:
        """The catalog, no older than this call."""
        async with self._turn:
            if self._catalog is not None:
                try:
                    await self._follow(self._catalog)
                except Compacted:
                    self._catalog = None
            if self._catalog is None:
                self._catalog = await self._load()
            return self._catalog

    async def _follow(self, catalog: Catalog) -> None:
        now = (await self._reader.read([only(keys.SITE)])).revision
        if now == self._revision:
            return
        async with following(self._kv, keys.CATALOG_CHANGES, self._revision) as stream:
            async for changes in stream:
                _apply(catalog, changes.entries)
                self._revision = changes.revision
                if changes.revision >= now:
                    return

    async def _load(self) -> Catalog:
        """All of the catalog; `_revision` is that of its first page, so that nothing is missed."""
        catalog = Catalog()
        within = keys.repositories(limit=self._page)
        snapshot = await self._reader.read([within])
        self._revision = snapshot.revision
        while True:
            (entries,) = snapshot.ranges
            _apply(catalog, entries)
            if len(entries) < self._page:
                return catalog
            within = within._replace(start=entries[-1].key + b"\0")
            snapshot = await self._reader.read([within])


def _apply(catalog: Catalog, entries: Iterable[Entry]) -> None:
    for entry in entries:
        name, listed = keys.catalog_change(entry.key)
        if listed:
            catalog.put(name, codec.decode_repository(entry.value))
        else:
            catalog.drop(name)
