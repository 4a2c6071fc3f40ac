"""Whether what clients saw of a tag is what one register would have shown them (I3, F21).

The history is gone through in order of time, with all the worlds that are possible: what the tag
shows, and which of the operations under way have taken effect.  When an operation ends, worlds in
which it has not are left behind; when none remains, no register could have given these answers.
One whose answer was lost never ends: it takes effect once, at any time after it began, or never.

Every push has a digest of its own, so a lost push is either seen, and then it took effect before
that, or never seen, and then any other such is as good.  Of two worlds that differ only in
what they have used up of lost operations, the one that has used less can do all that the other can.
So for a given number of clients the work grows as a polynomial of the history's length.

A history that is rejected is wrong.  One that is accepted is right if its conditions name only what
somebody was shown, or was told to have pushed.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

# Beside digests: what a tag without a manifest shows; no condition; a push that nobody ever saw.
NOTHING: Final = "nothing"
ANYTHING: Final = "anything"
_UNSEEN: Final = "unseen"


class Kind(StrEnum):
    """What is asked for."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"


class Outcome(StrEnum):
    """How an operation ended, as far as its client can know."""

    OK = "ok"
    REFUSED = "refused"  # by what the tag showed: its condition failed, or nothing was to delete
    UNKNOWN = "unknown"  # no answer came, or one that leaves it open
    UNSENT = "unsent"  # nobody was there to take it


@dataclass(slots=True, eq=False)
class Operation:
    """One operation on one tag; `digest` is what was pushed, or what was read.

    It goes ahead only if the tag shows what it `expects`.  Times are of the monotonic clock; what
    is Unknown may take effect after `ended_at`.
    """

    tag: str
    kind: Kind
    digest: str = NOTHING
    expects: str = ANYTHING
    outcome: Outcome = Outcome.UNKNOWN
    began_at: float = 0.0
    ended_at: float = math.inf
    client: str = ""


class NotLinear(AssertionError):
    """No register gives these answers."""

    def __init__(self, operation: Operation, could_show: Iterable[str]) -> None:
        super().__init__(f"{operation} where the tag could show only {sorted(could_show)}")
        self.operation = operation


def write(history: Iterable[Operation], path: Path) -> None:
    """Keep a history for whoever has to find out what happened, one line of JSON an operation."""
    path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in history))


def check(history: Iterable[Operation]) -> None:
    """See that each tag was one register.

    Raises:
        NotLinear: One was not; with the first operation that no register can have answered so.
    """
    tags: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        tags[operation.tag].append(operation)
    for operations in tags.values():
        _check_tag(_telling(operations))


def _telling(history: Iterable[Operation]) -> list[Operation]:
    """Those that tell something: lost reads don't, nor what was never sent."""
    nothing = {(kind, Outcome.UNSENT) for kind in Kind} | {(Kind.READ, Outcome.UNKNOWN)}
    return [one for one in history if (one.kind, one.outcome) not in nothing]


class _Deed(NamedTuple):
    """What an operation does, or may do."""

    kind: Kind
    digest: str
    expects: str
    refused: bool = False

    def after(self, shown: str) -> str | None:
        """What a tag shows after this, of one that shows so; None if it can't be done then."""
        if self.refused:
            return None if self._allowed(shown) else shown
        if not self._allowed(shown):
            return None
        return NOTHING if self.kind is Kind.DELETE else self.digest

    def _allowed(self, shown: str) -> bool:
        match self.kind:
            case Kind.READ:
                return shown == self.digest
            case Kind.DELETE:
                return shown != NOTHING and self.expects in (ANYTHING, shown)
            case Kind.WRITE:
                return self.expects in (ANYTHING, shown)


_Spent: TypeAlias = frozenset[tuple[_Deed, int]]


class _World(NamedTuple):
    """What may be: `done` are operations under way, `spent` lost ones, by deed and number."""

    shown: str
    done: frozenset[int] = frozenset()
    spent: _Spent = frozenset()


class _Event(NamedTuple):
    """A beginning or an end; of those at one moment beginnings come first."""

    at: float
    ends: bool
    number: int


