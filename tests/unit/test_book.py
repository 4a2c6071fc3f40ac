"""A follower's book: the cursor passes nothing that is neither applied nor parked."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node import keys
from node.election import Candidate, Deposed, Leadership
from node.errors import MetadataUnavailable
from node.records import Cursor, Parked
from node.reference import Repository
from node.wire import codec, follow_codec
from node.wire.follow_codec import FollowRecord
from replicator.book import Ledger, Parks
from replicator.checkpoint import Checkpoint
from tests.fake_kv import Fault, MemoryKV, once

A, B = Repository("a"), Repository("b")
STATUS = FollowRecord("following")


def test_the_cursor_waits_for_the_oldest_batch() -> None:
    """A batch that is done early moves it only when all before it are."""
    ledger = Ledger(Cursor("life", 5))
    first = ledger.enter(7, 2, scanning=False)
    second = ledger.enter(9, 1, scanning=False)
    ledger.done(second)
    ledger.done(first)
    assert ledger.cursor.revision == 5
    ledger.done(first)
    assert ledger.cursor == Cursor("life", 9)


def test_an_empty_batch_moves_the_cursor() -> None:
    """The source's own writes bring nothing, and are passed."""
    ledger = Ledger(Cursor("life", 5))
    ledger.enter(30, 0, scanning=False)
    assert ledger.cursor.revision == 30


def test_a_scan_moves_the_cursor_at_its_end_only() -> None:
    """In the middle of a scan there is no moment that could be gone on from."""
    ledger = Ledger(Cursor("life", 0))
    page = ledger.enter(40, 1, scanning=True)
    ledger.done(page)
    assert ledger.cursor.revision == ledger.taken == 0
    late = ledger.enter(40, 1, scanning=True)
    ledger.enter(40, 0, scanning=False)
    assert ledger.taken == 40
    assert ledger.cursor.revision == 0
    ledger.done(late)
    assert ledger.cursor.revision == 40


@given(st.data())
def test_the_cursor_passes_no_open_change(data: st.DataObject) -> None:
    """In whatever order changes are done, every batch up to the cursor is done, and it grows."""
    ledger = Ledger(Cursor("life", 0))
    sizes = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=8))
    batches = [ledger.enter(n + 1, size, scanning=False) for n, size in enumerate(sizes)]
    left = [n for n, size in enumerate(sizes) for _ in range(size)]
    before = ledger.cursor.revision
    while left:
        n = left.pop(data.draw(st.integers(0, len(left) - 1)))
        ledger.done(batches[n])
        assert ledger.cursor.revision >= before
        before = ledger.cursor.revision
        assert all(entry.waiting == 0 for entry in batches[:before])
    assert ledger.cursor.revision == len(sizes)


class _Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _parks(clock: _Time, standing: dict[Repository, Parked] | None = None) -> Parks:
    return Parks(clock, lambda: 7, lambda: 0.5, standing or {})


def test_a_park_goes_when_all_that_was_left_out_is_caught_up() -> None:
    """What came while the state was read stays parked, from just after that moment."""
    parks = _parks(_Time())
    parks.park(A, 5, 6, "why")
    parks.extend(A, 9)
    parks.caught_up(A, as_of=8)
    park = parks.get(A)
    assert park is not None
    assert (park.record.first, park.record.last) == (9, 9)
    assert parks.first == 9
    parks.caught_up(A, as_of=9)
    assert parks.get(A) is None
    assert parks.first is None
    assert parks.take_unwritten() == {A: None}


def test_what_a_scan_told_is_counted_while_it_is_at_work() -> None:
    """Down to one: only the end of the park says that all is here.  A failure ends it, too."""
    parks = _parks(_Time(), {B: Parked(1, 2, 0, "at work", 4, scanned=5)})
    parks.park(A, 5, 6, "at work", at_work=True, scanned=2)
    parks.extend(A, 7, scanned=1)
    parks.extend(A, 8)
    assert parks.at_work == 8
    for _ in range(5):
        parks.landed(A)
    assert parks.at_work == 6
    parks.failed(B, "no blob")
    assert parks.at_work == 1
    parks.caught_up(A, as_of=7)
    assert parks.at_work == 0, "what is left came after the scan"
    parks.park(A, 5, 6, "at work", at_work=True, scanned=2)
    parks.begin_scan()
    assert parks.at_work == 0, "it will be told anew"


