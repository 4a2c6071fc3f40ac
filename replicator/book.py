"""What a follower knows of its source: how far it is applied, and what is left out. Pure.

The **cursor** is the revision up to which every change is applied or parked; it moves by whole
batches and never goes back in one life of the source.  A **park** is a repository that is left out:
from the first revision that was, to the last.  Parks are written down together with the cursor that
passes them, so what is written is true at every moment (RELIABILITY 6.3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from node.records import Cursor, Parked
from node.reference import Repository

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 300.0
_JITTER: Final = 0.2


@dataclass(slots=True)
class Entered:
    """A batch in the book; `revision` is None where it does not end at a moment of the source."""

    revision: int | None
    waiting: int


class Ledger:
    """Batches in the order in which they came, and the cursor that follows from them."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        # Where to go on asking: everything up to here is in the book.
        self.taken = cursor.revision
        # The last revision of which there was anything to apply, that no scan told.
        self.newest = cursor.revision
        self._open: deque[Entered] = deque()

    def enter(self, revision: int, changes: int, *, scanning: bool, known: int = 0) -> Entered:
        """Take a batch in, with so many changes that are neither applied nor parked.

        `known` came with them, and were applied before.
        """
        entered = Entered(None if scanning else revision, changes)
        self._open.append(entered)
        if not scanning:
            self.taken = max(self.taken, revision)
            self.newest = max(self.newest, revision if changes or known else 0)
        self._move()
        return entered

    def done(self, entered: Entered) -> None:
        """One of a batch's changes is applied or parked."""
        entered.waiting -= 1
        self._move()

    def _move(self) -> None:
        while self._open and not self._open[0].waiting:
            revision = self._open.popleft().revision
            if revision is not None and revision > self.cursor.revision:
                self.cursor = replace(self.cursor, revision=revision)


@dataclass(frozen=True, slots=True)
class Park:
    """A repository that is left out, and when (by a monotonic clock) to try it again.

    `failures` are those since there was last hope, on which the pauses depend.
    """

    record: Parked
    due: float
    failures: int


