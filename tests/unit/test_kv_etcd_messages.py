"""What goes to an etcd and what its answers mean, without one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from aetcd.rpc import rpc_pb2 as rpc
from aetcd.rpc.kv_pb2 import Event, KeyValue
from grpc import StatusCode

from node.kv import Changes, Created, DeleteRange, Lease, Modified, Put, prefix
from node.kv_etcd_messages import CHANGES, Keyspace, Verdict, is_too_large, judge, lease_id

KEYSPACE = Keyspace(b"/p/")


@pytest.mark.parametrize(
    ("code", "details", "verdict"),
    [
        (StatusCode.UNAVAILABLE, "etcdserver: no leader", Verdict.UNLED),
        (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: too many requests", Verdict.ELSEWHERE),
        (StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", Verdict.UNAUTHENTICATED),
        (
            StatusCode.INVALID_ARGUMENT,
            "etcdserver: revision of auth store is old",
            Verdict.UNAUTHENTICATED,
        ),
        (StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", Verdict.REFUSED),
        (StatusCode.INVALID_ARGUMENT, "etcdserver: request is too large", Verdict.REFUSED),
        (StatusCode.NOT_FOUND, "etcdserver: requested lease not found", Verdict.GONE),
        (StatusCode.OUT_OF_RANGE, "etcdserver: mvcc: required revision …", Verdict.GONE),
        (
            StatusCode.RESOURCE_EXHAUSTED,
            "etcdserver: mvcc: database space exceeded",
            Verdict.FULL,
        ),
        # Of all others nobody knows whether the write was proposed before.
        (StatusCode.UNAVAILABLE, "etcdserver: request timed out", Verdict.LOST),
        (StatusCode.UNAVAILABLE, "etcdserver: leader changed", Verdict.LOST),
        (StatusCode.UNAVAILABLE, "etcdserver: server stopped", Verdict.LOST),
        (StatusCode.UNAVAILABLE, "Socket closed", Verdict.LOST),
        (StatusCode.UNAVAILABLE, "failed to connect to all addresses", Verdict.LOST),
        (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded", Verdict.LOST),
        (StatusCode.DATA_LOSS, "etcdserver: corrupt cluster", Verdict.LOST),
        (StatusCode.UNKNOWN, "raft proposal dropped", Verdict.LOST),
        (StatusCode.INTERNAL, "", Verdict.LOST),
        (StatusCode.CANCELLED, "", Verdict.LOST),
        (StatusCode.RESOURCE_EXHAUSTED, "", Verdict.LOST),
    ],
)
def test_an_error_says_no_more_than_it_does(
    code: StatusCode, details: str, verdict: Verdict
) -> None:
    """Only what etcd raises before it applies anything is certain."""
    assert judge(code, details) is verdict


@pytest.mark.parametrize(
    "details",
    [
        "etcdserver: request is too large",
        "etcdserver: too many operations in txn request",
        "grpc: received message larger than max (3000000 vs. 2097152)",
    ],
)
def test_what_is_too_large_is_known_as_such(details: str) -> None:
    """It is a bug, and no weather."""
    assert is_too_large(StatusCode.INVALID_ARGUMENT, details)
    assert judge(StatusCode.RESOURCE_EXHAUSTED, details) is Verdict.REFUSED


@pytest.mark.parametrize("guard", [Created(b"a", 0), Modified(b"a", 0)])
def test_no_key_was_ever_written_at_revision_0(guard: Created | Modified) -> None:
    """etcd would find 0 in an absent key; the port's guard wants one that is there."""
    (compare,) = KEYSPACE.txn([guard], []).compare
    assert compare.create_revision + compare.mod_revision < 0


@pytest.mark.parametrize("lease", [0, -1, 2**63, 2**70])
def test_a_lease_that_nobody_was_granted_is_none_of_theirs(lease: int) -> None:
    """etcd reads 0 as no lease at all, and can't read what is larger than 64 bits."""
    (op,) = KEYSPACE.txn([], [Put(b"a", b"", Lease(lease))]).success
    assert op.request_put.lease == lease_id(Lease(2**63)) > 0


def test_nothing_is_asked_of_a_members_own_state() -> None:
    """A transaction without operations would be answered without the others, however late."""
    for request in (KEYSPACE.txn([], []), KEYSPACE.txn([], [DeleteRange(b"b", b"a")])):
        (op,) = request.success
        assert not op.request_range.serializable
        assert op.request_range.limit == 1
    (op,) = KEYSPACE.read([]).success
    assert not op.request_range.serializable


def test_a_prefix_is_needed() -> None:
    """Without one the end of a range could mean something else to etcd."""
    with pytest.raises(ValueError, match="empty"):
        Keyspace(b"")


def test_what_is_watched_begins_behind_the_cursor() -> None:
    """And stays inside of the prefix."""
    request = KEYSPACE.watch(prefix(b"T/"), 7).create_request
    assert (request.key, request.range_end) == (b"/p/T/", b"/p/T0")
    assert request.start_revision == 8
    assert not request.progress_notify


def _put(key: bytes, revision: int) -> Any:
    return Event(type=Event.PUT, kv=KeyValue(key=b"/p/" + key, mod_revision=revision))


def _gone(key: bytes, revision: int) -> Any:
    return Event(type=Event.DELETE, kv=KeyValue(key=b"/p/" + key, mod_revision=revision))


def _shown(batches: Iterable[Changes]) -> list[tuple[int, Sequence[tuple[bytes, int]]]]:
    return [(b.revision, [(one.key, one.modified) for one in b.entries]) for b in batches]


def test_events_that_come_again_are_passed_over() -> None:
    """etcd 3.4.23 repeats events and sends older ones; a cursor never goes back."""
    events = [_put(b"a", 5), _put(b"b", 6), _put(b"a", 3), _put(b"c", 7), _put(b"b", 6)]
    assert _shown(KEYSPACE.told(events, 5)) == [(7, [(b"b", 6), (b"c", 7)])]
    assert _shown(KEYSPACE.told(events, 7)) == []


def test_a_batch_has_the_latest_of_each_key_and_no_deletions() -> None:
    """What is gone again is not told, but the cursor goes beyond it."""
    events = [_put(b"a", 5), _put(b"b", 6), _gone(b"b", 7), _put(b"a", 8), _gone(b"c", 9)]
    assert _shown(KEYSPACE.told(events, 4)) == [(9, [(b"a", 8)])]


def test_a_revision_is_never_split() -> None:
    """A batch ends before the revision that would make it too long, and with all of its last."""
    events = [
        _put(b"%d/%d" % (revision, n), revision)
        for revision in (1, 2, 3)
        for n in range(CHANGES - 1)
    ]
    told = _shown(KEYSPACE.told(events, 0))
    assert [(revision, len(entries)) for revision, entries in told] == [
        (revision, CHANGES - 1) for revision in (1, 2, 3)
    ]


@pytest.mark.parametrize(("newer", "batches"), [(0, 1), (1, 1), (CHANGES + 1, 2)])
def test_a_look_ends_at_the_moment_it_was_made(newer: int, batches: int) -> None:
    """Its last batch goes as far as the store had come, also if nothing was found."""
    kvs = [KeyValue(key=b"/p/%d" % n, mod_revision=10 + n) for n in range(newer)]
    answer = rpc.RangeResponse(header=rpc.ResponseHeader(revision=5000), kvs=kvs)
    found = list(KEYSPACE.found(answer, 9))
    assert len(found) == batches
    assert found[-1].revision == 5000
    assert sum(len(batch.entries) for batch in found) == newer
