"""What waits in the lanes of a source, and what can be told of the others meanwhile. Pure.

The cursor moves by whole batches, so one large image holds it for the ten seconds after which it is
parked.  Who waits for a small one behind it, at the source, need not: what is applied is applied,
and a report names the few repositories that are at work as it names parked ones.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from node.change import Change
from node.reference import Repository
from replicator.ahead import Preparing
from replicator.book import Entered, Ledger

# Most work is done sooner, and each report is a write at the source.
PATIENCE_S: Final = 2.0


@dataclass(slots=True)
class Waiting:
    """A change in its lane; it is at work `since` then, by a monotonic clock.

    `written_ms` is when the oldest of its values was written, in ms by its writer's clock, if any.
    """

    change: Change
    entered: Entered
    counts: bool  # as what a scan is not over without
    preparing: Preparing = None
    since: float = math.inf
    written_ms: int | None = field(init=False)

    def __post_init__(self) -> None:
        written = (value.ms for value in self.change.register.siblings.values())
        self.written_ms = min(written, default=None)

    @property
    def is_scanned(self) -> bool:
        """Whether a scan told it, new or not."""
        return self.entered.revision is None


@dataclass(frozen=True, slots=True)
class Told:
    """All of the source up to `revision` is applied or parked, but what `lacking` lack.

    These are repositories at work, each with the first revision that it lacks.
    """

    revision: int
    lacking: Mapping[Repository, int]


def told(
    lanes: Mapping[Repository, Collection[Waiting]], ledger: Ledger, now: float, most: int
) -> Told:
    """What can be told of a source beyond its cursor, by naming so many repositories at most.

    Those are named that have been at work for two seconds; the others it stays below.
    """
    # Not the source's own writes, such as that of an ack: else each would be worth another.
    revision, slow = ledger.newest, dict[Repository, int]()
    for repository, lane in lanes.items():
        if any(waiting.is_scanned for waiting in lane):
            return Told(ledger.cursor.revision, {})  # revisions say nothing before a scan's end
        first = min((waiting.change.revision for waiting in lane), default=None)
        if first is None:
            continue
        if len(slow) < most and now - min(one.since for one in lane) >= PATIENCE_S:
            slow[repository] = first
        else:
            revision = min(revision, first - 1)
    if revision <= ledger.cursor.revision:
        return Told(ledger.cursor.revision, {})
    return Told(revision, {name: first for name, first in slow.items() if first <= revision})
