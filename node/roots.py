"""Sums by which two sites compare what they hold, without telling it.

Every replicated register has a hash, of its name and of all that it says, its context and a
tombstone's too.  A site's roots are the sums of its hashes, apart for each of 256 buckets of names:
they depend on no order, so a site adds them up as it reads.  Equal states have equal roots, and
different ones equal roots by an accident of one in 2^128.  Whoever wants to could make two states
of one sum; between sites that trust each other nobody gains by that.

The hash is part of the protocol: what is added to a register may only be hashed where it is set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, TypeAlias

from node import keys
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.records import Pushed
from node.register import Register, taken

BUCKETS: Final = 256
HASH_BYTES: Final = 16

_MODULUS: Final = 1 << (8 * HASH_BYTES)
_JSON: Final = json.JSONEncoder(separators=(",", ":"))

Filters: TypeAlias = tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Roots:
    """The sum of each bucket, and how many registers are live and how many are tombstones."""

    sums: tuple[int, ...] = (0,) * BUCKETS
    live: int = 0
    tombstones: int = 0

    def differing(self, other: Roots) -> list[int]:
        """The buckets in which the two states are not the same."""
        return [n for n in range(BUCKETS) if self.sums[n] != other.sums[n]]

    def agrees(self, other: Roots, buckets: Iterable[int]) -> bool:
        """Whether the two states are the same in these buckets."""
        return all(self.sums[n] == other.sums[n] for n in buckets)

    @property
    def registers(self) -> int:
        """How many registers they are the sums of."""
        return self.live + self.tombstones


@dataclass(frozen=True, slots=True)
class Scanned:
    """Roots of one KV; if they are `exact`, of the state that was in force at the revision.

    Else something was written while they were added up, or could not be read.
    """

    roots: Roots
    revision: int
    exact: bool


class Sum:
    """Adds registers up."""

    def __init__(self) -> None:
        self._sums = [0] * BUCKETS
        self._live = 0
        self._tombstones = 0

    def add(self, name: Name, register: Register[Pushed]) -> None:
        """Add a register; each name once."""
        self.add_hashes({name: hash_of(name, register)})
        if register.live:
            self._live += 1
        else:
            self._tombstones += 1

    def add_hashes(self, hashes: Mapping[Name, int]) -> None:
        """Add the hashes of registers, of which it is not known whether they are live."""
        for name, hashed in hashes.items():
            bucket = bucket_of(name)
            self._sums[bucket] = (self._sums[bucket] + hashed) % _MODULUS

    @property
    def roots(self) -> Roots:
        """The sums of what was added."""
        return Roots(tuple(self._sums), self._live, self._tombstones)


def bucket_of(name: Name) -> int:
    """Which bucket a name is in."""
    return sha256(keys.register(name)).digest()[0]


def hash_of(name: Name, register: Register[Pushed]) -> int:
    """A number of 16 bytes that says what a register of this name holds.

    Text is canonical: lists in a fixed order, ASCII only, no spaces.
    """
    siblings = [
        [
            dot.actor,
            dot.n,
            value.ms,
            str(value.digest),
            value.media_type,
            value.size,
            value.op,
            str(value.subject or ""),
            value.artifact_type or "",
        ]
        for dot, value in sorted(register.siblings.items(), key=lambda item: item[0])
    ]
    told = [type(name).__name__[0], *map(str, name), sorted(register.ctx.items()), siblings]
    return int.from_bytes(sha256(_JSON.encode(told).encode()).digest()[:HASH_BYTES], "big")


def passes(name: Name, filters: Sequence[Filter]) -> bool:
    """Whether all filters take the name."""
    match name:
        case ManifestName(repository=repository):
            return all(wanted.takes(repository) for wanted in filters)
        case TagName(repository=repository, tag=tag):
            return all(wanted.takes(repository, tag) for wanted in filters)


def holds(mine: Register[Pushed], theirs: Register[Pushed], *, deletes: bool) -> bool:
    """Whether a register has nothing to take from a peer's, of which it may take no deletes."""
    return taken(mine, theirs, deletes=deletes) == mine
