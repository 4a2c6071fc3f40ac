"""The values behind the keys: what one KV entry says, as plain frozen data.

How they are written down is node/wire/codec.py's; under which key, node/keys.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from node.blobs import Generation, Piece
from node.digest import Digest
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
class Referrer:
    """What a listing of referrers says about one manifest that has a subject."""

    media_type: str
    size: int
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RepositoryRecord:
    """What a search finds a repository by."""

    title: str = ""
    description: str = ""


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
    """A repository of a source that is behind: first and last revision left out, and why."""

    first: int
    last: int
    attempts: int
    reason: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Ack:
    """What a peer says it has applied of this site, and when it said so."""

    incarnation: str
    revision: int
    ms: int


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """Which site this is, in which life."""

    name: str
    incarnation: str

    @property
    def actor(self) -> str:
        """Who writes this site's dots."""
        return f"{self.name}#{self.incarnation}"
