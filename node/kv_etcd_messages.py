"""The port's words as etcd's messages, and back; what etcd's refusals mean.  Pure: no I/O.

Every key stands behind a prefix, so that several sites can share an etcd.  Nothing here may be sent
that etcd answers otherwise than the port promises:

- a comparison with revision 0 holds for an absent key, where the port wants the key to be there;
- a lease of 0 is none, and a lease that doesn't fit 64 bits is one that nobody was granted;
- a transaction without any operation is answered from any member's own state, however old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import Enum, auto
from itertools import groupby
from typing import Any, Final, TypeAlias

from aetcd.rpc.kv_pb2 import Event
from aetcd.rpc.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)
from grpc import StatusCode

from node.kv import (
    Absent,
    Changes,
    Created,
    Delete,
    DeleteRange,
    Empty,
    Entry,
    Exists,
    Failed,
    Guard,
    Lease,
    Modified,
    Ok,
    Op,
    Put,
    Range,
)

# aetcd's messages have no types; what they are is said by the names of the arguments.
Message: TypeAlias = Any

# The entries of one range in one answer.  128 ranges of so many records are some 30 MiB.
PAGE: Final = 1000
CHANGES: Final = 500

_NOBODYS_LEASE: Final = 2**63 - 1
_NEVER: Final = -1


class Verdict(Enum):
    """What an error of etcd says about the request that it answers."""

    REFUSED = auto()
    """Certainly not applied, and no member would."""
    UNLED = auto()
    """Certainly not applied: the member has no leader; another may have one."""
    ELSEWHERE = auto()
    """Certainly not applied here; another member may do it."""
    UNAUTHENTICATED = auto()
    """Certainly not applied: the token has run out."""
    FULL = auto()
    """No room.  etcd says so before it applies a write, and in a rare case after it did."""
    GONE = auto()
    """Certainly not applied: there is no such lease, or the revision is compacted."""
    LOST = auto()
    """It may be applied, or may yet be."""


# Where etcd raises these: all before a write is proposed, or by what decides before applying it.
# "raft proposal dropped", "server stopped", "leader changed", "request timed out" and a corrupt
# cluster's error say nothing for sure, so they are LOST like all that is not named here.
_BY_CODE: Final = {
    StatusCode.UNAUTHENTICATED: Verdict.UNAUTHENTICATED,
    StatusCode.INVALID_ARGUMENT: Verdict.REFUSED,
    StatusCode.PERMISSION_DENIED: Verdict.REFUSED,
    StatusCode.NOT_FOUND: Verdict.GONE,
    StatusCode.UNIMPLEMENTED: Verdict.REFUSED,
    StatusCode.OUT_OF_RANGE: Verdict.GONE,
}
_BY_TEXT: Final = {
    "etcdserver: no leader": Verdict.UNLED,
    "etcdserver: too many requests": Verdict.ELSEWHERE,
    "etcdserver: rpc not supported for learner": Verdict.ELSEWHERE,
    "etcdserver: mvcc: database space exceeded": Verdict.FULL,
    "etcdserver: revision of auth store is old": Verdict.UNAUTHENTICATED,
}
_TOO_LARGE: Final = ("request is too large", "too many operations", "received message larger than")


def judge(code: StatusCode, details: str) -> Verdict:
    """What an error says about a request that was sent."""
    found = _BY_TEXT.get(details) or _BY_CODE.get(code)
    if found is None:
        found = Verdict.REFUSED if is_too_large(code, details) else Verdict.LOST
    return found


def is_too_large(code: StatusCode, details: str) -> bool:
    """Whether etcd takes no request of this size: a bug of whoever made it."""
    # The bytes of a request are counted by the server's gRPC, or by etcd itself.
    codes = {StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED}
    return code in codes and any(text in details for text in _TOO_LARGE)


def lease_id(lease: Lease) -> int:
    """A lease as etcd counts them."""
    return lease if 0 < lease < _NOBODYS_LEASE else _NOBODYS_LEASE


class Keyspace:
    """The keys behind one prefix."""

    def __init__(self, prefix: bytes) -> None:
        """Raises: ValueError: The prefix is empty; a range's end would then mean something else."""
        if not prefix:
            raise ValueError("a prefix of keys may not be empty")
        self._prefix = prefix

    def read(self, ranges: Sequence[Range], *, serializable: bool = False) -> Message:
        """The transaction that reads the first page of each range, all at one moment."""
        asked = ranges or [Range(b"", b"", 1)]
        reads = [self.page(one, serializable=serializable) for one in asked]
        return TxnRequest(success=[RequestOp(request_range=one) for one in reads])

    def page(
        self, within: Range, *, revision: int = 0, serializable: bool = False, bare: bool = False
    ) -> Message:
        """The request for the first page of a range, as of a revision (0: now); bare: no values."""
        return RangeRequest(
            key=self._prefix + within.start,
            range_end=self._prefix + within.end,
            limit=min(within.limit or PAGE, PAGE),
            revision=revision,
            serializable=serializable,
            keys_only=bare,
        )

    def entries(self, range_response: Message) -> tuple[Entry, ...]:
        """The entries of an answer, in key order."""
        return tuple(map(self._entry, range_response.kvs))

    def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Message:
        """The transaction; where a guard does not hold it answers what stands at each."""
        writes = [self._op(op) for op in ops if not _is_empty(op)]
        found = [self._range(_span(guard)) for guard in guards]
        return TxnRequest(
            compare=[self._compare(guard) for guard in guards],
            success=writes or [self._range(Range(b"", b"", 1))],
            failure=found,
        )

    def outcome(self, guards: Sequence[Guard], txn_response: Message) -> Ok | Failed:
        """How the transaction went."""
        if txn_response.succeeded:
            return Ok(txn_response.header.revision)
        pages = [self.entries(one.response_range) for one in txn_response.responses]
        assert len(pages) == len(guards)
        return Failed(tuple(page[0] if page else None for page in pages))

    def watch(self, within: Range, after: int) -> Message:
        """The request to be told of a range from just after a revision."""
        return WatchRequest(
            create_request=WatchCreateRequest(
                key=self._prefix + within.start,
                range_end=self._prefix + within.end,
                start_revision=after + 1,
                fragment=True,
            )
        )

    def count(self, within: Range) -> Message:
        """The request for the number of keys in a range."""
        start, end = self._prefix + within.start, self._prefix + within.end
        return RangeRequest(key=start, range_end=end, count_only=True)

    def newer(self, within: Range, after: int, *, bare: bool = False) -> Message:
        """The request for all that was written after a revision; etcd reads the whole range.

        Bare: for no values, and one key at the most.
        """
        return RangeRequest(
            key=self._prefix + within.start,
            range_end=self._prefix + within.end,
            min_mod_revision=after + 1,
            limit=int(bare),
            keys_only=bare,
        )

    def found(self, range_response: Message, told: int) -> Iterator[Changes]:
        """All that `newer` found, in batches; the last goes as far as the store had come."""
        events = [Event(kv=kv) for kv in range_response.kvs]
        *batches, last = list(self.told(events, told)) or [Changes((), told)]
        yield from batches
        yield last._replace(revision=range_response.header.revision)

    def told(self, events: Iterable[Message], told: int) -> Iterator[Changes]:
        """Batches of whole revisions beyond the one that was told last.

        A revision is taken once, and none that is older: etcd before 3.4.24 repeats some.
        """
        fresh = sorted(
            (event for event in events if event.kv.mod_revision > told),
            key=lambda event: event.kv.mod_revision,
        )
        batch: dict[bytes, Message] = {}
        for revision, group in groupby(fresh, key=lambda event: event.kv.mod_revision):
            whole = {event.kv.key: event for event in group}
            if batch and len(batch) + len(whole) > CHANGES:
                yield self._batch(batch, told)
                batch = {}
            batch |= whole
            told = revision
        if batch:
            yield self._batch(batch, told)

    def _batch(self, events: dict[bytes, Message], revision: int) -> Changes:
        latest = [self._entry(one.kv) for one in events.values() if one.type == Event.PUT]
        return Changes(tuple(sorted(latest, key=lambda one: (one.modified, one.key))), revision)

    def _entry(self, kv: Message) -> Entry:
        key = kv.key[len(self._prefix) :]
        return Entry(key, kv.value, kv.create_revision, kv.mod_revision)

    def _range(self, within: Range) -> Message:
        return RequestOp(request_range=self.page(within))

    def _compare(self, guard: Guard) -> Message:
        key = self._prefix + _span(guard).start
        match guard:
            case Absent():
                return _created(key, Compare.EQUAL, 0)
            case Exists():
                return _created(key, Compare.GREATER, 0)
            case Created():
                return _created(key, Compare.EQUAL, guard.revision or _NEVER)
            case Modified():
                revision = guard.revision or _NEVER
                return Compare(
                    key=key, target=Compare.MOD, result=Compare.EQUAL, mod_revision=revision
                )
            case Empty():
                # Holds for a range if it holds for each of its keys; a key that is there is not 0.
                return _created(key, Compare.EQUAL, 0, self._prefix + guard.end)

    def _op(self, op: Op) -> Message:
        match op:
            case Put():
                lease = 0 if op.lease is None else lease_id(op.lease)
                put = PutRequest(key=self._prefix + op.key, value=op.value, lease=lease)
                return RequestOp(request_put=put)
            case Delete():
                gone = DeleteRangeRequest(key=self._prefix + op.key)
                return RequestOp(request_delete_range=gone)
            case DeleteRange():
                start, end = self._prefix + op.start, self._prefix + op.end
                gone = DeleteRangeRequest(key=start, range_end=end)
                return RequestOp(request_delete_range=gone)


def _created(key: bytes, result: Message, revision: int, end: bytes = b"") -> Message:
    return Compare(
        key=key, range_end=end, target=Compare.CREATE, result=result, create_revision=revision
    )


def _span(guard: Guard) -> Range:
    if isinstance(guard, Empty):
        return Range(guard.start, guard.end, 1)
    return Range(guard.key, guard.key + b"\0", 1)


def _is_empty(op: Op) -> bool:
    return isinstance(op, DeleteRange) and op.start >= op.end
