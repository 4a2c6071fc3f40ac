"""How the sites of a world come to rest: they exchange until nothing moves, and are compared."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from node import keys
from tests.scenario.checker import Violation
from tests.scenario.comparing import Comparison
from tests.scenario.follower import Follower
from tests.scenario.judge import Judge
from tests.scenario.known import following, newest
from tests.scenario.oracle import Intent
from tests.scenario.site import Network, SimSite

_ROUNDS = 30


class Resting(Network, Protocol):
    """A world whose faults are over, and in which nothing is in work."""

    sites: list[SimSite]
    judge: Judge

    def finish(self, site: SimSite, intent: Intent, work: Coroutine[Any, Any, None]) -> None:
        """Do something to its end."""

    def peers(self, site: SimSite) -> Sequence[SimSite]:
        """The other sites."""


def come_to_rest(world: Resting) -> None:
    """Exchange until nothing moves.

    Raises:
        Violation: They never come to rest.
    """
    for _ in range(_ROUNDS):
        if not _exchange(world):
            return
    raise Violation("the sites never come to rest")


def prove(world: Resting) -> None:
    """Every two sites are found to be what they are."""
    for site in world.sites:
        for source in world.peers(site):
            proof = Comparison(site, source, world, world.judge).prove()
            world.finish(site, following("prove", site, source), proof)


def _exchange(world: Resting) -> bool:
    """One round of everything; whether there was anything to exchange."""
    before = [newest(site) for site in world.sites]
    behind = False
    for site in world.sites:
        world.finish(site, Intent("tidy"), site.tidy())
        for source in world.peers(site):
            follower = Follower(site, source, world)
            intent = following("settle", site, source)
            if world.judge.cursor(site, source) < newest(source):
                world.finish(site, intent, follower.follow())
            for entry in site.kv._stored.within(*keys.all_parked(source.name)):
                behind = True
                repository = keys.parked_repository(entry.key)
                world.finish(site, intent, follower.retry(repository))
            behind = behind or world.judge.cursor(site, source) < newest(source)
    return behind or before != [newest(site) for site in world.sites]
