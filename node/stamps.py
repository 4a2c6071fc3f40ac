"""Who writes at this site, when, and under which leases; and how a decision becomes a fact.

`Decider.decide` is the one loop in which every transaction of the site is tried: look, decide, try;
look again if something had changed.  An unknown outcome is resolved by the operation's own key, so
a retry can never land twice over somebody's later push (RELIABILITY 3.2).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar, assert_never

from node import keys
from node.errors import MetadataUnavailable, RegistryError
from node.kv import KV, Failed, Lease, Ok, Outcome, Range, Unknown, only
from node.reference import Repository
from node.transaction import Reader, Seen, Stamp, Transaction, look

R = TypeVar("R")

# RELIABILITY 3.2 and 7: operations are remembered for an hour, events for 72. A lease is shared by
# all that is written until it is renewed, so the keys live for `ttl` less `renewal` at the least.
_OPERATIONS_TTL_S: Final = 2 * 3600.0
_EVENTS_TTL_S: Final = 78 * 3600.0
_RENEWAL_S: Final = {_OPERATIONS_TTL_S: 3600.0, _EVENTS_TTL_S: 6 * 3600.0}

# Each failed attempt means that somebody else's succeeded, so this many are a crowd, not a fault.
_ATTEMPTS: Final = 128


class Stamps:
    """Makes the stamp of each transaction; grants leases when the first is needed."""

    def __init__(self, kv: KV, actor: str, *, grace_ms: int, clock_ms: Callable[[], int]) -> None:
        self._kv = kv
        self._actor = actor
        self._grace_ms = grace_ms
        self._clock_ms = clock_ms
        self._leases: dict[float, tuple[Lease, int]] = {}

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
        lease, until_ms = self._leases.get(ttl_s, (None, 0))
        now_ms = self._clock_ms()
        fresh_ms = int(_RENEWAL_S[ttl_s] * 1000)
        # A clock that was set back would otherwise keep a lease that has run out.
        if lease is None or not until_ms - fresh_ms <= now_ms < until_ms:
            lease = await self._kv.grant(ttl_s)
            self._leases[ttl_s] = (lease, now_ms + fresh_ms)
        return lease

    def forget(self) -> None:
        """Grant anew: the leases may be gone."""
        self._leases.clear()


class Decider:
    """Turns decisions into facts: reads, lets a pure function decide, tries, looks again."""

    def __init__(self, kv: KV, reader: Reader, stamps: Stamps) -> None:
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
            MetadataUnavailable: It could not be decided; it may have been applied.
            RegistryError: The decision's own: with an `op`, it is not applied and never will be.
        """
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
            self.stamps.forget()
            raise
