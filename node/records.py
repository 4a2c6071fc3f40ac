"""The values behind the keys: what one KV entry says, as plain frozen data.

How they are written down is node/wire/codec.py's; under which key, node/keys.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from node.blobs import Generation, Piece
from node.digest import Digest
from node.globs import Filter
from node.reference import Repository, Tag


@dataclass(frozen=True, slots=True)
class Pushed:
    """One push, as a sibling of a tag or of a manifest: what was pushed, when, by which operation.

    `ms` is the pusher's clock (milliseconds since the epoch) raised above all that it replaced.
    Subject and artifact type are a manifest's only.
    """

    ms: int
    digest: Digest
    media_type: str
    size: int
    op: str
    subject: Digest | None = None
    artifact_type: str | None = None


@dataclass(frozen=True, slots=True)
class BlobRecord:
    """The one record of a blob: which copy is it, how long; quarantined copies are not served."""

    generation: Generation
    size: int
    quarantined: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Keeps an unreferenced blob of a repository until it expires; a hidden one shows nothing."""

    expires_ms: int
    hidden: bool = False


@dataclass(frozen=True, slots=True)
class UploadSession:
    """A resumable upload: the pieces it has; `target` is set where a replicator fetches."""

    repository: Repository
    pieces: tuple[Piece, ...]
    expires_ms: int
    target: Digest | None = None

    @property
    def offset(self) -> int:
        """The next byte."""
        return sum(piece.length for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Stage:
    """A manifest on its way in several transactions (RELIABILITY 5.4).

    Each taking of a stage has an owner of its own; `targets` is all that may be referred to by now.
    """

    owner: str
    ms: int
    targets: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Referrer:
    """What a listing of referrers says about one manifest that has a subject."""

    media_type: str
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


# A manifest may have megabytes of annotations, and the catalog is held in memory.
TITLE_CHARS: Final = 100
DESCRIPTION_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """What a search finds a repository by, beside its name."""

    title: str = ""
    description: str = ""

    @classmethod
    def of(cls, title: str, description: str) -> RepositoryRecord:
        """What is kept of an image's own words: their beginning."""
        return cls(title[:TITLE_CHARS], description[:DESCRIPTION_CHARS])


class Action(StrEnum):
    """What an event tells."""

    PUSH = "push"
    DELETE = "delete"
    REPLICATED = "replicated"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that became visible, kept for webhooks."""

    action: Action
    repository: Repository
    digest: Digest
    media_type: str
    size: int
    ms: int
    tag: Tag | None = None
    actor: str = ""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a source's life (incarnation) has been applied or parked here.

    `filters` is the fingerprint of what let its changes through, at both sites: a cursor has passed
    all that others would have let through.
    """

    incarnation: str
    revision: int
    filters: str = ""


@dataclass(frozen=True, slots=True)
class Parked:
    """A repository of a source that is behind: first and last revision left out, and why.

    Since when, and when it is tried again, are in ms by this site's clock.  `scanned` is how many
    tags and manifests of it, which a scan told, are at work: the scan is not over before they are.
    """

    first: int
    last: int
    attempts: int
    reason: str
    since_ms: int
    next_ms: int = 0
    scanned: int = 0


@dataclass(frozen=True, slots=True)
class ParkedThere:
    """A repository of a source as whoever follows it tells it of a park: `Parked` by its clock."""

    repository: Repository
    first: int
    attempts: int
    reason: str
    since_ms: int
    next_ms: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a follower tells its source: how far that life of it is applied, and what is not.

    `revision` stays below everything that is parked, `cursor` does not; `life` is the follower's
    own incarnation.  Of `parked_count` repositories `parked` has those that are so the longest.
    `bytes_to_go` are those of the blobs that it fetches, `seconds_left` until all is there that it
    knows of; None where it can't say.
    """

    incarnation: str
    revision: int
    life: str = ""
    state: str = ""
    cursor: int = 0
    parked: tuple[ParkedThere, ...] = ()
    parked_count: int = 0
    bytes_to_go: int | None = None
    seconds_left: int | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """What a peer reported last, and when that was written down (ms).

    It holds for what the peer asked for (`theirs`) and this site let through (the fingerprint
    `ours`) then.  `stream` is on which it was said; empty once that is over.
    """

    report: Report
    ms: int
    theirs: Filter = field(default_factory=Filter)
    ours: str = ""
    stream: str = ""


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """Which site this is, in which life."""

    name: str
    incarnation: str

    @property
    def actor(self) -> str:
        """Who writes this site's dots."""
        return f"{self.name}#{self.incarnation}"


def site_of(actor: str) -> str:
    """The name of the site whose dots these are."""
    return actor.partition("#")[0]