def test_pauses_grow_and_are_bounded() -> None:
    """Each failure doubles the pause, to five minutes; being hurried ends it, and begins anew.

    A peer that is back may not have all of it back at once: the next look is a second later.
    """
    clock = _Time()
    parks = _parks(clock)
    parks.park(A, 1, 1, "why")
    pauses = [parks.due_in(A)]
    for _ in range(12):
        parks.failed(A, "again")
        pauses.append(parks.due_in(A))
    assert pauses[:4] == pytest.approx([1, 2, 4, 8])
    assert pauses[-1] == pytest.approx(300)
    parks.hurry(A)
    assert parks.due_in(A) <= 0
    parks.failed(A, "not yet")
    assert parks.due_in(A) == pytest.approx(1)
    park = parks.get(A)
    assert park is not None
    assert park.record.attempts == 14


def test_what_could_not_be_written_is_written_later() -> None:
    """No change of a park is forgotten by a save that failed."""
    parks = _parks(_Time(), {B: Parked(1, 2, 3, "why", 4)})
    assert not parks.changed
    parks.park(A, 1, 1, "why")
    taken = parks.take_unwritten()
    assert list(taken) == [A]
    assert not parks.changed
    parks.not_written(taken)
    assert list(parks.take_unwritten()) == [A]


async def _leader(kv: MemoryKV) -> Leadership:
    return await Candidate(kv, "follow/fra", "w", await kv.grant(5)).enter()


async def test_what_is_saved_is_loaded() -> None:
    """Cursor, parks and status stand in the KV under their keys; a park that went is gone."""
    kv = MemoryKV()
    checkpoint = Checkpoint(kv, "fra", await _leader(kv))
    assert (await checkpoint.load()).cursor == Cursor("", 0)
    parked = Parked(3, 4, 1, "why", 5, 6, 7)
    await checkpoint.save(Cursor("life", 9), {A: parked, B: parked}, STATUS)
    await checkpoint.save(Cursor("life", 10), {B: None}, STATUS)
    standing = await Checkpoint(kv, "fra", await _leader(kv)).load()
    assert standing.cursor == Cursor("life", 10)
    assert standing.parked == {A: parked}
    assert follow_codec.decode_follow(kv.entries()[keys.status("fra")]) == STATUS


async def test_a_deposed_follower_saves_nothing() -> None:
    """Its lease is gone, so its cursor and its parks are not taken."""
    kv = MemoryKV()
    leadership = await _leader(kv)
    checkpoint = Checkpoint(kv, "fra", leadership)
    await checkpoint.load()
    await kv.revoke(leadership.lease)
    with pytest.raises(Deposed):
        await checkpoint.save(Cursor("life", 9), {A: Parked(1, 1, 1, "why", 1)}, STATUS)
    assert kv.entries() == {}


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST, Fault.GHOST])
async def test_a_save_survives_an_unknown_outcome(fault: Fault) -> None:
    """It is there in the end, and what arrives late changes nothing that was saved after it."""
    kv = MemoryKV()
    checkpoint = Checkpoint(kv, "fra", await _leader(kv))
    await checkpoint.load()
    kv.faults = once(fault)
    await checkpoint.save(Cursor("life", 5), {A: None}, STATUS)
    await checkpoint.save(Cursor("life", 9), {A: Parked(6, 6, 1, "why", 1)}, STATUS)
    if kv.ghosts:
        kv.land()
    standing = await Checkpoint(kv, "fra", await _leader(kv)).load()
    assert standing.cursor.revision == 9
    assert list(standing.parked) == [A]


async def test_many_parks_are_saved_before_the_cursor_passes_them() -> None:
    """More than fit in a transaction: a crash between leaves the old cursor."""
    kv = MemoryKV()
    checkpoint = Checkpoint(kv, "fra", await _leader(kv))
    await checkpoint.load()
    parked = {Repository(f"r{n}"): Parked(1, 1, 1, "why", 1) for n in range(250)}
    kv.faults = once(None, None, Fault.REFUSED)
    with pytest.raises(MetadataUnavailable):
        await checkpoint.save(Cursor("life", 5), parked, STATUS)
    standing = await Checkpoint(kv, "fra", await _leader(kv)).load()
    assert (len(standing.parked), standing.cursor.revision) == (200, 0)
    await checkpoint.save(Cursor("life", 5), parked, STATUS)
    assert codec.decode_cursor(kv.entries()[keys.cursor("fra")]).revision == 5
    assert len((await Checkpoint(kv, "fra", await _leader(kv)).load()).parked) == 250
