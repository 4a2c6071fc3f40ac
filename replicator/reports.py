"""What a follower tells: its source, how far it is, what it has left out, and why. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from node.records import Cursor, Parked, ParkedThere, Report
from node.reference import Repository
from node.wire.ack_codec import MOST, REASON_CHARS
from node.wire.follow_codec import FollowRecord
from replicator.book import Parks
from replicator.waiting import Told

_MOST_MS: Final = 2**53
# How much is to go is no more than a hint there, and each ack is a write.
_BYTES_S: Final = 5.0


def report(
    saved: Cursor, parks: Parks, status: FollowRecord, told: Told, *, life: str, ahead_ms: int
) -> Report:
    """A report of what is written down, and of what is applied beyond that.

    The latter names what is at work as if it were parked: it need not be written down, as whoever
    follows next has it told again, finds it applied and says so.  `ahead_ms` is how far the
    source's clock is ahead.
    """
    first = parks.first
    applied = saved.revision if first is None else min(saved.revision, first - 1)
    records = parks.records
    at_work = [ParkedThere(name, first, 0, "at work", 0, 0) for name, first in told.lacking.items()]
    parked = [*at_work, *(_told(name, record, ahead_ms) for name, record in records)]
    return Report(
        saved.incarnation,
        max(0, applied),
        life,
        status.state,
        max(saved.revision, told.revision) if at_work and len(parked) <= MOST else saved.revision,
        tuple(parked[:MOST]),
        len(parked),
        status.bytes_to_go,
        status.expected_s,
    )


def is_to_be_said(said: Report, before: Report | None, seconds: float) -> bool:
    """Whether a report is worth an ack, so long after the last; of bytes alone only in a while."""
    if before is None or seconds >= _BYTES_S:
        return said != before
    now = replace(said, bytes_to_go=before.bytes_to_go, seconds_left=before.seconds_left)
    return now != before


def is_news(status: FollowRecord, told: FollowRecord) -> bool:
    """Whether a status says what the one before it did not, bytes and times apart."""
    return (
        (told.revision < told.head and status.revision == status.head)
        or (status.state, status.parked, status.last_error)
        != (told.state, told.parked, told.last_error)
        or (status.compared, status.stands) != (told.compared, told.stands)
    )


def has_moved(status: FollowRecord, told: FollowRecord) -> bool:
    """Whether something came between two statuses, that may otherwise say the same."""
    items = [one.progress.items_done if one.progress else 0 for one in (status, told)]
    return items[0] != items[1] or status.bytes_to_go != told.bytes_to_go


def _told(repository: Repository, record: Parked, ahead_ms: int) -> ParkedThere:
    return ParkedThere(
        repository,
        record.first,
        record.attempts,
        record.reason[:REASON_CHARS],
        _by_their_clock(record.since_ms, ahead_ms),
        _by_their_clock(record.next_ms, ahead_ms),
    )


def _by_their_clock(ms: int, ahead_ms: int) -> int:
    return min(max(0, ms + ahead_ms), _MOST_MS)
