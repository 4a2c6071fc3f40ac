"""A long line: its rate is shared by all connections, and distance costs each of them what it does.

A proxy ends TCP at both sides, so what TCP makes of a distance is made here: a round trip before
the first byte, and a window that begins with ten segments, grows by what is acknowledged, and
begins anew after a pause (RFC 6928; RFC 5681, 3.1 and 4.1).  Nothing is lost on it.
"""

from __future__ import annotations

import asyncio
import math
from typing import Final

# A router's queue at the near end, so that a timer that is late costs no rate.
_QUEUE_S: Final = 0.02
_FIRST_WINDOW: Final = 10 * 1460
_LAST_WINDOW: Final = 4 << 20
# Linux' shortest time-out for a retransmission is 0.2 s beside the round trip.
_PAUSE_S: Final = 0.25


class Line:
    """`delay_s` from end to end, and `bytes_per_s` each way; both may be changed while it is used.

    As it is made it costs nothing.
    """

    def __init__(self, *, delay_s: float = 0.0, bytes_per_s: float = math.inf) -> None:
        self.delay_s = delay_s
        self.bytes_per_s = bytes_per_s
        self.there = Way(self)
        self.back = Way(self)


class Way:
    """One direction of a line: bytes go in one after the other, and come out in that order."""

    def __init__(self, line: Line) -> None:
        self.line = line
        self._free_at = 0.0

    async def send(self, count: int) -> float:
        """Wait for the turn of so many bytes; when they come out, by the loop's clock."""
        now = asyncio.get_running_loop().time()
        free_at = self._free_at = max(self._free_at, now) + count / self.line.bytes_per_s
        if free_at - now > _QUEUE_S:
            await asyncio.sleep(free_at - now - _QUEUE_S)
        return free_at + self.line.delay_s


class Window:
    """How many bytes of one connection may be under way."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._size = _FIRST_WINDOW
        self._under_way = 0
        self._acked = asyncio.Event()
        self._sent_at = 0.0

    async def take(self, wanted: int) -> int:
        """Wait until at least one more may be sent, and count as many as may, up to the wanted."""
        clock = asyncio.get_running_loop().time
        if not self._under_way and clock() - self._sent_at > _PAUSE_S:
            self._size = _FIRST_WINDOW
        while self._under_way >= self._size:
            self._acked.clear()
            await self._acked.wait()
        taken = min(wanted, self._size - self._under_way)
        self._under_way += taken
        self._sent_at = clock()
        return taken

    def arrived(self, count: int) -> None:
        """So many have come out and were read; their acknowledgement is under way."""
        asyncio.get_running_loop().call_later(self._line.delay_s, self._ack, count)

    def _ack(self, count: int) -> None:
        self._under_way -= count
        self._size = min(self._size + count, _LAST_WINDOW)
        self._acked.set()
