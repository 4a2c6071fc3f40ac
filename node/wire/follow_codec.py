"""What a follower says of itself, and how it is written down; only its own site reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Final

from node.wire import feed_pb2 as pb


class Verdict(StrEnum):
    """What comparing the states of two sites came to."""

    SAME = "same"
    """Both sites held the same at one moment."""
    HOLDS = "holds"
    """This site held all that the peer did at one moment, and more."""
    DIFFERS = "differs"
    """The peer has what this site lacks; it is being fetched."""
    UNKNOWN = "unknown"
    """One of the two changed meanwhile, or work is left: nothing can be said."""
    UNSUPPORTED = "unsupported"
    """The peer is of a version that can't be compared with."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A comparison: when it ended (ms since the epoch, by this site's clock) and what it found.

    `revision` is of this site's KV and `peer_revision` of the peer's, each of the life named by its
    incarnation: what was compared was in force then.  `differing` counts names of which the peer
    knows more than this site; `live` and `tombstones` are this site's registers among those that
    both filters take.  `reason` says why nothing can be said, `same_ms` when both were found the
    same last (0: never).
    """

    result: Verdict
    ms: int
    revision: int = 0
    peer_revision: int = 0
    differing: int = 0
    live: int = 0
    tombstones: int = 0
    reason: str = ""
    same_ms: int = 0
    incarnation: str = ""
    peer_incarnation: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a scan of the peer has come: registers that are applied or parked, bytes of blobs.

    `items` is how many registers there are, None while nobody knows.  `bytes_to_go` are those of
    the manifests in work, which are not all that are to come.  `seconds_left` is by the speed of
    the last minute, None where that tells nothing.
    """

    items_done: int
    items: int | None
    bytes_done: int
    bytes_to_go: int
    seconds_left: int | None


@dataclass(frozen=True, slots=True)
class FollowRecord:
    """What a follower says of itself: revisions of its source, times in ms of the source's clock.

    `oldest_ms` is when the oldest change was written that is not applied; 0 if there is none.
    `stands`: the comparison found both sites the same, and the follower knows of nothing since.
    `bytes_to_go` are those still to come of the blobs that are being fetched, `seconds_left` until
    they are here by the speed of the last minute, None where nobody can tell.
    `unheard_since_ms` is since when a source can't be reached, as long as it was tried; 0 while it
    can.  `heard_ms` is when such a source was heard last by this follower; 0 if it never was.
    """

    state: str
    revision: int = 0
    head: int = 0
    parked: int = 0
    oldest_ms: int = 0
    last_error: str = ""
    ms: int = 0
    compared: Compared | None = None
    stands: bool = False
    progress: Progress | None = None
    unheard_since_ms: int = 0
    bytes_to_go: int = 0
    seconds_left: int | None = None
    heard_ms: int = 0

    @property
    def expected_s(self) -> int | None:
        """Seconds until all is here that is known of; None where nobody can tell."""
        return self.seconds_left if self.progress is None else self.progress.seconds_left


_VERDICTS: Final = frozenset(Verdict)


def encode_follow(record: FollowRecord) -> bytes:
    compared = record.compared
    return pb.FollowRecord(
        state=record.state,
        revision=record.revision,
        head=record.head,
        parked=record.parked,
        oldest_ms=record.oldest_ms,
        last_error=record.last_error,
        ms=record.ms,
        compared=None if compared is None else pb.Compared(**asdict(compared)),
        stands=record.stands,
        progress=None if record.progress is None else pb.Progress(**asdict(record.progress)),
        unheard_since_ms=record.unheard_since_ms,
        bytes_to_go=record.bytes_to_go,
        seconds_left=record.seconds_left,
        heard_ms=record.heard_ms,
    ).SerializeToString()


def decode_follow(value: bytes) -> FollowRecord:
    found = pb.FollowRecord.FromString(value)
    return FollowRecord(
        found.state,
        found.revision,
        found.head,
        found.parked,
        found.oldest_ms,
        found.last_error,
        found.ms,
        _compared(found.compared) if found.HasField("compared") else None,
        found.stands,
        _progress(found.progress) if found.HasField("progress") else None,
        found.unheard_since_ms,
        found.bytes_to_go,
        found.seconds_left if found.HasField("seconds_left") else None,
        found.heard_ms,
    )


def _compared(found: pb.Compared) -> Compared:
    return Compared(
        Verdict(found.result) if found.result in _VERDICTS else Verdict.UNKNOWN,
        found.ms,
        found.revision,
        found.peer_revision,
        found.differing,
        found.live,
        found.tombstones,
        found.reason,
        found.same_ms,
        found.incarnation,
        found.peer_incarnation,
    )


def _progress(found: pb.Progress) -> Progress:
    return Progress(
        found.items_done,
        found.items if found.HasField("items") else None,
        found.bytes_done,
        found.bytes_to_go,
        found.seconds_left if found.HasField("seconds_left") else None,
    )
