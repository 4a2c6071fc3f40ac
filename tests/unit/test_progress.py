"""How far a scan has come: what is told of it, and what is not known."""

from __future__ import annotations

import asyncio

import pytest

from node.change import Change
from node.errors import PeerUnavailable
from node.keys import TagName
from node.records import Pushed
from node.reference import Tag
from node.register import Register
from node.wire.feed_codec import Batch
from node.wire.follow_codec import FollowRecord, Progress, decode_follow, encode_follow
from replicator.progress import ScanProgress
from tests.clock import Seconds
from tests.model import REPOSITORY
from tests.waiting import eventually


@pytest.fixture
def clock() -> Seconds:
    """A clock that stands."""
    return Seconds()


@pytest.fixture
def progress(clock: Seconds) -> ScanProgress:
    """The progress of scans by that clock."""
    return ScanProgress(clock)


def _batch(changes: int, revision: int = 9, *, scanning: bool = True) -> Batch:
    register: Register[Pushed] = Register()
    some = [Change(TagName(REPOSITORY, Tag(f"t{n}")), register, revision) for n in range(changes)]
    return Batch("life", some, revision, scanning, revision)


async def _counted(progress: ScanProgress, number: int | None) -> None:
    """Let the peer be asked, and answer."""
    asked = 0

    async def items() -> int | None:
        nonlocal asked
        asked += 1
        return number

    async with asyncio.TaskGroup() as group:
        task = group.create_task(progress.count(items))
        await eventually(lambda: asked, 60, "the peer is asked")
        await asyncio.sleep(0)
        task.cancel()


def test_there_is_none_without_a_scan(progress: ScanProgress) -> None:
    """Changes that are followed are no scan, nor is what is fetched for them."""
    progress.begin_stream(anew=False)
    progress.take(_batch(3, scanning=False))
    with progress.fetching(10):
        assert progress.at(0, 3, 0) is None


async def test_items_are_done_when_they_no_longer_wait(progress: ScanProgress) -> None:
    """Of how many, the peer says; the last batch says it for certain."""
    progress.begin_stream(anew=False)
    progress.take(_batch(400))
    assert progress.at(0, 400, 0) == Progress(0, None, 0, 0, None)
    await _counted(progress, 1000)
    assert progress.at(0, 100, 0) == Progress(300, 1000, 0, 0, None)
    progress.take(_batch(500))
    progress.take(_batch(0, 50, scanning=False))
    assert progress.at(0, 200, 0) == Progress(700, 900, 0, 0, None)
    assert progress.at(50, 0, 0) is None


async def test_more_than_the_peer_said_is_no_more_than_all(progress: ScanProgress) -> None:
    """What is pushed while a scan runs may come with it."""
    progress.take(_batch(10))
    await _counted(progress, 5)
    assert progress.at(0, 0, 0) == Progress(10, 10, 0, 0, None)


async def test_a_peer_that_cannot_say_leaves_the_number_unknown(progress: ScanProgress) -> None:
    """An older version has no such call."""
    progress.take(_batch(10))
    await _counted(progress, None)
    assert progress.at(0, 4, 0) == Progress(6, None, 0, 0, None)


async def test_a_peer_that_does_not_answer_ends_nothing(progress: ScanProgress) -> None:
    """It is asked again when the next scan begins."""
    asked = 0

    async def items() -> int | None:
        nonlocal asked
        asked += 1
        raise PeerUnavailable("fra", "cut")

    async with asyncio.TaskGroup() as group:
        task = group.create_task(progress.count(items))
        progress.take(_batch(10))
        await eventually(lambda: asked == 1, 60, "the peer is asked")
        progress.begin_stream(anew=False)
        progress.take(_batch(10))
        await eventually(lambda: asked == 2, 60, "the peer is asked again")
        task.cancel()
    assert progress.at(0, 0, 0) == Progress(10, None, 0, 0, None)


def test_bytes_of_a_blob_that_fails_are_neither_done_nor_to_go(progress: ScanProgress) -> None:
    """Of one that is there all are done, whoever counted them."""
    progress.take(_batch(1))
    with progress.fetching(70):
        with pytest.raises(PeerUnavailable):
            _fetch_in_vain(progress, 20, Progress(0, None, 0, 90, None))
        assert progress.at(0, 1, 0) == Progress(0, None, 0, 70, None)
    assert progress.at(0, 1, 0) == Progress(0, None, 70, 0, None)


def _fetch_in_vain(progress: ScanProgress, size: int, meanwhile: Progress) -> None:
    with progress.fetching(size):
        assert progress.at(0, 1, 0) == meanwhile
        raise PeerUnavailable("fra", "cut")


def _left(progress: ScanProgress, waiting: int) -> int | None:
    told = progress.at(0, waiting, 0)
    assert told is not None
    return told.seconds_left


