"""Cut changes into batches that a message can hold, without reading a byte of any manifest.

Following, a batch says up to which revision it completes what was told: a receiver's cursor always
names a moment of the source.  A revision is kept in one batch if it fits; of one that does not, all
parts but the last say the revision before it, so the cursor passes it with its last part only.  A
scan has no such moments and is cut anywhere.  A body is sent along if it is small and if the batch
has room for it: leaving one out costs the receiver a round trip, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from node.change import Change
from node.digest import Digest
from node.keys import ManifestName
from node.wire.feed_codec import BATCH_BYTES, BATCH_CHANGES, BODY_BYTES


class Planned(NamedTuple):
    """A change to send, and the body to read for it first."""

    change: Change
    body: Digest | None


class Group(NamedTuple):
    """Changes that come in one batch, and the revision that is told whole with them."""

    changes: Sequence[Change]
    revision: int


class Cut(NamedTuple):
    """What one batch holds, and the revision that is told whole with it."""

    planned: Sequence[Planned]
    revision: int


def by_revision(changes: Iterable[Change], after: int) -> Iterator[Group]:
    """Changes in revision order, of which everything up to `after` has been told."""
    for revision, group in groupby(changes, key=lambda change: change.revision):
        *unfinished, last = _parts(group)
        for part in unfinished:
            yield Group(part, after)
        yield Group(last, revision)
        after = revision


def one_by_one(changes: Iterable[Change], revision: int) -> Iterator[Group]:
    """Changes of a scan, in any order; the revision is the scan's."""
    for change in changes:
        yield Group([change], revision)


def batches(groups: Iterable[Group]) -> Iterator[Cut]:
    """Groups, joined while they fit; one that is too large for a batch has one alone."""
    batch: list[Planned] = []
    size = whole = 0
    for group in groups:
        planned, length = _plan(group.changes)
        if batch and (size + length > BATCH_BYTES or len(batch) + len(planned) > BATCH_CHANGES):
            yield Cut(batch, whole)
            batch, size = [], 0
        batch += planned
        size += length
        whole = group.revision
    if batch:
        yield Cut(batch, whole)


def plan(changes: Sequence[Change]) -> list[Planned]:
    """All of the changes in one message, with the bodies that it has room for."""
    return _plan(changes)[0]


def _parts(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """The changes, in as few parts as fit into a batch each; a change is never torn apart."""
    part: list[Change] = []
    size = 0
    for change in changes:
        length = _register_bytes(change)
        if part and (size + length > BATCH_BYTES or len(part) == BATCH_CHANGES):
            yield part
            part, size = [], 0
        part.append(change)
        size += length
    if part:
        yield part


def _plan(group: Sequence[Change]) -> tuple[list[Planned], int]:
    size = sum(_register_bytes(change) for change in group)
    planned = []
    for change in group:
        body, length = _body(change)
        if body is not None and size + length <= BATCH_BYTES:
            size += length
        else:
            body = None
        planned.append(Planned(change, body))
    return planned, size


def _register_bytes(change: Change) -> int:
    """An upper bound: a name has at most 255 and a tag 128, a packed digest 65, a number 10."""
    register = change.register
    context = sum(32 + _bytes(actor) for actor in register.ctx)
    siblings = sum(
        256 + _bytes(dot.actor, value.media_type, value.op, value.artifact_type or "")
        for dot, value in register.siblings.items()
    )
    return 512 + context + siblings


def _bytes(*texts: str) -> int:
    return sum(len(text) if text.isascii() else 4 * len(text) for text in texts)


def _body(change: Change) -> tuple[Digest | None, int]:
    shown = change.register.shown()
    if not isinstance(change.name, ManifestName) or shown is None or shown.size > BODY_BYTES:
        return None, 0
    return change.name.digest, shown.size
