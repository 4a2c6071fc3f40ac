"""A number of places, given out by turns: nobody's many or huge blobs keep others waiting.

The short go before the long, but of four places that both wait for one goes to the long.  Among
either it is the turn of the key that had none for longest, and within a key of who came first.
Whoever has held a place for a slice
of time, while another key's or somebody shorter waits, is asked to give way, and comes back at the
head of its key's line: so no key has more half done than it once had places.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

SLICE_S: Final = 3.0
# Of so many places that both kinds wait for, one goes to the long.
_FOR_THE_LONG: Final = 4

_Lines: TypeAlias = dict[Hashable, deque[asyncio.Future[None]]]


class Place:
    """A place that is held; set `is_short` to False if what looked short turns out to be long."""

    def __init__(self, turns: Turns, key: Hashable, *, is_short: bool) -> None:
        self.is_short = is_short
        self._turns = turns
        self._key = key
        self._until: float | None = None

    @property
    def is_wanted(self) -> bool:
        """Whether its slice is over and somebody waits for whom it should give way."""
        turns = self._turns
        return (
            self._until is not None
            and turns.clock() >= self._until
            and turns.others_wait(self._key, is_short=self.is_short)
        )

    async def take(self, *, first: bool = False) -> None:
        """Wait for it; `first`: before all others of its key."""
        await self._turns.take(self._key, is_short=self.is_short, first=first)
        self._until = self._turns.clock() + self._turns.slice_s

    async def give_way(self) -> None:
        """Let whoever it is wanted by have it, and wait for the next."""
        self.give()
        await self.take(first=True)

    def give(self) -> None:
        """Let the next have it; nothing happens if it is not held."""
        if self._until is not None:
            self._until = None
            self._turns.give()


class Turns:
    """At most `places` holders at once; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        places: int,
        *,
        slice_s: float = SLICE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.slice_s = slice_s
        self.clock = clock
        self._free = places
        self._short: _Lines = {}
        self._long: _Lines = {}
        self._short_in_a_row = 0
        # When each key had its last turn, or came; of no use while nobody waits.
        self._last_turn: dict[Hashable, int] = {}
        self._count = itertools.count()

    @asynccontextmanager
    async def turn(self, key: Hashable, *, is_short: bool = True) -> AsyncIterator[Place]:
        """Wait for a place and hold it."""
        place = Place(self, key, is_short=is_short)
        await place.take()
        try:
            yield place
        finally:
            place.give()

    def others_wait(self, key: Hashable, *, is_short: bool) -> bool:
        """Whether anybody waits that such a holder should give way to."""
        if is_short:
            return any(other != key for other in self._short)
        return bool(self._short) or any(other != key for other in self._long)

    async def take(self, key: Hashable, *, is_short: bool, first: bool) -> None:
        """Wait for a place; `first`: before all others of this key."""
        if self._free:  # then nobody waits
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lines = self._short if is_short else self._long
        line = lines.setdefault(key, deque())
        line.insert(0 if first else len(line), place)
        self._last_turn.setdefault(key, next(self._count))
        try:
            await place
        except asyncio.CancelledError:
            if not place.cancelled():
                self.give()
            elif place in line:
                _leave(lines, key, place)
            raise

    def give(self) -> None:
        """Hand a place to the next who waits."""
        while (place := self._next()) is not None:
            if not place.done():
                place.set_result(None)
                return
        self._free += 1
        self._last_turn.clear()

    def _next(self) -> asyncio.Future[None] | None:
        long_is_due = self._short_in_a_row >= _FOR_THE_LONG - 1
        lines = self._long if self._long and (long_is_due or not self._short) else self._short
        if not lines:
            return None
        self._short_in_a_row = 0 if lines is self._long else self._short_in_a_row + 1
        key = min(lines, key=self._last_turn.__getitem__)
        self._last_turn[key] = next(self._count)
        place = lines[key][0]
        _leave(lines, key, place)
        return place


def _leave(lines: _Lines, key: Hashable, place: asyncio.Future[None]) -> None:
    lines[key].remove(place)
    if not lines[key]:
        del lines[key]
