"""A store that others used before, as if it were new: its revisions and leases count from now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from node.kv import (
    KV,
    Changes,
    Created,
    Entry,
    Failed,
    Guard,
    Lease,
    Member,
    Modified,
    Ok,
    Op,
    Outcome,
    Put,
    Range,
    Snapshot,
)


class FromNow:
    """The port over a store that stood at revision `begun` when it was as new."""

    def __init__(self, kv: KV, begun: int) -> None:
        self._kv = kv
        self._before = begun - 1
        self._leases: dict[int, Lease] = {}

    async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        """See `node.kv.KV`."""
        found = await self._kv.read(ranges, may_be_stale=may_be_stale)
        shown = tuple(tuple(map(self._shown, entries)) for entries in found.ranges)
        return Snapshot(shown, found.revision - self._before, found.stale)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """See `node.kv.KV`."""
        outcome = await self._kv.txn(list(map(self._guard, guards)), list(map(self._op, ops)))
        match outcome:
            case Ok():
                return Ok(outcome.revision - self._before)
            case Failed():
                return Failed(tuple(one and self._shown(one) for one in outcome.found))
            case _:
                return outcome

    async def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """See `node.kv.KV`."""
        async for news in self._kv.changes(within, after + self._before):
            shown = tuple(map(self._shown, news.entries))
            yield Changes(shown, news.revision - self._before)

    async def grant(self, ttl_s: float) -> Lease:
        """See `node.kv.KV`; leases are numbered from 1."""
        lease = await self._kv.grant(ttl_s)
        self._leases[len(self._leases) + 1] = lease
        return Lease(len(self._leases))

    async def keep_alive(self, lease: Lease) -> bool:
        """See `node.kv.KV`."""
        return await self._kv.keep_alive(self._lease(lease))

    async def revoke(self, lease: Lease) -> None:
        """See `node.kv.KV`."""
        await self._kv.revoke(self._lease(lease))

    async def members(self) -> tuple[Member, ...]:
        """See `node.kv.KV`."""
        return await self._kv.members()

    async def close(self) -> None:
        """See `node.kv.KV`."""
        await self._kv.close()

    def _shown(self, entry: Entry) -> Entry:
        created, modified = entry.created - self._before, entry.modified - self._before
        return entry._replace(created=created, modified=modified)

    def _guard(self, guard: Guard) -> Guard:
        # Revision 0 stays: it is before all, in every store.
        if isinstance(guard, Created | Modified) and guard.revision:
            return guard._replace(revision=guard.revision + self._before)
        return guard

    def _op(self, op: Op) -> Op:
        if isinstance(op, Put) and op.lease is not None:
            return op._replace(lease=self._lease(op.lease))
        return op

    def _lease(self, lease: Lease) -> Lease:
        return self._leases.get(lease, lease)
