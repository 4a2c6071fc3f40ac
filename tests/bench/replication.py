"""How long a push takes to reach the other site: from its 201 here to a whole pull there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final

from tests.bench import client
from tests.bench.connection import Connection, UnexpectedAnswerError
from tests.bench.content import Image
from tests.sites import Site, ended

# How exact the figures are; asking more often would take the processor from those who are asked.
POLL_S: Final = 0.002
ARRIVAL_S: Final = 60.0
_REPOSITORIES: Final = 10


@dataclass(frozen=True, slots=True)
class Delays:
    """The delay of every image, in seconds, with this many pushed at a time."""

    clients: int
    seconds: tuple[float, ...]

    def percentile(self, number: int) -> float:
        """In seconds; number is 1 to 99."""
        return quantiles(self.seconds, n=100, method="inclusive")[number - 1]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sites that follow each other; `source` is pushed to and `destination` asked."""

    source: int
    destination: int


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """Two sites on this machine, each a gateway and a replicator."""
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    fra.follow(nyc)
    nyc.follow(fra)
    with ended(fra, nyc):
        asyncio.run(_start(fra, nyc))
        yield Pair(fra.port, nyc.port)


async def _start(*sites: Site) -> None:
    # All at once: a site is ready whether its peers are there or not.
    async with asyncio.TaskGroup() as tasks:
        for site in sites:
            _ = tasks.create_task(site.start())


def measure(
    sites: Pair,
    new_image: Callable[[], Image],
    *,
    clients: int,
    images: int,
    advance: Callable[[], None],
    arrival_s: float = ARRIVAL_S,
) -> Delays:
    """Push images, some at a time, and follow each to the other site.

    Raises:
        UnexpectedAnswerError: One did not come in time, or a tag came before what it needs.
    """

    def push(number: int) -> float:
        new = new_image()
        repository, tag = f"bench/app{number % _REPOSITORIES}", f"t{new.digest[-12:]}"
        with Connection(sites.source) as here, Connection(sites.destination) as there:
            client.push_image(here, repository, tag, new)
            began = time.monotonic()
            wait_for(there, repository, tag, new, arrival_s)
            delay = time.monotonic() - began
            client.verify_image(there, repository, tag, new)
        advance()
        return delay

    with ThreadPoolExecutor(clients) as threads:
        return Delays(clients, tuple(threads.map(push, range(images))))


def wait_for(there: Connection, repository: str, tag: str, new: Image, arrival_s: float) -> None:
    """Ask for a tag until it is there, and pull all of it then.

    Raises:
        UnexpectedAnswerError: It did not come in time, or before what it needs.
    """
    deadline = time.monotonic() + arrival_s
    target = f"/v2/{repository}/manifests/{tag}"
    while there.exchange("GET", target, expect=None, headers=client.ACCEPT).status != 200:
        if time.monotonic() > deadline:
            raise UnexpectedAnswerError(f"{target} was not replicated in {arrival_s:.0f} s")
        time.sleep(POLL_S)
    # The tag is there, so all of it must be: no second try.
    client.pull_image(there, repository, tag, new)
