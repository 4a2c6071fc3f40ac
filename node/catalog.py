"""The repositories of a site as a search sees them: kept in byte order, matched in memory; pure.

A term matches a repository whose name holds it, or whose title or description do (those that
`RepositoryRecord` keeps); case does not count.  Better matches come first (`Rank`), equally good
ones in byte order of their names.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from enum import IntEnum
from operator import itemgetter
from typing import Final, NamedTuple

from node.records import RepositoryRecord
from node.reference import Repository

_NAME: Final = itemgetter(0)


class Rank(IntEnum):
    """How well a term matches, the best first."""

    EXACT = 0
    """It is the name."""
    BEGINS = 1
    """The name's last component begins with it; every name does with an empty one."""
    HOLDS = 2
    """It is somewhere in the name."""
    SAYS = 3
    """It is in the title or the description."""


class Listed(NamedTuple):
    """One repository; `text` is what else it is found by, without case."""

    name: Repository
    description: str
    text: str


class Catalog:
    """Repositories in byte order of their names."""

    def __init__(self) -> None:
        self._rows: list[Listed] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._rows)

    def put(self, name: Repository, record: RepositoryRecord) -> None:
        """List a repository, in place of what was listed under its name."""
        row = Listed(name, record.description or record.title, _text(record))
        at = self._at(name)
        if self._is(name, at):
            self._rows[at] = row
        else:
            self._rows.insert(at, row)

    def drop(self, name: Repository) -> None:
        """Leave a repository out; one that is not listed is no error."""
        at = self._at(name)
        if self._is(name, at):
            del self._rows[at]

    def rows(self) -> list[Listed]:
        """All of them at this moment, in order; what changes later does not change the list."""
        return self._rows.copy()

    def _at(self, name: Repository) -> int:
        return bisect_left(self._rows, name, key=_NAME)

    def _is(self, name: Repository, at: int) -> bool:
        return at < len(self._rows) and self._rows[at].name == name


class Matches:
    """The repositories that match a term, best first."""

    def __init__(self, term: str) -> None:
        self._term = term.strip().casefold()
        self._found: dict[Rank, list[Listed]] = {rank: [] for rank in Rank}

    def __len__(self) -> int:
        """How many have matched so far."""
        return sum(map(len, self._found.values()))

    def look(self, rows: Iterable[Listed]) -> None:
        """Take those that match; to be given all, part by part, in their order."""
        term = self._term
        # Nearly all rows end here, so it is a comprehension and no call.
        for row in [row for row in rows if term in row.name or term in row.text]:
            self._found[_rank(row, term)].append(row)

    def page(self, first: int, count: int) -> list[Listed]:
        """At most `count` of them from a position on; the best is at 0."""
        shown: list[Listed] = []
        for found in self._found.values():
            shown += found[first : first + count - len(shown)]
            first = max(0, first - len(found))
        return shown


def _rank(row: Listed, term: str) -> Rank:
    if row.name == term:
        return Rank.EXACT
    if row.name.rpartition("/")[2].startswith(term):
        return Rank.BEGINS
    return Rank.HOLDS if term in row.name else Rank.SAYS


def _text(record: RepositoryRecord) -> str:
    # A line break between the two: no term of one line matches over it.
    return f"{record.title}\n{record.description}".strip().casefold()
