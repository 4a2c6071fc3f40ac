"""The metadata KV in an etcd of three members, or of one: the store of a site of many nodes.

What node.kv promises, and how: a transaction is one of etcd's; a joined read is a transaction of
ranges, long ranges going on by pages as of its revision.  A request is answered by whichever member
can, but a write goes out once (node/kv_etcd_members.py): where etcd does not say for certain that
it was not applied, its outcome is Unknown, a full store among it.  Leases are etcd's: they last at
least 2 s, and start again with each of its leaders.

etcd compacts, so `changes` raises Compacted for a cursor that is too old, and for one of a store
that was restored.  A transaction is of at most 128 guards and 128 operations, and 1.5 MiB.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Final

from aetcd.rpc.rpc_pb2 import LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest

from node.errors import MetadataUnavailable
from node.kv import (
    MAX_RANGES,
    Changes,
    Entry,
    Guard,
    Lease,
    Member,
    Op,
    Outcome,
    Range,
    Snapshot,
    Stale,
    Unknown,
    check_txn,
)
from node.kv_etcd_landmarks import Landmarks
from node.kv_etcd_lines import Access, Method
from node.kv_etcd_members import READ_S, WRITE_S, Gone, Lost, Members
from node.kv_etcd_messages import Keyspace, Message, lease_id
from node.kv_etcd_status import look
from node.kv_etcd_watch import SILENCE_S, Watch

__all__ = ["Access", "EtcdKV"]

# Without a leader members say so at once; how long one is looked for before a stale answer is due.
STALE_AFTER_S: Final = 1.0
# A read whose revision is compacted between two pages begins again, so often at the most.
_READINGS: Final = 3
_LONGEST_S: Final = 9_000_000_000

_TXN: Final[Method] = attrgetter("kv.Txn")
_RANGE: Final[Method] = attrgetter("kv.Range")
_GRANT: Final[Method] = attrgetter("lease.LeaseGrant")
_REVOKE: Final[Method] = attrgetter("lease.LeaseRevoke")
_KEEP_ALIVE: Final[Method] = attrgetter("keep_alive")


class EtcdKV:
    """The port `node.kv.KV` over an etcd; belongs to the event loop that opened it."""

    def __init__(self, access: Access, prefix: bytes, *, silence_s: float = SILENCE_S) -> None:
        """Connects when it is first asked; see `node.kv_etcd_watch` for `silence_s`.

        Raises:
            ValueError: The prefix of the keys is empty.
        """
        self._keyspace = Keyspace(prefix)
        self._landmarks = Landmarks()
        self._members = Members(access)
        self._watch = Watch(self._members, self._keyspace, self._landmarks, silence_s)

    async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        """Answer at most 128 ranges from one moment, linearizably.

        If it may be stale, any member's own state will do where they say to have no leader, where
        none can be reached, or where the time of a read is over; the snapshot says which.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges; a read takes {MAX_RANGES}")
        if not may_be_stale:
            return await self._read(ranges)
        try:
            return await self._read(ranges, patience_s=STALE_AFTER_S)
        except MetadataUnavailable as error:
            why = Stale.NO_MAJORITY if error.unled else Stale.TOO_SLOW
            return await self._read(ranges, stale=why)

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """Apply `ops` in one revision if all `guards` hold.

        Raises:
            MetadataUnavailable: It was not applied: no member can be reached or has a leader, the
                user may not, or a lease is gone.
            ValueError: A key stands in two ops, or it is too large for etcd.
        """
        check_txn(guards, ops)
        try:
            response = await self._members.tell(_TXN, self._keyspace.txn(guards, ops))
        except Lost as lost:
            return Unknown(str(lost))
        except Gone as gone:
            raise MetadataUnavailable(str(gone)) from gone
        return self._keyspace.outcome(guards, response)

    def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """Follow the keys of a range from just after a revision; its limit is not heeded.

        Raises:
            Compacted: `after` is compacted, or newer than this store.
            MetadataUnavailable: No member can be followed, or `close` was called.
        """
        return self._watch.changes(within, after)

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease that lasts at least `ttl_s` seconds, and 2, unless kept alive.

        Raises:
            MetadataUnavailable: There is no such lease, or one that nobody knows and that expires.
        """
        if not 0 < ttl_s <= _LONGEST_S:
            raise ValueError(f"a lease lasts a positive number of seconds, {_LONGEST_S} at most")
        request = LeaseGrantRequest(TTL=math.ceil(ttl_s))
        return Lease((await self._members.ask(_GRANT, request, within_s=WRITE_S)).ID)

    async def keep_alive(self, lease: Lease) -> bool:
        """Give the lease its whole time again; False if it is gone.

        Raises:
            MetadataUnavailable: Count on the time it had before.
        """
        request = LeaseKeepAliveRequest(ID=lease_id(lease))
        return bool((await self._members.ask(_KEEP_ALIVE, request)).TTL > 0)

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove its keys now; ending a lease that is gone is no error.

        Raises:
            MetadataUnavailable: It may live on until its time.
        """
        request = LeaseRevokeRequest(ID=lease_id(lease))
        with suppress(Gone):
            await self._members.ask(_REVOKE, request, within_s=WRITE_S)

    async def close(self) -> None:
        """End all followers, finish what was asked, hang up. Twice is no error."""
        self._watch.close()
        await self._members.close()

    async def members(self) -> tuple[Member, ...]:
        """How each member is, by its own account; in the order of their addresses."""
        return await look(self._members)

    async def _read(
        self,
        ranges: Sequence[Range],
        *,
        patience_s: float = READ_S,
        stale: Stale | None = None,
    ) -> Snapshot:
        reason = ""
        for _ in range(_READINGS):
            asked = [self._landmarks.near(one) for one in ranges]
            request = self._keyspace.read(asked, serializable=stale is not None)
            response = await self._members.ask(
                _TXN, request, patience_s=patience_s, led=stale is None
            )
            revision = response.header.revision
            # For no ranges etcd was asked something too, or it would tell no moment.
            pages = [one.response_range for one in response.responses[: len(ranges)]]
            try:
                whole = [
                    await self._whole(one, part, page, revision, stale=stale is not None)
                    for one, part, page in zip(ranges, asked, pages, strict=True)
                ]
            except Gone as gone:
                reason = str(gone)
                continue
            return Snapshot(tuple(whole), revision, stale)
        raise MetadataUnavailable(reason)

    async def _whole(
        self, within: Range, asked: Range, page: Message, revision: int, *, stale: bool
    ) -> tuple[Entry, ...]:
        """A range of which a first part was asked for and its page has come: as of its revision."""
        entries, ahead = self._keyspace.entries(page), 1
        while (start := self._beyond(asked, page, entries)) < within.end:
            if within.limit and len(entries) == within.limit:
                break
            limit = within.limit - len(entries) if within.limit else 0
            asked = self._landmarks.near(Range(start, within.end, limit), ahead)
            # Where landmarks lie too close, they are soon left behind.
            ahead *= 2
            request = self._keyspace.page(asked, revision=revision, serializable=stale)
            page = await self._members.ask(_RANGE, request, led=not stale)
            entries += self._keyspace.entries(page)
        return entries

    def _beyond(self, asked: Range, page: Message, entries: tuple[Entry, ...]) -> bytes:
        """The first key that a page says nothing of."""
        if not page.more:
            return asked.end
        end = entries[-1].key + b"\0"
        self._landmarks.learn(end, page.count)
        return end