class Parks:
    """The repositories that are left out.

    `now` is monotonic, in seconds; `now_ms` the wall clock; `chance` from 0 to 1 spreads retries.
    """

    def __init__(
        self,
        now: Callable[[], float],
        now_ms: Callable[[], int],
        chance: Callable[[], float],
        standing: Mapping[Repository, Parked],
    ) -> None:
        self._now = now
        self._now_ms = now_ms
        self._chance = chance
        self._parks = {name: Park(record, now(), 0) for name, record in standing.items()}
        self._unwritten: dict[Repository, None] = {}

    def __len__(self) -> int:
        return len(self._parks)

    def get(self, repository: Repository) -> Park | None:
        """The repository's park, if it is left out."""
        return self._parks.get(repository)

    @property
    def repositories(self) -> list[Repository]:
        """Those that are left out."""
        return list(self._parks)

    @property
    def records(self) -> list[tuple[Repository, Parked]]:
        """Those that are left out, and how that stands; the longest first."""
        parks = [(name, park.record) for name, park in self._parks.items()]
        return sorted(parks, key=lambda found: found[1].since_ms)

    @property
    def first(self) -> int | None:
        """The oldest revision that is left out."""
        return min((park.record.first for park in self._parks.values()), default=None)

    @property
    def since_ms(self) -> int | None:
        """Since when the longest is left out."""
        return min((park.record.since_ms for park in self._parks.values()), default=None)

    @property
    def last_failure(self) -> str | None:
        """Why the one that was left out last is, of those of which an attempt has failed."""
        failed = [park.record for park in self._parks.values() if park.record.attempts]
        return max(failed, key=lambda record: record.since_ms).reason if failed else None

    @property
    def at_work(self) -> int:
        """How much a scan told that is left out although nothing has failed so far."""
        records = [park.record for park in self._parks.values()]
        return sum(record.scanned for record in records if not record.attempts)

    def park(
        self,
        repository: Repository,
        first: int,
        last: int,
        reason: str,
        *,
        at_work: bool = False,
        scanned: int = 0,
    ) -> None:
        """Leave a repository out; it is due after a pause. `at_work`: nothing has failed so far.

        A scan has told so much of it.
        """
        attempts = 0 if at_work else 1
        record = Parked(first, last, attempts, reason, self._now_ms(), scanned=scanned)
        self._leave_out(repository, record, 1)

    def extend(self, repository: Repository, revision: int, *, scanned: int = 0) -> None:
        """Another change of a repository that is left out already."""
        park = self._parks[repository]
        record = replace(
            park.record,
            first=min(park.record.first, revision),
            last=max(park.record.last, revision),
            scanned=park.record.scanned + scanned,
        )
        self._set(repository, replace(park, record=record))

    def landed(self, repository: Repository) -> None:
        """Some of it is applied; of what is at work something stays, until it has caught up."""
        if (park := self._parks.get(repository)) and park.record.scanned > 1:
            record = replace(park.record, scanned=park.record.scanned - 1)
            # Not worth a write: whoever goes on from an older number has it count down again.
            self._parks[repository] = replace(park, record=record)

    def begin_scan(self) -> None:
        """All will be told, so nothing of it has been so far."""
        for repository, park in self._parks.items():
            self._set(repository, replace(park, record=replace(park.record, scanned=0)))

    def failed(self, repository: Repository, reason: str) -> None:
        """It was tried again in vain; the next pause is longer."""
        if repository not in self._parks:
            return
        park = self._parks[repository]
        record = replace(park.record, attempts=park.record.attempts + 1, reason=reason)
        self._leave_out(repository, record, park.failures + 1)

    def caught_up(self, repository: Repository, as_of: int) -> None:
        """All that the source had at a revision is applied; what came later may not be."""
        record = self._parks[repository].record
        if record.last <= as_of:
            del self._parks[repository]
            self._unwritten[repository] = None
        else:
            now_ms = self._now_ms()
            record = replace(record, first=as_of + 1, attempts=0, next_ms=now_ms, scanned=0)
            self._set(repository, Park(record, self._now(), 0))

    def hurry(self, repository: Repository) -> None:
        """It is due now, if it is left out: what it waited for may be here, or be so soon."""
        if park := self._parks.get(repository):
            due = min(park.due, self._now())
            self._parks[repository] = replace(park, due=due, failures=0)

    def due_in(self, repository: Repository) -> float:
        """Seconds until it is to be tried again; 0 or less: now."""
        park = self._parks.get(repository)
        return park.due - self._now() if park else 0.0

    def renumber(self) -> None:
        """The source is told from its beginning, maybe of a new life: so all is left out."""
        for repository, park in self._parks.items():
            self._set(repository, replace(park, record=replace(park.record, first=0, last=0)))

    def take_unwritten(self) -> dict[Repository, Parked | None]:
        """What changed since this was last asked; None for a park that is no more."""
        changed = {name: self._parks.get(name) for name in self._unwritten}
        self._unwritten.clear()
        return {name: park.record if park else None for name, park in changed.items()}

    def not_written(self, repositories: Iterable[Repository]) -> None:
        """What was taken could not be written down."""
        self._unwritten.update(dict.fromkeys(repositories))

    @property
    def changed(self) -> bool:
        """Whether anything is to be written down."""
        return bool(self._unwritten)

    def _leave_out(self, repository: Repository, record: Parked, failures: int) -> None:
        pause_s = self._pause_s(failures)
        record = replace(record, next_ms=self._now_ms() + int(pause_s * 1000))
        self._set(repository, Park(record, self._now() + pause_s, failures))

    def _set(self, repository: Repository, park: Park) -> None:
        self._parks[repository] = park
        self._unwritten[repository] = None

    def _pause_s(self, failures: int) -> float:
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
        return pause_s * (1 + _JITTER * (2 * self._chance() - 1))
