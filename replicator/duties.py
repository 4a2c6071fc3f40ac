"""Who does what: every duty of a site has one leader among its workers at a time.

A worker stands for every duty, and enters each the later the more it leads already, so that the
one with the fewest comes first.  A duty that fails, or loses its lease, is campaigned for again
after a pause; no duty's failure touches another.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from node.election import Elections, Leadership
from node.errors import RegistryError
from node.telemetry import Metrics

_PER_DUTY_S: Final = 0.1
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
# A duty that went well for so long begins with short pauses again.
_SETTLED_S: Final = 60.0

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Duty:
    """A job with one leader at a time; `work` runs while this worker leads, until cancelled."""

    name: str
    work: Callable[[Leadership], Awaitable[None]]


def following(peer: str) -> str:
    """The name of the duty to follow a peer."""
    return f"follow/{peer}"


class Duties:
    """One worker's part in all duties of its site."""

    def __init__(self, elections: Elections, duties: Sequence[Duty], metrics: Metrics) -> None:
        self._elections = elections
        self._duties = duties
        self._leads = metrics.gauge("duty_leader", "1 while this worker leads the duty.", "duty")
        self._held: set[str] = set()
        for duty in duties:
            self._leads.labels(duty.name).set(0)

    @property
    def held(self) -> tuple[str, ...]:
        """The duties that this worker leads."""
        return tuple(sorted(self._held))

    async def run(self) -> None:
        """Stand for all duties until cancelled; then each is resigned."""
        async with asyncio.TaskGroup() as group:
            for duty in self._duties:
                group.create_task(self._stand(duty))

    async def _stand(self, duty: Duty) -> None:
        loop = asyncio.get_running_loop()
        pause_s = _FIRST_PAUSE_S
        while True:
            await asyncio.sleep(_PER_DUTY_S * len(self._held))
            began = loop.time()
            await self._lead(duty)
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError  # it came together with the end of the leadership
            settled = loop.time() - began > _SETTLED_S
            pause_s = _FIRST_PAUSE_S if settled else min(2 * pause_s, _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))

    async def _lead(self, duty: Duty) -> None:
        try:
            await self._elections.lead(duty.name, lambda leadership: self._work(duty, leadership))
        except* RegistryError as errors:
            _log.warning("a duty failed", duty=duty.name, reason=str(errors.exceptions[0]))
        except* Exception:  # noqa: BLE001 - one duty's bug must not end the others
            _log.exception("a duty failed", duty=duty.name)

    async def _work(self, duty: Duty, leadership: Leadership) -> None:
        _log.info("leading", duty=duty.name)
        self._held.add(duty.name)
        self._leads.labels(duty.name).set(1)
        try:
            await duty.work(leadership)
        finally:
            self._held.discard(duty.name)
            self._leads.labels(duty.name).set(0)
            _log.info("no longer leading", duty=duty.name)
