"""Elections: one leader per duty at a time, so that work is not done twice.

Correctness never depends on there being one leader (RELIABILITY 3.5).  A lease that has run out, a
paused process, a write that arrives late: each can make two processes believe that they lead.  So
every write made as leader carries `Leadership.guard`, the create revision of the candidate's own
key; a deposed leader's write is refused by the KV.

A candidate's key is its lease's, and the order of create revisions is the order of succession:

    grant a lease -> put L/<duty>/<lease> if absent; its create revision is the token
    -> list until no older key is left -> read the own key again -> lead, and keep the lease alive

The KV tells of no deletions, so candidates list once a second; a leader is replaced within its
lease's time and about a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, assert_never

from node import keys
from node.errors import MetadataUnavailable
from node.kv import KV, Absent, Created, Entry, Failed, Lease, Ok, Put, Range, Unknown, only

TTL_S: Final = 5.0
RELIST_S: Final = 1.0
# A leader stops this long before its lease could run out: it saves writes that would be refused.
_MARGIN_S: Final = 1.0
_RESIGN_S: Final = 1.0

Sleep = Callable[[float], Awaitable[None]]


class Deposed(Exception):
    """The candidate's lease or key is gone: somebody else may lead by now."""


@dataclass(frozen=True, slots=True)
class Leadership:
    """The right to write as leader of a duty, for as long as its key stands.

    What is bound to `lease` goes when the leadership does.
    """

    duty: str
    lease: Lease
    token: int

    @property
    def guard(self) -> Created:
        """Goes with every write made as leader."""
        return Created(keys.candidate(self.duty, self.lease), self.token)


class Candidate:
    """One candidacy for a duty: one lease, one key, used once.

    `sleep` waits some seconds before a put that came to nothing is tried again.
    """

    def __init__(
        self,
        kv: KV,
        duty: str,
        worker: str,
        lease: Lease,
        sleep: Callable[[float], Awaitable[None]] | None = None,
    ) -> None:
        self._sleep = sleep
        self._kv = kv
        self._duty = duty
        self._worker = worker
        self._lease = lease

    async def enter(self) -> Leadership:
        """Stand in line; what is returned gives no right yet, `is_first` does.

        Raises:
            MetadataUnavailable: The KV did not answer, or the lease is gone.
        """
        key = keys.candidate(self._duty, self._lease)
        put = Put(key, self._worker.encode(), self._lease)
        while True:
            outcome = await self._kv.txn([Absent(key)], [put])
            match outcome:
                case Ok(revision=revision):
                    return self._leadership(revision)
                case Failed(found=(Entry() as mine, *_)):
                    return self._leadership(mine.created)
                case Failed() | Unknown():
                    # The key is this lease's alone: if it stands, the put was ours.
                    standing = await self._standing(only(key))
                    if standing:
                        return self._leadership(standing[0].created)
                    if self._sleep is not None:
                        await self._sleep(RELIST_S)  # a full store says no more than that
                case _:
                    assert_never(outcome)

    def _leadership(self, token: int) -> Leadership:
        return Leadership(self._duty, self._lease, token)

    async def is_first(self, leadership: Leadership) -> bool:
        """Whether it leads: nobody stands before it, and it still stands.

        Raises:
            Deposed: Its key is gone.
            MetadataUnavailable: The KV did not answer.
        """
        standing = [one.created for one in await self._standing(keys.candidates(self._duty))]
        if leadership.token not in standing:
            raise Deposed
        return leadership.token == min(standing)

    async def _standing(self, within: Range) -> tuple[Entry, ...]:
        return (await self._kv.read([within])).ranges[0]


class Elections:
    """Campaigns of one worker. `clock` is monotonic, in seconds; it never decides who leads."""

    def __init__(
        self,
        kv: KV,
        worker: str,
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._worker = worker
        self._ttl_s = ttl_s
        self._clock = clock
        self._sleep = sleep

    async def lead(self, duty: str, work: Callable[[Leadership], Awaitable[None]]) -> None:
        """Campaign, do the work while leading, resign.

        Returns when the work is done, or after it was cancelled because the leadership was lost.

        Raises:
            MetadataUnavailable: The KV did not answer while campaigning.
            ExceptionGroup: What the work raised.
        """
        granted_at = self._clock()
        lease = await self._kv.grant(self._ttl_s)
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep(lease, granted_at))
                await work(await self._win(duty, lease))
                keeper.cancel()
        except* Deposed:
            pass
        finally:
            # Else the next leader waits until the lease has run out.
            with suppress(MetadataUnavailable, TimeoutError):
                async with asyncio.timeout(_RESIGN_S):
                    await self._kv.revoke(lease)

    async def _win(self, duty: str, lease: Lease) -> Leadership:
        candidate = Candidate(self._kv, duty, self._worker, lease, self._sleep)
        leadership = await candidate.enter()
        while not await candidate.is_first(leadership):
            await self._sleep(RELIST_S)
        return leadership

    async def _keep(self, lease: Lease, granted_at: float) -> None:
        """Keep the lease alive; raise `Deposed` when it can no longer be counted on."""
        until = granted_at + self._ttl_s - _MARGIN_S
        while True:
            await self._sleep(min(self._ttl_s / 3, max(0.1, until - self._clock())))
            sent = self._clock()
            try:
                # Waiting on for an answer must not outlast what the answer before it promised.
                async with asyncio.timeout(min(self._ttl_s / 3, until - sent)):
                    alive = await self._kv.keep_alive(lease)
            except (MetadataUnavailable, TimeoutError):
                if self._clock() >= until:
                    raise Deposed from None
                continue
            if not alive:
                raise Deposed
            until = sent + self._ttl_s - _MARGIN_S
