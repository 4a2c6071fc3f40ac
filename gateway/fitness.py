"""Whether the site can serve at all, as its own checks said last (PROTOCOL G19).

A request of its own may well be answered by a site that has lost its disk: the ping, a tag, or a
404 for a blob whose folder is gone.  Whoever got that would draw the wrong conclusion, so while a
check fails nothing is answered but 503 (and `/api/v1/site`, which says what is wrong).  The checks
are asked by the clock, never by a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from node.errors import SiteUnfit
from node.health import OK, Check, outcome

EVERY_S: Final = 2.0
# More than /readyz allows: a disk under load is slow, and no reason to refuse everybody.
LIMIT_S: Final = 10.0
# One failure may be chance.
_FAILURES: Final = 2

_log = structlog.stdlib.get_logger(__name__)


class Fitness:
    """What the checks said last; before the first round and after one failure the site is fit.

    They are asked every `every_s` seconds while `run` runs, and each has `limit_s` to answer.
    """

    def __init__(
        self,
        checks: Mapping[str, Check],
        *,
        every_s: float = EVERY_S,
        limit_s: float = LIMIT_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._checks = checks
        self._every_s = every_s
        self._limit_s = limit_s
        self._sleep = sleep
        self._failures = dict.fromkeys(checks, 0)

    def require(self) -> None:
        """Return if the site is fit; reads what is known and asks nobody.

        Raises:
            SiteUnfit: Some checks fail.
        """
        failing = self._failing
        if failing:
            raise SiteUnfit(failing)

    async def run(self) -> None:
        """Check, again and again, until cancelled."""
        while True:
            await asyncio.gather(*(self._ask(name) for name in self._checks))
            await self._sleep(self._every_s)

    @property
    def _failing(self) -> tuple[str, ...]:
        return tuple(name for name, count in self._failures.items() if count >= _FAILURES)

    async def _ask(self, name: str) -> None:
        said = await outcome(self._checks[name], self._limit_s)
        if said == OK:
            if self._failures[name] >= _FAILURES:
                _log.info("requests are answered again", check=name)
            self._failures[name] = 0
            return
        self._failures[name] += 1
        if self._failures[name] == _FAILURES:
            _log.error("no request can be answered", check=name, reason=said)
