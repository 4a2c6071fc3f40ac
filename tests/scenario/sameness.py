"""Mutants of the proof of sameness, and stories of sites that only seem to be the same (I20)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pytest

from node import roots, scans
from node.keys import Name
from node.kv import KV
from node.records import Pushed
from node.register import Register
from node.roots import Scanned, Sum
from node.scans import Scans
from tests.scenario.comparing import Comparison
from tests.scenario.site import SimSite
from tests.scenario.stories import Teller

Patch = pytest.MonkeyPatch


def compare(teller: Teller, site: SimSite, source: SimSite) -> None:
    """Let a site compare itself with a source."""
    world = teller.world
    comparison = Comparison(site, source, world, world.judge)
    world._replicate(site, "compare", source, comparison.compare())


# --- stories


def same_at_different_times() -> None:
    """B becomes what A was when A was scanned, and A has gone on by then: never were they equal."""
    for pauses in range(1, 20):
        teller = Teller()
        teller.push(teller.a, "c")
        with teller.meanwhile(1):
            teller.tell(teller.b, teller.a, "c")
        with teller.meanwhile(pauses):
            compare(teller, teller.a, teller.b)
        teller.push(teller.a, "d")
        teller.world.settle()


def same_though_something_is_parked() -> None:
    """What B could not take of A reaches it by C: the park is still to be gone through."""
    teller = Teller()
    teller.push(teller.a, "c")
    teller.world.broken = True
    teller.follow(teller.b, teller.a)
    teller.world.broken = False
    teller.follow(teller.c, teller.a)
    teller.follow(teller.b, teller.c)
    compare(teller, teller.b, teller.a)
    teller.world.settle()


def same_but_for_what_was_deleted() -> None:
    """A deletes what B has never had: B is to know of it, or a third site brings it there."""
    teller = Teller()
    teller.push(teller.a, "c", "t")
    teller.delete(teller.a, "c")
    compare(teller, teller.b, teller.a)
    compare(teller, teller.a, teller.b)
    teller.world.settle()


SAMENESS_STORIES: Final[Sequence[Callable[[], None]]] = (
    same_at_different_times,
    same_though_something_is_parked,
    same_but_for_what_was_deleted,
)


# --- mutants


def no_second_look(patch: Patch) -> None:
    """Whether anything was written here since the sums were made is not asked."""

    async def still(_self: Scans, scanned: Scanned) -> bool:
        return scanned.exact

    patch.setattr(Scans, "still", still)


def every_scan_is_exact(patch: Patch) -> None:
    """Nobody asks whether anything was written while a scan ran, or since."""

    async def untouched(_kv: KV, _after: int, _until: int) -> bool:
        return True

    patch.setattr(scans, "untouched", untouched)


def sums_without_contexts(patch: Patch) -> None:
    """Only what is shown is added up, not what was seen and dropped."""
    whole = roots.hash_of

    def hash_of(name: Name, register: Register[Pushed]) -> int:
        return whole(name, Register({}, register.siblings))

    for module in (roots, scans):
        patch.setattr(module, "hash_of", hash_of)


def sums_without_tombstones(patch: Patch) -> None:
    """What was deleted is not added up."""
    whole = Sum.add

    def add(self: Sum, name: Name, register: Register[Pushed]) -> None:
        if register.live:
            whole(self, name, register)

    patch.setattr(Sum, "add", add)


def parks_do_not_count(patch: Patch) -> None:
    """Sites are the same whatever is parked."""
    patch.setattr(Comparison, "doubt", lambda _self: "")


SAMENESS_MUTANTS: Final[Sequence[Callable[[Patch], None]]] = (
    no_second_look,
    every_scan_is_exact,
    sums_without_contexts,
    sums_without_tombstones,
    parks_do_not_count,
)
