"""What every KV promises of transactions and reads, held against the fake and against SQLite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node.errors import MetadataUnavailable
from node.kv import (
    KV,
    MAX_RANGES,
    Absent,
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
    only,
    prefix,
    unchanged,
)
from tests.kv_calls import commit, get, keys, must_get, put, refused

GUARDS: dict[str, tuple[Callable[[Entry], Guard], Callable[[Entry], Guard]]] = {
    "absent": (lambda _: Absent(b"none"), lambda _: Absent(b"a")),
    "exists": (lambda _: Exists(b"a"), lambda _: Exists(b"none")),
    "created": (lambda e: Created(b"a", e.created), lambda e: Created(b"a", e.modified)),
    "created, absent": (lambda e: Created(b"a", e.created), lambda e: Created(b"none", e.created)),
    "modified": (lambda e: Modified(b"a", e.modified), lambda e: Modified(b"a", e.created)),
    "modified, absent": (lambda e: Modified(b"a", e.modified), lambda _: Modified(b"none", 0)),
    "empty": (lambda _: Empty(b"b", b"z"), lambda _: Empty(b"", b"b")),
    "empty, end excluded": (lambda _: Empty(b"0", b"a"), lambda _: Empty(b"0", b"a\0")),
    "empty, start included": (lambda _: Empty(b"a\0", b"b"), lambda _: Empty(b"a", b"b")),
    "unchanged": (lambda e: unchanged(b"a", e), lambda _: unchanged(b"a", None)),
}


@pytest.mark.parametrize("guard", GUARDS)
async def test_a_guard_decides_whether_all_is_applied(kv: KV, guard: str) -> None:
    """A guard that holds lets the operations through; one that does not stops every one."""
    holding, failing = GUARDS[guard]
    await put(kv, a=b"1")
    await put(kv, a=b"2")
    entry = await must_get(kv, b"a")
    ops: list[Op] = [Put(b"done", b""), Delete(b"nothing")]
    stopped = await kv.txn([holding(entry), failing(entry)], ops)
    assert isinstance(stopped, Failed)
    assert await get(kv, b"done") is None
    assert isinstance(await kv.txn([holding(entry)], ops), Ok)
    assert await get(kv, b"done") is not None


async def test_a_failure_says_what_was_there(kv: KV) -> None:
    """`found` has the entry at each guard's key, or the first of its range, in their order."""
    await put(kv, a=b"1", b1=b"2", b2=b"3")
    a, b1 = await must_get(kv, b"a"), await must_get(kv, b"b1")
    outcome = await kv.txn(
        [Absent(b"zz"), Empty(b"b", b"c"), Exists(b"a"), Empty(b"x", b"y"), Modified(b"no", 1)], []
    )
    assert outcome == Failed((None, b1, a, None, None))


async def test_many_guards_and_operations_fit_one_transaction(kv: KV) -> None:
    """128 guards and 128 operations are one transaction at one revision."""
    names = [b"key/%03d" % number for number in range(128)]
    revision = await commit(
        kv, *(Put(name, b"") for name in names), guards=[Absent(name) for name in names]
    )
    (entries,) = (await kv.read([prefix(b"key/")])).ranges
    assert [(entry.key, entry.modified) for entry in entries] == [(n, revision) for n in names]
    outcome = await kv.txn([Absent(name) for name in names], [])
    assert outcome == Failed(entries)


async def test_what_created_and_modified_mean(kv: KV) -> None:
    """`created` is the put that made the key, `modified` the last; a deletion starts anew."""
    first = await put(kv, a=b"1")
    assert await get(kv, b"a") == Entry(b"a", b"1", first, first)
    second = await put(kv, a=b"1")
    assert second > first
    assert await get(kv, b"a") == Entry(b"a", b"1", first, second)
    await commit(kv, Delete(b"a"))
    assert await get(kv, b"a") is None
    third = await put(kv, a=b"3")
    assert await get(kv, b"a") == Entry(b"a", b"3", third, third)
    assert await refused(kv, Created(b"a", first)) is not None


async def test_one_transaction_is_one_revision(kv: KV) -> None:
    """All keys of a transaction share its revision, which a read then names at least."""
    before = (await kv.read([])).revision
    revision = await put(kv, a=b"", b=b"")
    assert revision > before
    snapshot = await kv.read([prefix(b"a"), prefix(b"b")])
    assert [entry.modified for (entry,) in snapshot.ranges] == [revision, revision]
    assert snapshot.revision >= revision


async def test_revisions_never_go_back(kv: KV, another: KV) -> None:
    """Each write's revision is greater than all before it, through either way in."""
    seen = [await put(each, a=b"") for each in (kv, another, another, kv)]
    seen.append(await commit(kv, Delete(b"a")))
    seen.append(await put(another, b=b""))
    assert sorted(set(seen)) == seen


