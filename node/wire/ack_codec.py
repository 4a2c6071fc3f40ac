"""A follower's report in a feed's Ack, and back.

What a peer says of itself is shown to people and kept in the KV, so its text is made printable and
cut, and there is never more of it than `MOST` repositories.
"""

from __future__ import annotations

from typing import Final

from node.errors import NameInvalid
from node.records import ParkedThere, Report
from node.reference import parse_repository
from node.wire import feed_pb2 as pb
from node.wire import metadata_pb2
from node.wire.codec import parked_there_message, read_parked_there

MOST: Final = 100
REASON_CHARS: Final = 300
_STATE_CHARS: Final = 32
_NAME_CHARS: Final = 63
_MOST_NUMBER: Final = 2**62
_MOST_MS: Final = 2**53
_MOST_S: Final = 2**40


def ack_message(report: Report) -> pb.ChangesRequest:
    return pb.ChangesRequest(
        ack=pb.Ack(
            incarnation=report.incarnation,
            revision=report.revision,
            life=report.life,
            state=report.state,
            cursor=report.cursor,
            parked=map(parked_there_message, report.parked),
            parked_count=report.parked_count,
            bytes_to_go=report.bytes_to_go,
            seconds_left=report.seconds_left,
        )
    )


def read_ack(message: pb.Ack) -> Report:
    """Raises: ValueError: It is about no life, or says what can't be."""
    _check(0 < len(message.incarnation) <= _NAME_CHARS, "no incarnation")
    _check(len(message.life) <= _NAME_CHARS, "no incarnation")
    _check(max(message.revision, message.cursor) <= _MOST_NUMBER, "a number out of range")
    _check(message.bytes_to_go <= _MOST_NUMBER, "a number out of range")
    _check(message.seconds_left <= _MOST_S, "a time out of range")
    parked = tuple(map(_read_parked, message.parked[:MOST]))
    return Report(
        message.incarnation,
        message.revision,
        shown(message.life, _NAME_CHARS),
        shown(message.state, _STATE_CHARS),
        message.cursor,
        parked,
        max(message.parked_count, len(parked)),
        message.bytes_to_go if message.HasField("bytes_to_go") else None,
        message.seconds_left if message.HasField("seconds_left") else None,
    )


def _read_parked(message: metadata_pb2.ParkedThere) -> ParkedThere:
    try:
        parse_repository(message.repository)
    except NameInvalid as err:
        raise ValueError(str(err)) from err
    _check(message.first <= _MOST_NUMBER, "a number out of range")
    _check(0 <= message.since_ms <= _MOST_MS, "a time out of range")
    _check(0 <= message.next_ms <= _MOST_MS, "a time out of range")
    message.reason = shown(message.reason, REASON_CHARS)
    return read_parked_there(message)


def shown(text: str, most: int) -> str:
    """Somebody's text as it may be shown: one line of printable characters, cut."""
    return "".join(c if c.isprintable() else " " for c in text[:most]).strip()


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
