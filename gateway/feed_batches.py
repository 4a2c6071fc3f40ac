"""Cut changes into batches that a message can hold, without reading a byte of any manifest.

Following, a batch ends where a revision ends, so that a receiver's cursor always names a moment of
the source; a scan has no such moments and is cut anywhere.  A body is sent along if it is small and
if the batch has room for it: leaving one out costs the receiver a round trip, nothing else.
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


def by_revision(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Changes in revision order as groups that may not be torn apart."""
    for _, group in groupby(changes, key=lambda change: change.revision):
        yield list(group)


def one_by_one(changes: Iterable[Change]) -> Iterator[list[Change]]:
    """Changes of a scan, in any order, as groups of one."""
    for change in changes:
        yield [change]


def batches(groups: Iterable[Sequence[Change]]) -> Iterator[list[Planned]]:
    """Whole groups, joined while they fit; a group that is too large for a batch has one alone."""
    batch: list[Planned] = []
    size = 0
    for group in groups:
        planned, length = _plan(group)
        if batch and (size + length > BATCH_BYTES or len(batch) + len(planned) > BATCH_CHANGES):
            yield batch
            batch, size = [], 0
        batch += planned
        size += length
    if batch:
        yield batch


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
    """A rough upper bound: names of at most 255, digests of 65, texts of some hundred bytes."""
    return 512 + 128 * len(change.register.ctx) + 512 * len(change.register.siblings)


def _body(change: Change) -> tuple[Digest | None, int]:
    shown = change.register.shown()
    if not isinstance(change.name, ManifestName) or shown is None or shown.size > BODY_BYTES:
        return None, 0
    return change.name.digest, shown.size
