"""What a transaction was decided on: entries as they were read, and the guards that say so.

A decision reads a `Seen`, never the KV; what it relied on becomes guards, so the transaction
applies only if nothing of it has changed.  Asking a `Seen` for a key that was not read is a bug and
raises `KeyError`: "not read" must never look like "not there".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from node import keys
from node.digest import Digest
from node.kv import (
    MAX_RANGES,
    Absent,
    Delete,
    Empty,
    Entry,
    Guard,
    Lease,
    Op,
    Put,
    Range,
    Snapshot,
    only,
    unchanged,
)
from node.records import Action, Event, Pin, Pushed
from node.reference import Repository, Tag
from node.register import Dot
from node.wire import codec

# Guards or operations in one transaction, with room below etcd's 128.
CHUNK: Final = 120


class Reader(Protocol):
    """Whatever answers joined reads: a KV, or gateway-wide joined reads over one."""

    async def read(self, ranges: Sequence[Range]) -> Snapshot:
        """See `node.kv.KV.read`."""
        ...


@dataclass(frozen=True, slots=True)
class Seen:
    """Entries by the range that asked for them, and the newest revision among the reads."""

    found: Mapping[Range, tuple[Entry, ...]]
    revision: int

    def entry(self, key: bytes) -> Entry | None:
        """The entry of a key that was read with `only`."""
        entries = self.found[only(key)]
        return entries[0] if entries else None

    def entries(self, within: Range) -> tuple[Entry, ...]:
        """The entries of a range that was read."""
        return self.found[within]

    def guard(self, key: bytes) -> Guard:
        """That a key is still as it was read."""
        return unchanged(key, self.entry(key))

    def also(self, more: Seen) -> Seen:
        """Both; of a range that both have read, the later."""
        return Seen({**self.found, **more.found}, max(self.revision, more.revision))


async def look(reader: Reader, ranges: Iterable[Range]) -> Seen:
    """Read ranges, each once, 128 at a time; each chunk is from one moment.

    Raises:
        MetadataUnavailable: No answer in time.
    """
    wanted = list(dict.fromkeys(ranges))
    found: dict[Range, tuple[Entry, ...]] = {}
    revision = 0
    for start in range(0, len(wanted), MAX_RANGES):
        chunk = wanted[start : start + MAX_RANGES]
        snapshot = await reader.read(chunk)
        found.update(zip(chunk, snapshot.ranges, strict=True))
        revision = max(revision, snapshot.revision)
    return Seen(found, revision)


def gaps(within: Range, known: Iterable[bytes]) -> list[Guard]:
    """That a range holds no key but, perhaps, the known ones."""
    guards: list[Guard] = []
    start = within.start
    for key in sorted(known):
        if start < key:
            guards.append(Empty(start, key))
        start = key + b"\0"
    return [*guards, Empty(start, within.end)]


class Stamp(NamedTuple):
    """Who writes, when, how long pins last, and the leases that let go of what need not stay."""

    actor: str
    now_ms: int
    grace_ms: int
    operations: Lease
    events: Lease


class Transaction:
    """Guards and operations in the making, about one repository; each key once, last word wins."""

    def __init__(self, seen: Seen, repository: Repository, stamp: Stamp) -> None:
        self.seen = seen
        self.repository = repository
        self.stamp = stamp
        # The KV revision of the read + 1: never one that this site has used on the key (6.2).
        self.dot = Dot(stamp.actor, seen.revision + 1)
        self._guards: dict[Guard, None] = {}
        self._ops: dict[bytes, Op] = {}
        self._events = 0

    def require(self, *guards: Guard) -> None:
        """All of these must hold."""
        self._guards.update(dict.fromkeys(guards))

    def unchanged(self, key: bytes) -> None:
        """The key must still be as it was read."""
        self.require(self.seen.guard(key))

    def once(self, op: str) -> None:
        """Apply at most once under this operation id, and leave word that it was."""
        self.require(Absent(keys.operation(op)))
        self._ops[keys.operation(op)] = Put(keys.operation(op), b"", self.stamp.operations)

    def put(self, key: bytes, value: bytes = b"") -> None:
        """Write a key."""
        self._ops[key] = Put(key, value)

    def delete(self, key: bytes) -> None:
        """Remove a key, there or not."""
        self._ops[key] = Delete(key)

    def pin(self, digest: Digest) -> None:
        """Keep a blob in the repository for the grace time."""
        pin = Pin(expires_ms=self.stamp.now_ms + self.stamp.grace_ms)
        self.put(keys.pin(digest, self.repository), codec.encode_pin(pin))

    def event(self, action: Action, op: str, value: Pushed, tag: Tag | None, actor: str) -> None:
        """Tell of something that becomes visible with this transaction."""
        event = Event(
            action,
            self.repository,
            value.digest,
            value.media_type,
            value.size,
            self.stamp.now_ms,
            tag,
            actor,
        )
        key = keys.event(self.repository, op, self._events)
        self._events += 1
        self._ops[key] = Put(key, codec.encode_event(event), self.stamp.events)

    @property
    def guards(self) -> tuple[Guard, ...]:
        """What must hold, each once."""
        return tuple(self._guards)

    @property
    def ops(self) -> tuple[Op, ...]:
        """What is done, each key once."""
        return tuple(self._ops.values())