async def test_what_is_left_is_told_by_the_speed_of_the_last_minute(
    progress: ScanProgress, clock: Seconds
) -> None:
    """Not at once, and an earlier hurry or rest does not count."""
    progress.take(_batch(500))
    await _counted(progress, 1100)
    assert _left(progress, 500) is None
    clock.s += 10
    assert _left(progress, 400) == 100
    for _ in range(6):
        clock.s += 10
        _left(progress, 400)
    clock.s += 10
    assert _left(progress, 400) is None
    clock.s += 60
    assert _left(progress, 100) == 140


def test_bytes_count_for_what_is_left(progress: ScanProgress, clock: Seconds) -> None:
    """The slower of both says when all is done."""
    progress.take(_batch(100))
    progress.take(_batch(0, scanning=False))
    assert _left(progress, 100) is None
    with progress.fetching(1000):
        pass
    clock.s += 10
    with progress.fetching(9000):
        assert _left(progress, 50) == 90


def test_a_scan_that_is_cut_begins_again(progress: ScanProgress) -> None:
    """It is told from its beginning; one of which all was read goes on after the cut."""
    progress.take(_batch(10))
    progress.begin_stream(anew=False)
    assert progress.at(0, 10, 0) is None
    progress.take(_batch(10))
    progress.take(_batch(0, scanning=False))
    progress.begin_stream(anew=False)
    assert progress.at(0, 4, 0) == Progress(6, 10, 0, 0, None)
    progress.take(_batch(3, 12, scanning=False))
    assert progress.at(9, 3, 0) is None


def test_a_scan_ends_where_the_peer_begins_anew_with_nothing(progress: ScanProgress) -> None:
    """Of its new life there is nothing to be told, and its revisions are below the scan's end."""
    progress.take(_batch(10))
    progress.take(_batch(0, 500, scanning=False))
    assert progress.at(400, 1, 0) is not None
    progress.begin_stream(anew=True)
    progress.take(_batch(0, 3, scanning=False))
    assert progress.at(3, 0, 0) is None


def test_a_manifest_may_say_anything_of_a_size(progress: ScanProgress) -> None:
    """What nobody could send does not end the telling of all else."""
    with progress.fetching(2**63 - 1), progress.fetching(2**63 - 1):
        assert progress.bytes_to_go == 2**53


def test_a_second_scan_is_counted_anew(progress: ScanProgress) -> None:
    """Also where the first is not applied yet."""
    for _ in range(2):
        progress.take(_batch(10))
        progress.take(_batch(0, scanning=False))
    assert progress.at(0, 4, 0) == Progress(6, 10, 0, 0, None)


def test_a_scan_is_not_over_before_all_that_it_told_is_here(progress: ScanProgress) -> None:
    """Large images are parked while they are at work; what else waits then is no part of it."""
    progress.take(_batch(10))
    progress.take(_batch(0, scanning=False))
    assert progress.at(0, 4, 3) == Progress(3, 10, 0, 0, None)
    assert progress.at(9, 5, 2) == Progress(8, 10, 0, 0, None)
    assert progress.at(9, 0, 0) is None
    assert progress.at(9, 0, 1) is None, "it is over"


def test_a_scan_goes_on_with_the_next_follower(progress: ScanProgress) -> None:
    """What is left of it is all that is known; another scan is counted anew."""
    progress.resume(3)
    progress.begin_stream(anew=False)
    assert progress.at(9, 0, 2) == Progress(1, 3, 0, 0, None)
    progress.take(_batch(1, 12, scanning=False))
    assert progress.at(9, 1, 1) == Progress(2, 3, 0, 0, None)
    progress.take(_batch(10))
    assert progress.at(9, 4, 0) == Progress(6, None, 0, 0, None)


def test_nothing_goes_on_where_nothing_was_at_work(progress: ScanProgress) -> None:
    """The scan before was over, or there was none."""
    progress.resume(0)
    assert progress.at(0, 0, 0) is None


def test_the_last_large_ones_take_as_long_as_their_bytes(
    progress: ScanProgress, clock: Seconds
) -> None:
    """Though no item has been done for a minute."""
    progress.take(_batch(2))
    progress.take(_batch(0, scanning=False))
    with progress.fetching(9_000) as blob:
        for _ in range(3):
            told = progress.at(9, 0, 1)
            clock.s += 60
            blob.got(1_000)
        told = progress.at(9, 0, 1)
    assert told is not None
    assert (told.bytes_to_go, told.seconds_left) == (6_000, 360)


@pytest.mark.parametrize(
    "told", [None, Progress(1, None, 2, 3, None), Progress(0, 0, 0, 0, 0), Progress(1, 9, 2, 3, 7)]
)
def test_what_is_told_is_written_down(told: Progress | None) -> None:
    """What is not known stays unknown, and is no zero."""
    record = FollowRecord("scanning", progress=told)
    assert decode_follow(encode_follow(record)) == record
