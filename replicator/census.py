"""The duty that counts what an operator wants to see as a number: tags in conflict."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from node import keys
from node.election import Leadership
from node.kv import KV
from node.telemetry import Metrics

_EVERY_S: Final = 60.0
_PAGE: Final = 500
# Beyond this the number says "far too many" whatever it is, and counting costs seconds.
MOST: Final = 100_000


class Census:
    """Counts now and then; `most` is where it stops counting. Only the leader shows a number."""

    def __init__(
        self,
        kv: KV,
        metrics: Metrics,
        *,
        most: int = MOST,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._most = most
        self._sleep = sleep
        self._conflicts = metrics.gauge(
            "conflicts", "Tags in conflict, as of the last minute; 0 where another worker counts."
        )

    async def run(self, _leadership: Leadership) -> None:
        """Count at once and every minute, until cancelled.

        Raises:
            MetadataUnavailable: The KV did not answer.
        """
        try:
            while True:
                self._conflicts.set(await self._count())
                await self._sleep(_EVERY_S)
        finally:
            self._conflicts.set(0)

    async def _count(self) -> int:
        within, count = keys.conflicts(limit=_PAGE), 0
        while count < self._most:
            (page,) = (await self._kv.read([within], may_be_stale=True)).ranges
            count += len(page)
            if len(page) < _PAGE:
                break
            within = within._replace(start=page[-1].key + b"\0")
        return min(count, self._most)