async def test_a_transaction_that_changes_nothing_takes_no_revision(kv: KV) -> None:
    """No operations, or deletions of nothing, succeed at the revision that is."""
    revision = await put(kv, a=b"")
    assert await commit(kv, guards=[Exists(b"a")]) == revision
    assert await commit(kv, Delete(b"b"), DeleteRange(b"c", b"d")) == revision


async def test_a_range_is_deleted_from_its_start_up_to_its_end(kv: KV) -> None:
    """The end stays, all before it goes, and other operations go with it."""
    await put(kv, a=b"", b=b"", ba=b"", c=b"", d=b"")
    await commit(kv, DeleteRange(b"b", b"c"), Delete(b"d"), Put(b"e", b""))
    assert await keys(kv, Range(b"a", b"z")) == [b"a", b"c", b"e"]


@pytest.mark.parametrize(
    "ops",
    [
        [Put(b"a", b"1"), Put(b"a", b"2")],
        [Put(b"a", b"1"), Delete(b"a")],
        [Delete(b"a"), Delete(b"a")],
        [DeleteRange(b"a", b"c"), Put(b"b", b"")],
        [DeleteRange(b"a", b"c"), DeleteRange(b"b", b"d")],
    ],
)
async def test_a_key_in_two_operations_is_refused(kv: KV, ops: list[Op]) -> None:
    """Which of them wins is nobody's guess: it is a bug of the caller."""
    with pytest.raises(ValueError, match="two operations"):
        await kv.txn([], ops)
    assert await keys(kv, Range(b"a", b"z")) == []


async def test_a_put_for_a_lease_that_is_gone_is_refused(kv: KV) -> None:
    """A key that could never expire is not written, nor what stands beside it."""
    lease = await kv.grant(60)
    await kv.revoke(lease)
    for gone in (lease, Lease(2**40)):
        with pytest.raises(MetadataUnavailable):
            await kv.txn([], [Put(b"a", b""), Put(b"b", b"", gone)])
    assert await keys(kv, Range(b"a", b"z")) == []


async def test_pages_follow_each_other_by_key(kv: KV) -> None:
    """Pages of any size, each begun after the last key of the one before, are the whole range."""
    names = [b"p/%02d" % number for number in range(10)]
    await commit(kv, *(Put(name, b"v" + name) for name in names), Put(b"p", b""), Put(b"p0", b""))
    whole = prefix(b"p/")
    assert await keys(kv, whole) == names
    for size in (1, 3, 10, 11):
        paged: list[bytes] = []
        start = whole.start
        while page := await keys(kv, Range(start, whole.end, size)):
            assert len(page) <= size
            paged += page
            start = page[-1] + b"\0"
        assert paged == names


async def test_a_joined_read_answers_in_order(kv: KV) -> None:
    """128 ranges of all kinds come back in the order they were asked."""
    names = [b"k%03d" % number for number in range(60)]
    await commit(kv, *(Put(name, name) for name in names))
    asked = [only(name) for name in names] + [only(b"none"), prefix(b"k00"), prefix(b"k01", 2)]
    asked += [Range(b"k05", b"k06", 1), Range(b"z", b"a"), Range(b"z", b"a", 1)]
    asked += [only(b"k%03d" % number) for number in range(MAX_RANGES - len(asked))]
    answers = [[entry.value for entry in entries] for entries in (await kv.read(asked)).ranges]
    assert len(answers) == MAX_RANGES
    assert answers[:60] == [[name] for name in names]
    assert answers[60:66] == [[], names[:10], names[10:12], [b"k050"], [], []]
    assert answers[66:] == [[name] for name in names] + [[], []]


async def test_a_read_of_too_many_ranges_is_refused(kv: KV) -> None:
    """What etcd would not take is a bug with every adapter."""
    with pytest.raises(ValueError, match="129"):
        await kv.read([only(b"a")] * (MAX_RANGES + 1))


async def test_keys_and_values_are_any_bytes(kv: KV) -> None:
    """Zero bytes, 0xff and long values are kept, and keys sort as bytes."""
    names = [b"\0", b"\0\0", b"a", b"a\0", b"a\0b", b"a\xff", b"\xfe", b"\xff\xff"]
    await commit(kv, *(Put(name, name * 20_000) for name in names))
    (entries,) = (await kv.read([Range(b"\0", b"\xff\xff\xff")])).ranges
    assert [(entry.key, entry.value) for entry in entries] == [(n, n * 20_000) for n in names]
    assert await keys(kv, prefix(b"a\xff")) == [b"a\xff"]
    assert await keys(kv, prefix(b"a\0")) == [b"a\0", b"a\0b"]


async def test_what_is_acknowledged_is_seen_from_everywhere(kv: KV, another: KV) -> None:
    """A read begun after `Ok` sees it, whoever wrote and whoever reads."""
    for number in range(30):
        writer, reader = (kv, another) if number % 2 else (another, kv)
        revision = await put(writer, a=b"%d" % number)
        entry = await must_get(reader, b"a")
        assert (entry.value, entry.modified) == (b"%d" % number, revision)
