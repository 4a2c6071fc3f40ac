"""The metadata KV: a port so small that etcd and SQLite both are one.

Promises, for every adapter (tests/contract/ holds them to it):

- **One history.** Every transaction that writes takes the next revision; revisions only grow, also
  over restarts.  A transaction sees all that was `Ok` before it began (strict serialisability).
- **Compare-and-swap is the only write.** A transaction applies all of its operations if all of its
  guards hold, or nothing.  Values are never compared, revisions are.
- **Three outcomes.** `Ok` (applied, durable), `Failed` (not applied; here is what was there) and
  `Unknown` (it may or may not be applied, now or later).  A write is never retried by an adapter.
- **Reads join.** `read` answers many ranges from one moment, linearizably.
- **Leases are no proof.** Keys bound to a lease vanish with it, at the latest some seconds after
  its time; whoever needs to be sure guards on the key.

Keys and values are bytes; a range is [start, end).  An adapter that can't answer raises
`MetadataUnavailable`; that is only ever raised where nothing was written.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final, NamedTuple, NewType, Protocol, TypeAlias

# What etcd takes in one transaction by default (--max-txn-ops): 128 of each.
MAX_RANGES: Final = 128
MAX_OPS: Final = 128

Lease = NewType("Lease", int)


class Entry(NamedTuple):
    """One key as it stood at the moment of a read."""

    key: bytes
    value: bytes
    created: int
    modified: int


class Range(NamedTuple):
    """Keys from `start` up to, not including, `end`; at most `limit` of them (0: all)."""

    start: bytes
    end: bytes
    limit: int = 0


def only(key: bytes) -> Range:
    """The range that holds just this key."""
    return Range(key, key + b"\0", 1)


def prefix(start: bytes, limit: int = 0) -> Range:
    """The range of all keys that begin with `start`, which may not be empty or all 0xff."""
    stem = start.rstrip(b"\xff")
    return Range(start, stem[:-1] + bytes([stem[-1] + 1]), limit)


# --- guards: what must hold for a transaction to apply


class Absent(NamedTuple):
    """No such key."""

    key: bytes


class Exists(NamedTuple):
    """The key is there, whatever its value."""

    key: bytes


class Created(NamedTuple):
    """The key is there and was created at this revision: the very key of an election."""

    key: bytes
    revision: int


class Modified(NamedTuple):
    """The key is there and was last written at this revision: unchanged since it was read."""

    key: bytes
    revision: int


class Empty(NamedTuple):
    """No key in [start, end)."""

    start: bytes
    end: bytes


Guard: TypeAlias = Absent | Exists | Created | Modified | Empty


def unchanged(key: bytes, seen: Entry | None) -> Guard:
    """The guard that the key is still as it was read."""
    return Absent(key) if seen is None else Modified(key, seen.modified)


# --- operations: a key may stand in one of them at most


class Put(NamedTuple):
    """Write a value; with a lease, the key goes when the lease does."""

    key: bytes
    value: bytes
    lease: Lease | None = None


class Delete(NamedTuple):
    """Remove a key; removing an absent one is no error."""

    key: bytes


class DeleteRange(NamedTuple):
    """Remove all keys in [start, end)."""

    start: bytes
    end: bytes


Op: TypeAlias = Put | Delete | DeleteRange


def check_txn(guards: Sequence[Guard], ops: Sequence[Op]) -> None:
    """Refuse what no adapter takes; each asks this before anything is sent.

    Raises:
        ValueError: Two operations touch one key, or there are more than 128 of either.
    """
    if max(len(guards), len(ops)) > MAX_OPS:
        raise ValueError(f"{len(guards)} guards and {len(ops)} operations, at most {MAX_OPS}")
    spans = [
        (op.start, op.end) if isinstance(op, DeleteRange) else (op.key, op.key + b"\0")
        for op in ops
    ]
    spans = sorted((start, end) for start, end in spans if start < end)
    for (_, end), (start, _) in pairwise(spans):
        if start < end:
            raise ValueError(f"key {start!r} stands in two operations")


# --- outcomes of a transaction


@dataclass(frozen=True, slots=True)
class Ok:
    """All guards held; everything is applied and durable, at this revision."""

    revision: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A guard did not hold; nothing is applied.

    `found` has one item per guard, in their order: the entry at its key (the first of its range for
    `Empty`), None where there was none.
    """

    found: tuple[Entry | None, ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nobody can say: it may be applied, may not be, or may yet be. Never send it again blindly."""

    reason: str


Outcome: TypeAlias = Ok | Failed | Unknown


class Stale(StrEnum):
    """Why an answer may be of long ago: what was acknowledged since may be missing."""

    NO_MAJORITY = "the site's store has no majority"
    TOO_SLOW = "the site's store did not answer in time"


class Snapshot(NamedTuple):
    """The answer to a joined read: for each range its entries in key order, and the moment.

    `stale`: why that moment may be long ago, if it may.
    """

    ranges: tuple[tuple[Entry, ...], ...]
    revision: int
    stale: Stale | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One server of a store, by its own account; of one that does not answer little is known.

    `size_bytes` is what its file takes, which is what a quota counts; `used_bytes` what
    defragmenting would leave of it.  While it `is_full`, the store takes no writes that add.
    """

    endpoint: str
    problems: tuple[str, ...] = ()
    version: str = ""
    is_up: bool = True
    has_leader: bool = True
    is_leader: bool = False
    is_full: bool = False
    is_corrupt: bool = False
    size_bytes: int = 0
    used_bytes: int = 0


class Changes(NamedTuple):
    """The next changes, in revision order: per key its latest value; whole revisions only.

    `revision` is how far one may take this as complete: the next call goes on after it.
    """

    entries: tuple[Entry, ...]
    revision: int


class Compacted(Exception):
    """Changes can't be told from there on: list everything, then follow from what was noted first.

    It is raised by adapters and handled by whoever follows; it is no `RegistryError`.
    """


class KV(Protocol):
    """The port. Adapters: node/kv_sqlite.py, node/kv_etcd.py; for simulation tests/fake_kv.py."""

    async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        """Answer at most 128 ranges from one moment, linearizably.

        Where that can't be had, and it may be stale, an answer that says so will do; it decides
        nothing, it is only shown.  A store that is whole or not there at all never gives one.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        ...

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """Apply `ops` in one revision if all `guards` hold; at most 128 of each.

        Raises:
            ValueError: A key stands in two ops, or it is more than the store takes.
            MetadataUnavailable: It was certainly not applied and will not be; also where a lease
                that an operation names is gone.
        """
        ...

    def changes(self, within: Range, after: int) -> AsyncIterator[Changes]:
        """Follow the keys of a range from just after a revision, for ever.

        Deletions are not told: what must be known to be gone is a value, or is read.  It may
        coalesce, may say nothing new (empty `entries`, higher `revision`), and takes the next batch
        only when asked, so a slow reader costs nothing; a batch has about 500 entries at the most.
        The first comes at once if the store is beyond `after`, wherever it was written to.

        Raises:
            Compacted: `after` is too old, or newer than this store (it was restored).
            MetadataUnavailable: The store went away; follow again from where one was.
        """
        ...

    async def grant(self, ttl_s: float) -> Lease:
        """A new lease that lasts at least `ttl_s` seconds unless kept alive."""
        ...

    async def keep_alive(self, lease: Lease) -> bool:
        """Give the lease its whole time again; False if it is gone."""
        ...

    async def revoke(self, lease: Lease) -> None:
        """End the lease and remove its keys now; ending a lease that is gone is no error."""
        ...

    async def members(self) -> tuple[Member, ...]:
        """How each server of the store is, within seconds; none where there are no servers."""
        ...

    async def close(self) -> None:
        """Let go of the store; what was acknowledged stays."""
        ...


@asynccontextmanager
async def following(kv: KV, within: Range, after: int) -> AsyncIterator[AsyncIterator[Changes]]:
    """Follow a range inside the block, and let go of it at its end; see `KV.changes`."""
    stream = kv.changes(within, after)
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()
