"""How many bytes a second one link may take, and who has the next of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterator
from typing import Final

from replicator.turns import Turns

# What was not used is kept for so long; parts are a quarter second's at the most. Together a burst
# stays below a second's worth.
_KEPT_S: Final = 0.5
_PART_S: Final = 0.25
# What is asked for at a time: what came and could not pass yet is lost with its connection.
_ASKED_S: Final = 1.0
_LEAST_ASKED: Final = 64 << 10


class Bucket:
    """A token bucket over bytes: pure, told the time (monotonic, seconds) by its caller."""

    def __init__(self, bytes_per_s: int, now: float) -> None:
        self._rate = bytes_per_s
        self._tokens = 0.0
        self._at = now

    def take(self, size: int, now: float) -> float:
        """Take what may not be there yet; in how many seconds it is."""
        earned = (now - self._at) * self._rate
        self._tokens = min(self._tokens + earned, self._rate * _KEPT_S) - size
        self._at = now
        return max(0.0, -self._tokens / self._rate)


class Throttle:
    """Lets at most so many bytes a second through, in a fair share for each key; None: all.

    Over any span of T seconds it lets through what T + 1 seconds bring.  No more than `asked`
    bytes should be asked for at a time.
    """

    def __init__(
        self,
        bytes_per_s: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bucket = None if bytes_per_s is None else Bucket(bytes_per_s, clock())
        self._part = None if bytes_per_s is None else int(bytes_per_s * _PART_S)
        self.asked: Final = (
            None if bytes_per_s is None else max(int(bytes_per_s * _ASKED_S), _LEAST_ASKED)
        )
        self._clock = clock
        self._sleep = sleep
        self._turns = Turns(1, clock=clock)

    def parts(self, chunk: bytes) -> Iterator[bytes]:
        """A chunk in parts that may pass one after the other; most often it is one."""
        if self._part is None or len(chunk) <= self._part:
            yield chunk
            return
        for start in range(0, len(chunk), self._part):
            yield chunk[start : start + self._part]

    async def passed(self, key: Hashable, size: int) -> None:
        """Return when so many bytes may pass; whoever waits takes turns by key."""
        if self._bucket is None:
            return
        async with self._turns.turn(key):
            wait_s = self._bucket.take(size, self._clock())
            if wait_s:
                await self._sleep(wait_s)
