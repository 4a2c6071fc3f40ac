"""The blobs of one peer that are being fetched: how many bytes are to go, and for how long.

It is told of every chunk, so that what it says moves within a blob: nothing here awaits, and a
chunk costs a few additions.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

# What is left is told by the speed of so many seconds, and not before so many have passed.
_MEMORY_S: Final = 60.0
_KNOWN_S: Final = 3.0
_APART_S: Final = 1.0
# After so long without a blob the speed is measured anew: the rest says nothing of the link.
_IDLE_S: Final = 10.0


class _Moment(NamedTuple):
    at: float
    done: int


class Speed:
    """How fast something is done, as of the last minute; `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._moments: deque[_Moment] = deque()

    def clear(self) -> None:
        """What was so far says nothing of what comes."""
        self._moments.clear()

    def seconds_left(self, done: int, to_go: int) -> float | None:
        """Until all is done, where so much is by now; None where nobody can tell."""
        at, moments = self._now(), self._moments
        if not moments or at - moments[-1].at >= _APART_S:
            moments.append(_Moment(at, done))
        while at - moments[0].at > _MEMORY_S:
            moments.popleft()
        seconds = at - moments[0].at
        if seconds < _KNOWN_S:
            return None
        if not to_go:
            return 0.0
        per_second = (done - moments[0].done) / seconds
        return to_go / per_second if per_second > 0 else None


class Fetched:
    """A blob on its way, of so many bytes as its manifest says."""

    def __init__(self, all_of_them: Fetching, size: int) -> None:
        self._all = all_of_them
        self._size = size
        self._left = 0
        self.begin(0)

    def begin(self, offset: int) -> None:
        """It is asked for from there on: what comes before is here, and did not come now."""
        self._leave(self._size - offset)

    def got(self, size: int) -> None:
        """So many bytes have come."""
        self._all.bytes_done += size
        self._leave(self._left - size)

    def end(self, *, is_here: bool) -> None:
        """It is here, or will not be for now."""
        if is_here:
            self.got(self._left)
        self._leave(0)

    def _leave(self, left: int) -> None:
        left = max(0, left)  # it may be longer than its manifest says
        self._all.bytes_to_go += left - self._left
        self._left = left


class Fetching:
    """All of them; `bytes_done` only ever grows, `now` is monotonic, in seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.bytes_done = 0
        self.bytes_to_go = 0
        self._now = now
        self._speed = Speed(now)
        self._ended = now()

    @contextmanager
    def blob(self, size: int) -> Iterator[Fetched]:
        """A blob of so many bytes is fetched, or is not where this raises."""
        if not self.bytes_to_go and self._now() - self._ended > _IDLE_S:
            self._speed.clear()
        fetched = Fetched(self, size)
        is_here = False
        try:
            yield fetched
            is_here = True
        finally:
            fetched.end(is_here=is_here)
            self._ended = self._now()

    def seconds_left(self) -> float | None:
        """Until all that is known of is here, by the speed of the last minute; None: unknown."""
        return self._speed.seconds_left(self.bytes_done, self.bytes_to_go)
