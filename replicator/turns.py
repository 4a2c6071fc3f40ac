"""A number of places, given out by turns: one repository with many blobs keeps no other waiting."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """At most `places` holders at once; among those who wait, each key in turn, then in order."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, key: Hashable) -> AsyncIterator[None]:
        """Wait for a place and hold it."""
        await self._take(key)
        try:
            yield
        finally:
            self._give()

    async def _take(self, key: Hashable) -> None:
        if self._free and not self._waiting:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._give()
            raise

    def _give(self) -> None:
        """Hand a place to the next who still waits."""
        while self._waiting:
            key, line = self._waiting.popitem(last=False)
            place = line.popleft()
            if line:
                self._waiting[key] = line  # to the end: it had its turn
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
