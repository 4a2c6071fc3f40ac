"""F1: processes of two sites are killed while images are pushed at both and go both ways.

ENTREPOT_SEED replays a run's choices: which process is killed when, and what is pushed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.faults.history import History, check_converged, check_durable
from tests.faults.pusher import REPOSITORIES, Puller, Pusher
from tests.faults.registry import Registry
from tests.faults.stopped import check, entries, open_uploads
from tests.sites import PROGRAMS, Site, ended
from tests.waiting import eventually

PUSHERS: Final = 2
PUSHES_BETWEEN: Final = 10
SETTLED_S: Final = 240.0
# What a replicator brings at a time: the blobs of `blobs_in_flight`, a body for each repository.
_IN_WORK: Final = 4 + len(REPOSITORIES)


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_fifteen_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    """P1, P3, P5: what was acknowledged is at both sites, and what is visible is always whole."""
    await _run(tmp_path, seed, kills=15)


@pytest.mark.torture
async def test_two_hundred_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    """P1, P3, P5, for longer."""
    await _run(tmp_path, seed, kills=200)


async def _run(folder: Path, seed: int, kills: int) -> None:
    chance = random.Random(seed)
    history = History()
    async with _two_sites(folder) as (sites, registries):
        try:
            await _load(chance, history, sites, registries, kills)
            await _settled(sites)
            for registry in registries:
                await check_durable(history, registry)
            await check_converged(history, *registries)
        finally:
            history.write(folder / "history.jsonl")
            for site in sites:
                site.show_logs()
        await asyncio.gather(*(site.stop_all() for site in sites))
        assert len(history.acknowledged) > kills, "too little was pushed to show anything"
        for site in sites:
            check(site)
            left = open_uploads(entries(site))
            assert len(left) <= history.left_open(site.name, _IN_WORK), left


@asynccontextmanager
async def _two_sites(folder: Path) -> AsyncIterator[tuple[list[Site], list[Registry]]]:
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    fra.follow(nyc)
    nyc.follow(fra)
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        await asyncio.gather(fra.start(), nyc.start())
        registries = [await stack.enter_async_context(Registry.at(site.url)) for site in (fra, nyc)]
        yield [fra, nyc], registries


async def _load(
    chance: random.Random,
    history: History,
    sites: list[Site],
    registries: list[Registry],
    kills: int,
) -> None:
    """Push and pull at both sites while processes are killed; all permits are used at the end."""
    permits = asyncio.Semaphore(0)
    pushers = [
        Pusher(
            f"{site.name}{n}",
            site.name,
            at,
            history=history,
            permits=permits,
            chance=random.Random(chance.random()),
        )
        for site, at in zip(sites, registries, strict=True)
        for n in range(PUSHERS)
    ]
    try:
        async with asyncio.TaskGroup() as tasks:
            load = [tasks.create_task(pusher.run()) for pusher in pushers]
            load += [tasks.create_task(Puller(at, history).run()) for at in registries]
            for _ in range(kills):
                for _ in range(PUSHES_BETWEEN):
                    permits.release()
                await _kill_one(chance, history, sites)
            await eventually(
                lambda: permits.locked() and not any(pusher.busy for pusher in pushers),
                SETTLED_S,
                "all pushes have ended",
            )
            for task in load:
                task.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from group


async def _kill_one(chance: random.Random, history: History, sites: list[Site]) -> None:
    """Kill any one process at any moment of the load, and start it again at once or later."""
    site, program = chance.choice(sites), chance.choice(PROGRAMS)
    await _steps(history, chance.randrange(3, 22))
    site.kill(program)
    if program == "replicator":
        history.replicators_killed.append(site.name)
    if chance.random() < 0.3:
        await _steps(history, chance.randrange(1, 5))
    site.spawn(program)
    if program == "gateway" or chance.random() < 0.8:
        await site.ready(program)


async def _steps(history: History, count: int) -> None:
    """Wait until so many more requests have ended, or the load has run out of permits."""
    goal = history.steps + count
    await eventually(lambda: history.steps >= goal, SETTLED_S, f"{count} more requests")


async def _settled(sites: list[Site]) -> None:
    """Wait until each site says that it has all of the other's."""
    for site, other in zip(sites, reversed(sites), strict=True):
        await site.start()

        async def applied(site: Site = site, peer: str = other.name) -> bool:
            status = await site.peer(peer)
            assert status["state"] == "following", status
            assert (status["lag_keys"], status["parked"]) == (0, 0), status
            return True

        await eventually(applied, SETTLED_S, f"{site.name} has all of {other.name}")
