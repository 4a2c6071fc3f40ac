"""What is wrong with a site's store, as /readyz, `status`, the admin API and metrics say it.

It is looked at by the clock, never by a request: who asks is told what was found last, at once.
None of it takes a process out of service, because without a majority pulls go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from enum import StrEnum
from typing import Final

import structlog

from node import keys
from node.errors import MetadataUnavailable
from node.kv import KV, Member, only
from node.telemetry import Metrics

EVERY_S: Final = 5.0
# A push reads and writes some ten times one after the other.
SLOW_S: Final = 0.5

_log = structlog.stdlib.get_logger(__name__)


class Trouble(StrEnum):
    """What can be wrong; docs/operations.md says of each what to do."""

    UNAVAILABLE = "unavailable"
    """The store answers nobody: no pushes, no pulls."""
    LEADERLESS = "leaderless"
    """Servers are up and have no leader: no pushes, and pulls may be stale."""
    MEMBER_DOWN = "member_down"
    """A server does not answer; the others do its work."""
    FULL = "full"
    """It has reached its quota: no pushes, and pulls go on."""
    CORRUPT = "corrupt"
    """Servers hold different things."""
    SLOW = "slow"
    """A read takes half a second or more."""


class Weather:
    """What was found last; nothing is wrong before the first look."""

    def __init__(
        self,
        kv: KV,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._clock = clock
        self._sleep = sleep
        self._troubles: Mapping[Trouble, str] = {}
        self._members: tuple[Member, ...] = ()
        self._gauge = metrics.gauge("store_trouble", "1 while the store has it.", "trouble")
        self._read_s = metrics.gauge("store_read_seconds", "What a read took, or did not get.")
        self._show()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, a line each: the trouble's name, and what is known of it."""
        return tuple(f"{trouble}: {words}" for trouble, words in self._troubles.items())

    @property
    def report(self) -> Mapping[str, object]:
        """All of it, as plain values."""
        return {"problems": self.problems, "members": [asdict(one) for one in self._members]}

    async def run(self) -> None:
        """Look every five seconds until cancelled."""
        while True:
            await self.look()
            await self._sleep(EVERY_S)

    async def look(self) -> None:
        """Look now; takes seconds where something is wrong."""
        began, reason = self._clock(), ""
        try:
            await self._kv.read([only(keys.SITE)])
        except MetadataUnavailable as err:
            reason = err.reason
        read_s = self._clock() - began
        self._read_s.set(read_s)
        self._members = await self._kv.members()
        found = judge(self._members, reason, read_s)
        if found.keys() != self._troubles.keys():
            _log.warning("the store", troubles=[*found], reasons=[*found.values()])
        self._troubles = found
        self._show()

    def _show(self) -> None:
        for trouble in Trouble:
            self._gauge.labels(trouble).set(trouble in self._troubles)


def judge(members: tuple[Member, ...], reason: str, read_s: float) -> Mapping[Trouble, str]:
    """What is wrong where a read took so long, or failed for a reason; "" if it did not."""
    found = {}
    up = [member for member in members if member.is_up]
    led = any(member.has_leader for member in up)
    if reason:
        found[Trouble.LEADERLESS if up and not led else Trouble.UNAVAILABLE] = reason
    elif read_s >= SLOW_S:
        found[Trouble.SLOW] = f"a read takes {read_s:.1f} s"
    alone = [member for member in up if led and not member.has_leader]
    for trouble, some in {
        Trouble.MEMBER_DOWN: [member for member in members if not member.is_up] + alone,
        Trouble.FULL: [member for member in up if member.is_full],
        Trouble.CORRUPT: [member for member in up if member.is_corrupt],
    }.items():
        if some:
            found[trouble] = ", ".join(_words(member) for member in some)
    return found


def _words(member: Member) -> str:
    return (
        f"{member.endpoint} ({'; '.join(member.problems)})" if member.problems else member.endpoint
    )
