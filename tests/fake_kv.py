"""The metadata KV in memory, for simulating a site: the same port, no threads, no time of its own.

It passes the contract suite, so what a simulation proves over it holds over the real ones.  Beyond
the port a test may look and meddle:

- `faults` is asked before each transaction and may make its outcome unknown (applied, not applied,
  or a ghost that lands when the test says so), refuse it, or crash its caller on either side of it;
- `down` makes every call refuse;
- `behind` is the store of the one member that is left of a majority: it answers reads that may be
  stale, and says `why`, and everything else is refused;
- `pause` is awaited where a real store would be awaited, before and after each effect, so that a
  scheduler can put anything in between;
- `copy` and `restore` save and bring back all that is stored.

It keeps one promise of the site itself: whatever removes the register of a tag or manifest is a bug
(`RegisterRemoved`), because without its context any peer could bring the deleted back.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final, TypeAlias

from node import keys
from node.errors import MetadataUnavailable
from node.kv import (
    MAX_RANGES,
    Absent,
    Changes,
    Compacted,
    Created,
    Delete,
    DeleteRange,
    Empty,
    Entry,
    Exists,
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
    Stale,
    Unknown,
    check_txn,
)

CHANGES: Final = 500


class RegisterRemoved(AssertionError):
    """A transaction removes what only ever may become a tombstone."""


class Fault(Enum):
    """What goes wrong with a transaction."""

    LOST_REPLY = auto()
    """It is run, and nobody hears how it went."""
    LOST_REQUEST = auto()
    """It is never run, and nobody hears so."""
    GHOST = auto()
    """It is run when the test calls `land`; its caller hears nothing now."""
    REFUSED = auto()
    """It is not run, and its caller hears so."""


@dataclass(frozen=True, slots=True)
class Crash:
    """The caller dies of `error`, before or after its transaction is run."""

    error: BaseException
    applied: bool


Faults: TypeAlias = Callable[[Sequence[Guard], Sequence[Op]], Fault | Crash | None]


def once(*faults: Fault | Crash | None) -> Faults:
    """Faults for the next transactions, one each; those after them go well."""
    left = iter(faults)
    return lambda _guards, _ops: next(left, None)


def _no_faults(_guards: Sequence[Guard], _ops: Sequence[Op]) -> None:
    return None


async def _give_way() -> None:
    await asyncio.sleep(0)


@dataclass(slots=True)
class _Stored:
    revision: int = 1
    granted: int = 0
    rows: dict[bytes, Entry] = field(default_factory=dict)
    keys: list[bytes] = field(default_factory=list)
    bound: dict[bytes, Lease] = field(default_factory=dict)
    leases: dict[Lease, tuple[float, float]] = field(default_factory=dict)
    """Time to live, deadline."""

    def copy(self) -> _Stored:
        return replace(
            self,
            rows=dict(self.rows),
            keys=list(self.keys),
            bound=dict(self.bound),
            leases=dict(self.leases),
        )

    def within(self, start: bytes, end: bytes, limit: int = 0) -> list[Entry]:
        first, last = bisect_left(self.keys, start), bisect_left(self.keys, end)
        if limit:
            last = min(last, first + limit)
        return [self.rows[key] for key in self.keys[first:last]]

    def put(self, op: Put, revision: int) -> None:
        before = self.rows.get(op.key)
        if before is None:
            insort(self.keys, op.key)
        created = revision if before is None else before.created
        self.rows[op.key] = Entry(op.key, op.value, created, revision)
        self.bound.pop(op.key, None)
        if op.lease is not None:
            self.bound[op.key] = op.lease

    def remove(self, keys: Sequence[bytes]) -> bool:
        for key in keys:
            del self.rows[key]
            self.bound.pop(key, None)
            del self.keys[bisect_left(self.keys, key)]
        return bool(keys)

    def end(self, lease: Lease) -> None:
        self.leases.pop(lease, None)
        if self.remove([key for key, holder in self.bound.items() if holder == lease]):
            self.revision += 1

    def expire(self, now: float) -> None:
        for lease in [one for one, (_, deadline) in self.leases.items() if deadline <= now]:
            self.end(lease)


class MemoryKV:
    """The port `node.kv.KV` over dictionaries; deterministic."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = lambda: 0.0,
        pause: Callable[[], Awaitable[None]] = _give_way,
        faults: Faults = _no_faults,
    ) -> None:
        self.faults = faults
        self.down = False
        self.behind: MemoryKV | None = None
        self.why = Stale.NO_MAJORITY
        self.ghosts: list[tuple[Sequence[Guard], Sequence[Op]]] = []
        self._clock = clock
        self._pause = pause
        self._stored = _Stored()
        self._closed = False
        self._news = asyncio.Event()

    # --- the port

    async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        """See `node.kv.KV`."""
        if len(ranges) > MAX_RANGES:
            raise ValueError(f"{len(ranges)} ranges; a read takes {MAX_RANGES}")
        await self._pause()
        if may_be_stale and self.behind is not None:
            return (await self.behind.read(ranges))._replace(stale=self.why)
        stored = self._now()
        answer = Snapshot(
            tuple(tuple(stored.within(one.start, one.end, one.limit)) for one in ranges),
            stored.revision,
        )
        await self._pause()
        return answer

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """See `node.kv.KV`; `faults` decides what goes wrong."""
        check_txn(guards, ops)
        await self._pause()
        self._now()
        outcome = self._meddle(self.faults(guards, ops), guards, ops)
        await self._pause()
        return outcome

    async def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """See `node.kv.KV`; that the store went on outside of the range is told at once."""
        while True:
            await self._pause()
            stored = self._now()
            if after > stored.revision:
                raise Compacted
            news = _changed(stored, within, after)
            if news.revision > after:
                after = news.revision
                yield news
            else:
                await self._news.wait()

    async def grant(self, ttl_s: float) -> Lease:
        """See `node.kv.KV`."""
        if ttl_s <= 0:
            raise ValueError("a lease lasts a positive number of seconds")
        await self._pause()
        stored = self._now()
        stored.granted += 1
        lease = Lease(stored.granted)
        stored.leases[lease] = (ttl_s, self._clock() + ttl_s)
        return lease

    async def keep_alive(self, lease: Lease) -> bool:
        """See `node.kv.KV`."""
        await self._pause()
        stored = self._now()
        if lease not in stored.leases:
            return False
        ttl_s, _ = stored.leases[lease]
        stored.leases[lease] = (ttl_s, self._clock() + ttl_s)
        return True

    async def revoke(self, lease: Lease) -> None:
        """See `node.kv.KV`."""
        await self._pause()
        self._now().end(lease)
        self._ring()

    async def members(self) -> tuple[Member, ...]:
        """See `node.kv.KV`."""
        if self.down:
            return (Member("memory:1", ("it is down",), is_up=False, has_leader=False),)
        if self.behind is None:
            return ()
        return (Member("left:1", ("no leader",), has_leader=False), Member("gone:1", is_up=False))

    async def close(self) -> None:
        """See `node.kv.KV`."""
        self._closed = True
        self._ring()

    # --- for the test

    def land(self, index: int = 0) -> Outcome:
        """Run a ghost now, under its guards; its caller still knows nothing."""
        guards, ops = self.ghosts.pop(index)
        return self._run(guards, ops)

    def entries(self) -> dict[bytes, bytes]:
        """All that is stored at this moment."""
        return {key: self._stored.rows[key].value for key in self._stored.keys}

    def copy(self) -> MemoryKV:
        """Another store that holds the same and from here goes its own way, without faults."""
        other = MemoryKV(clock=self._clock, pause=self._pause)
        other._stored = self._stored.copy()
        return other

    def restore(self, saved: MemoryKV) -> None:
        """Hold just what the other holds, as after a restored backup."""
        self._stored = saved._stored.copy()
        self._ring()

    def lose(self, *lost: bytes) -> None:
        """Hold these keys no more, registers too, as by damage or a mistaken hand."""
        if self._stored.remove([key for key in lost if key in self._stored.rows]):
            self._stored.revision += 1
            self._ring()

    def wake(self) -> None:
        """Let followers look again, as a poll would: after `down` changed or the clock moved."""
        self._ring()

    def _now(self) -> _Stored:
        if self._closed or self.down or self.behind is not None:
            raise MetadataUnavailable("it is closed" if self._closed else "it is down")
        self._stored.expire(self._clock())
        return self._stored

    def _meddle(
        self, fault: Fault | Crash | None, guards: Sequence[Guard], ops: Sequence[Op]
    ) -> Outcome:
        match fault:
            case None:
                return self._run(guards, ops)
            case Crash(error, applied):
                if applied:
                    self._run(guards, ops)
                raise error
            case Fault.LOST_REPLY:
                with suppress(MetadataUnavailable):
                    self._run(guards, ops)
                return Unknown("the reply was lost")
            case Fault.LOST_REQUEST:
                return Unknown("the request was lost")
            case Fault.GHOST:
                self.ghosts.append((guards, ops))
                return Unknown("it may land later")
            case Fault.REFUSED:
                raise MetadataUnavailable("refused by the test")

    def _run(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        stored = self._stored
        stored.expire(self._clock())
        found = tuple(_at(stored, guard) for guard in guards)
        if not all(map(_holds, guards, found)):
            return Failed(found)
        for op in ops:
            if isinstance(op, Put) and op.lease is not None and op.lease not in stored.leases:
                raise MetadataUnavailable(f"lease {op.lease} is gone")
        for op in ops:
            _check_kept(stored, op)
        revision = stored.revision + 1
        if any([_apply(stored, op, revision) for op in ops]):  # noqa: C419 (all of them are to run)
            stored.revision = revision
            self._ring()
        return Ok(stored.revision)

    def _ring(self) -> None:
        self._news.set()
        self._news.clear()


def _at(stored: _Stored, guard: Guard) -> Entry | None:
    if isinstance(guard, Empty):
        return next(iter(stored.within(guard.start, guard.end, 1)), None)
    return stored.rows.get(guard.key)


def _holds(guard: Guard, entry: Entry | None) -> bool:
    match guard:
        case Absent() | Empty():
            return entry is None
        case Exists():
            return entry is not None
        case Created():
            return entry is not None and entry.created == guard.revision
        case Modified():
            return entry is not None and entry.modified == guard.revision


def _check_kept(stored: _Stored, op: Op) -> None:
    if isinstance(op, Put):
        return
    start, end, _ = keys.REPLICATED
    first, last = (op.start, op.end) if isinstance(op, DeleteRange) else (op.key, op.key + b"\0")
    for entry in stored.within(max(first, start), min(last, end)):
        raise RegisterRemoved(entry.key)


def _apply(stored: _Stored, op: Op, revision: int) -> bool:
    match op:
        case Put():
            stored.put(op, revision)
            return True
        case Delete():
            return stored.remove([op.key] if op.key in stored.rows else [])
        case DeleteRange():
            return stored.remove([entry.key for entry in stored.within(op.start, op.end)])


def _changed(stored: _Stored, within: Range, after: int) -> Changes:
    news = sorted(
        (
            entry
            for entry in stored.rows.values()
            if entry.modified > after and within.start <= entry.key < within.end
        ),
        key=lambda entry: (entry.modified, entry.key),
    )
    if len(news) <= CHANGES:
        return Changes(tuple(news), stored.revision)
    # Whole revisions: all of the one the cut falls into.
    last = news[CHANGES - 1].modified
    return Changes(tuple(entry for entry in news if entry.modified <= last), last)