def _check_tag(history: Sequence[Operation]) -> None:
    ends = _ends(history)
    deeds = _deeds(history, ends)
    worlds = _Worlds()
    for _, is_end, number in _events(history, ends):
        if not is_end:
            worlds.begin(number, deeds[number], is_lost=math.isinf(ends[number]))
        elif could_show := worlds.end(number):
            raise NotLinear(history[number], could_show)


def _deeds(history: Sequence[Operation], ends: Sequence[float]) -> list[_Deed]:
    """What each does; all that lost operations say of a push that nobody saw is the same."""
    unseen = {
        one.digest
        for one, end in zip(history, ends, strict=True)
        if one.kind is Kind.WRITE and math.isinf(end)
    }
    return [
        _Deed(one.kind, one.digest, one.expects, one.outcome is Outcome.REFUSED)
        if one.outcome is not Outcome.UNKNOWN
        else _Deed(
            one.kind,
            _UNSEEN if one.digest in unseen else one.digest,
            _UNSEEN if one.expects in unseen else one.expects,
        )
        for one in history
    ]


def _ends(history: Sequence[Operation]) -> list[float]:
    """When each had taken effect at the latest; a lost push, when the first who saw it ended."""
    seen_at: defaultdict[str, float] = defaultdict(lambda: math.inf)
    for one in history:
        if one.outcome is Outcome.OK:
            seen = one.digest if one.kind is Kind.READ else one.expects
            seen_at[seen] = min(seen_at[seen], one.ended_at)
    return [
        one.ended_at
        if one.outcome is not Outcome.UNKNOWN
        else seen_at[one.digest]
        if one.kind is Kind.WRITE
        else math.inf
        for one in history
    ]


def _events(history: Sequence[Operation], ends: Sequence[float]) -> Iterator[_Event]:
    events = [_Event(one.began_at, False, number) for number, one in enumerate(history)]
    events += [_Event(at, True, number) for number, at in enumerate(ends) if not math.isinf(at)]
    return iter(sorted(events))


class _Worlds:
    """All that may be at one moment of a tag's history."""

    def __init__(self) -> None:
        self._worlds = [_World(NOTHING)]
        self._running: dict[int, _Deed] = {}
        self._lost: Counter[_Deed] = Counter()

    def begin(self, number: int, deed: _Deed, *, is_lost: bool) -> None:
        """From now on it may take effect."""
        if is_lost:
            self._lost[deed] += 1
        else:
            self._running[number] = deed

    def end(self, number: int) -> set[str]:
        """It has taken effect; if it can't have, what the tag could show instead, else nothing."""
        kept = _Kept()
        todo = deque(self._worlds)
        while todo:
            world = todo.popleft()
            if kept.add(world) and number not in world.done:
                todo.extend(self._next(world))
        self._worlds = [
            world._replace(done=world.done - {number}) for world in kept if number in world.done
        ]
        self._running.pop(number, None)
        return set() if self._worlds else {world.shown for world in kept}

    def _next(self, world: _World) -> Iterator[_World]:
        """What may be after one more operation has taken effect."""
        for number, deed in self._running.items():
            if number not in world.done and (shown := deed.after(world.shown)) is not None:
                yield world._replace(shown=shown, done=world.done | {number})
        for deed, begun in self._lost.items():
            used = sum(one == deed for one, _ in world.spent)
            if used < begun and (shown := deed.after(world.shown)) is not None:
                # What waits for one digest is used up by itself: the digest never comes back.
                may_recur = deed.expects in (ANYTHING, NOTHING, _UNSEEN)
                more = {(deed, used)} if may_recur else set()
                yield world._replace(shown=shown, spent=world.spent | more)


class _Kept:
    """Worlds none of which can do all that another can."""

    def __init__(self) -> None:
        self._spent: defaultdict[tuple[str, frozenset[int]], list[_Spent]] = defaultdict(list)

    def add(self, world: _World) -> bool:
        """Keep it, unless one that was kept has used up no more."""
        kept = self._spent[world.shown, world.done]
        if any(spent <= world.spent for spent in kept):
            return False
        kept[:] = [spent for spent in kept if not world.spent <= spent]
        kept.append(world.spent)
        return True

    def __iter__(self) -> Iterator[_World]:
        for (shown, done), kept in self._spent.items():
            yield from (_World(shown, done, spent) for spent in kept)
