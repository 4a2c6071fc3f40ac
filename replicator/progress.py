"""How far a scan has come: for a person who waits for a new site. Pure, but for asking the peer.

A scan is under way from its first batch until the cursor has passed its end, which is when all of
it is applied or parked, and nothing is at work any more of what it told: large images are parked
so that they hold back nobody, and most of the bytes may be theirs.  What has failed is done here:
it is another state, with a reason, and may stay so for long.

How many items a scan has the peer says while it goes on; how many bytes there are to fetch is known
only of the manifests that are in work, so that number grows and shrinks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Final

from node.errors import RegistryError
from node.wire.feed_codec import Batch
from node.wire.follow_codec import Progress
from replicator.feed_client import FeedDamaged
from replicator.fetching import Fetched, Fetching, Speed

# Manifests may say of their blobs that they are larger than anything is.
_MOST_BYTES: Final = 2**53
_MOST_S: Final = 2**31


class ScanProgress:
    """The progress of one peer's scans; `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._fetching = Fetching(now)
        self._speed = Speed(now)
        self._begun = asyncio.Event()
        self._active = False
        self._end: int | None = None
        self._items: int | None = None
        self._taken = 0
        self._bytes_before = 0

    # --- told by the follower and by transfers

    def resume(self, at_work: int) -> None:
        """So much of a scan was at work when whoever followed before ended."""
        if at_work:
            self._active, self._end, self._taken = True, 0, at_work

    def begin_stream(self, *, anew: bool) -> None:
        """A stream begins, on which all is told `anew` or what came since the last.

        A scan that was cut short is told from its beginning, and so is all that was to come of one
        before; where there is nothing to be told no scan is under way.
        """
        if anew or self._end is None:
            self._active, self._end = False, None

    def take(self, batch: Batch) -> None:
        """A batch goes into the lanes."""
        if batch.scanning and (not self._active or self._end is not None):
            self._begin()
        if batch.scanning:
            self._taken += len(batch.changes)
        elif self._active and self._end is None:
            self._end = batch.revision

    def _begin(self) -> None:
        self._active, self._end, self._items = True, None, None
        self._taken, self._bytes_before = 0, self._fetching.bytes_done
        self._speed.clear()
        self._begun.set()

    def fetching(self, size: int) -> AbstractContextManager[Fetched]:
        """A blob of so many bytes is fetched, or is not where this raises."""
        return self._fetching.blob(size)

    async def count(self, items: Callable[[], Awaitable[int | None]]) -> None:
        """Ask how many items there are whenever a scan begins, until cancelled."""
        while True:
            await self._begun.wait()
            self._begun.clear()
            try:
                found = await items()
            except (RegistryError, FeedDamaged):
                continue  # whoever reads the stream says so
            if not self._begun.is_set():
                self._items = found

    # --- asked by the follower

    @property
    def bytes_to_go(self) -> int:
        """Of the blobs that are being fetched, or wait to be, and are not here yet."""
        return min(self._fetching.bytes_to_go, _MOST_BYTES)

    @property
    def seconds_left(self) -> int | None:
        """Until these are here, by the speed of the last minute; None where nobody can tell."""
        left = self._fetching.seconds_left()
        return None if left is None or not self.bytes_to_go else round(min(left, _MOST_S))

    def at(self, cursor: int, waiting: int, at_work: int) -> Progress | None:
        """The progress when the cursor is there, so many changes wait, and so many that a scan told
        are at work elsewhere; None without a scan.
        """
        passed = self._end is not None and cursor >= self._end
        if passed:
            waiting = 0  # what waits is no part of the scan
            self._active = self._active and at_work > 0
        if not self._active:
            return None
        done = max(0, self._taken - waiting - at_work)
        items = None if self._items is None else max(self._items, self._taken)
        if self._end is not None:
            items = self._taken
        bytes_done = self._fetching.bytes_done - self._bytes_before
        to_go = None if items is None else items - done
        if passed and self.bytes_to_go:
            to_go = 0  # the few that are left take as long as their bytes
        left = None if to_go is None else self._seconds_left(done, to_go)
        return Progress(done, items, bytes_done, self.bytes_to_go, left)

    def _seconds_left(self, done: int, to_go: int) -> int | None:
        """Until all is done at the speed of the last minute; None where nobody can tell."""
        left = [self._speed.seconds_left(done, to_go), self._fetching.seconds_left()]
        known = [one for one in left if one is not None]
        return round(min(max(known), _MOST_S)) if len(known) == len(left) else None
