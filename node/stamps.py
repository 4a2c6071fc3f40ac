"""Who writes at this site, when, and under which leases; and how a decision becomes a fact.

`Decider.decide` is the one loop in which every transaction of the site is tried: look, decide, try;
look again if something had changed.  An unknown outcome is resolved by the operation's own key, so
a retry can never land twice over somebody's later push (RELIABILITY 3.2).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, TypeVar, assert_never

from node import keys
from node.errors import MetadataUnavailable, RegistryError
from node.kv import KV, Failed, Lease, Ok, Outcome, Range, Unknown, only
from node.reference import Repository
from node.showing import deciding
from node.transaction import Reader, Seen, Stamp, Transaction, look

R = TypeVar("R")

# RELIABILITY 3.2 and 7: operations are remembered for an hour, events for 72. A lease is shared by
# all that is written until it is renewed, so the keys live for `ttl` less `renewal` at the least.
_OPERATIONS_TTL_S: Final = 2 * 3600.0
_EVENTS_TTL_S: Final = 78 * 3600.0
_RENEWAL_S: Final = {_OPERATIONS_TTL_S: 3600.0, _EVENTS_TTL_S: 6 * 3600.0}

# Each failed attempt means that somebody else's succeeded, so this many are a crowd, not a fault.
_ATTEMPTS: Final = 128
_PAUSE_S: Final = 0.1


class Stamps:
    """Makes the stamp of each transaction; grants leases when the first is needed.

    `granting` is a lock: a store that is back finds many who wait for a lease, and one asks.
    """

    def __init__(
        self,
        kv: KV,
        actor: str,
        *,
        grace_ms: int,
        clock_ms: Callable[[], int],
        granting: AbstractAsyncContextManager[object] | None = None,
    ) -> None:
        self._kv = kv
        self._actor = actor
        self._grace_ms = grace_ms
        self._clock_ms = clock_ms
        self._leases: dict[float, tuple[Lease, int]] = {}
        self._granting = granting or nullcontext()

    async def now(self) -> Stamp:
        """The stamp of a transaction that is decided now."""
        return Stamp(
            self._actor,
            self._clock_ms(),
            self._grace_ms,
            await self._lease(_OPERATIONS_TTL_S),
            await self._lease(_EVENTS_TTL_S),
        )

    async def _lease(self, ttl_s: float) -> Lease:
        if (lease := self._fresh(ttl_s)) is not None:
            return lease
        async with self._granting:
            if (lease := self._fresh(ttl_s)) is None:
                now_ms = self._clock_ms()
                lease = await self._kv.grant(ttl_s)
                self._leases[ttl_s] = (lease, now_ms + int(_RENEWAL_S[ttl_s] * 1000))
            return lease

    def _fresh(self, ttl_s: float) -> Lease | None:
        lease, until_ms = self._leases.get(ttl_s, (None, 0))
        # A clock that was set back would otherwise keep a lease that has run out.
        granted_ms = until_ms - int(_RENEWAL_S[ttl_s] * 1000)
        return lease if granted_ms <= self._clock_ms() < until_ms else None

    def forget(self, stamp: Stamp) -> None:
        """Grant anew: the leases of this stamp may be gone; those granted since are kept."""
        gone = {stamp.operations, stamp.events}
        self._leases = {ttl: held for ttl, held in self._leases.items() if held[0] not in gone}


async def _at_once(_seconds: float) -> None:
    return


class Decider:
    """Turns decisions into facts: reads, lets a pure function decide, tries, looks again.

    `limit` makes the time that one decision has: it ends its block with a TimeoutError; `pause`
    waits some seconds before a store that gave no answer is asked again.
    """

    def __init__(
        self,
        kv: KV,
        reader: Reader,
        stamps: Stamps,
        limit: Callable[[], AbstractAsyncContextManager[object]] = nullcontext,
        pause: Callable[[float], Awaitable[None]] = _at_once,
    ) -> None:
        self._pause = pause
        self._limit = limit
        self.kv = kv
        self.reader = reader
        self.stamps = stamps

    async def look(self, ranges: Iterable[Range]) -> Seen:
        """Read for a decision; see `node.transaction.look`."""
        return await look(self.reader, ranges)

    async def decide(
        self,
        repository: Repository,
        read: Callable[[], Awaitable[Seen]],
        decision: Callable[[Transaction], R],
        op: str | None = None,
    ) -> tuple[Seen, R | None]:
        """Do it once, whatever the replies; what was seen, and what the decision returned.

        A decision that writes nothing is done at once.  With an `op`, it must have called
        `Transaction.once(op)`; then None is returned in place of its result if an attempt turned
        out to have been applied although its reply was lost.  Without, it must be idempotent.

        Raises:
            MetadataUnavailable: It could not be decided in time; it may have been applied.
            RegistryError: The decision's own: with an `op`, it is not applied and never will be.
        """
        try:
            with deciding():
                async with self._limit():
                    return await self._decide(repository, read, decision, op)
        except TimeoutError as err:
            raise MetadataUnavailable("no answer in time") from err

    async def _decide(
        self,
        repository: Repository,
        read: Callable[[], Awaitable[Seen]],
        decision: Callable[[Transaction], R],
        op: str | None,
    ) -> tuple[Seen, R | None]:
        reason, unknown = "too much contention", False
        for attempt in range(_ATTEMPTS):
            seen = await read()
            if attempt and op is not None and await self._done(op):
                return seen, None
            txn = await self.begin(seen, repository)
            try:
                result = decision(txn)
            except RegistryError as err:
                if unknown and op is not None:
                    # What was sent before may yet land: "refused" would not be true.
                    raise MetadataUnavailable(reason) from err
                raise
            if not txn.ops:
                return seen, result
            outcome = await self.attempt(txn)
            match outcome:
                case Ok():
                    return seen, result
                case Failed():
                    pass
                case Unknown(reason=why):
                    reason, unknown = why, True
                    await self._pause(_PAUSE_S * random.uniform(0.5, 1.5))
                case _:
                    assert_never(outcome)
        raise MetadataUnavailable(reason)

    async def _done(self, op: str) -> bool:
        key = keys.operation(op)
        return (await self.look([only(key)])).entry(key) is not None

    async def begin(self, seen: Seen, repository: Repository) -> Transaction:
        """A transaction to be decided on what was seen."""
        return Transaction(seen, repository, await self.stamps.now())

    async def attempt(self, txn: Transaction) -> Outcome:
        """Try it once.

        Raises:
            MetadataUnavailable: It was certainly not applied.
        """
        try:
            return await self.kv.txn(txn.guards, txn.ops)
        except MetadataUnavailable:
            # Perhaps the lease had run out (a machine that slept): the next one is new.
            self.stamps.forget(txn.stamp)
            raise
