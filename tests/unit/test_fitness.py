"""A site whose own checks fail answers nothing but 503."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gateway.fitness import Fitness
from node.errors import SiteUnfit, StorageFailed
from tests.registry import REPOSITORY, served


class World:
    """A check that fails on demand, and a clock that goes from one round to the next."""

    def __init__(self, limit_s: float = 10) -> None:
        self.broken = False
        self.hanging = False
        self.asked = 0
        self._turn = asyncio.Semaphore(0)
        self._done = asyncio.Semaphore(0)
        self.fitness = Fitness(
            {"metadata": self._pass, "blobs": self._check},
            every_s=7,
            limit_s=limit_s,
            sleep=self._sleep,
        )

    async def round(self) -> None:
        """Let the checks be asked once more."""
        self._turn.release()
        await self._done.acquire()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the clock go; the first round is over."""
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.fitness.run())
            await self._done.acquire()
            yield
            task.cancel()

    async def _pass(self) -> None:
        pass

    async def _check(self) -> None:
        self.asked += 1
        if self.hanging:
            await asyncio.Event().wait()
        if self.broken:
            raise StorageFailed("the disk is gone")

    async def _sleep(self, seconds: float) -> None:
        assert seconds == 7
        self._done.release()
        await self._turn.acquire()


@pytest.mark.parametrize("row", ["G19"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("GET", f"/v2/{REPOSITORY}/manifests/v1"),
        ("HEAD", f"/v2/{REPOSITORY}/manifests/v1"),
        ("POST", f"/v2/{REPOSITORY}/blobs/uploads/"),
        ("GET", f"/v2/{REPOSITORY}/tags/list"),
        ("GET", "/api/v1/peers"),
        ("GET", "/"),
    ],
)
async def test_nothing_is_answered_while_a_check_fails(method: str, path: str, row: str) -> None:
    """Every call, the ping too, gets 503 UNAVAILABLE and when to come back; then all is as ever."""
    world = World()
    async with served(fitness=world.fitness) as registry, world.running():
        before = (await registry.ask(method, path)).status
        world.broken = True
        await world.round()
        await world.round()
        reply = await registry.ask(method, path)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
        assert reply.headers["Docker-Distribution-API-Version"] == "registry/2.0"
        if method != "HEAD":
            assert reply.code == "UNAVAILABLE"
            assert reply.json()["errors"][0]["detail"] == {"checks": ["blobs"]}
            assert b"disk" not in reply.body, "what is wrong inside is nobody's business"
        world.broken = False
        await world.round()
        assert (await registry.ask(method, path)).status == before


async def test_who_asks_what_is_wrong_is_told() -> None:
    """The site says how its store is while it answers nothing else, also if that is gone."""
    world = World()
    async with served(fitness=world.fitness) as registry, world.running():
        before = (await registry.ask("GET", "/api/v1/site")).json()
        world.broken = registry.kv.down = True
        await world.round()
        await world.round()
        await registry.weather.look()
        reply = await registry.ask("GET", "/api/v1/site")
        assert reply.status == 200
        told = reply.json()
        problems = told["store"]["problems"]
        assert told == {**before, "revision": None, "store": told["store"]}
        assert [problem.partition(":")[0] for problem in problems] == ["unavailable", "member_down"]
        assert "memory:1" in problems[1]


async def test_one_failure_may_be_chance() -> None:
    """It takes two in a row: a check that fails now and then refuses nobody."""
    world = World()
    async with world.running():
        for broken in (True, False, True, False):
            world.broken = broken
            await world.round()
            world.fitness.require()


async def test_a_check_that_hangs_fails_in_the_end() -> None:
    """A disk that answers nothing any more is as bad as one that says so."""
    world = World(limit_s=0.01)
    world.hanging = True
    async with world.running():
        await world.round()
        with pytest.raises(SiteUnfit) as caught:
            world.fitness.require()
        assert caught.value.checks == ("blobs",)


async def test_requests_ask_no_check() -> None:
    """However many come, the checks are asked by the clock only."""
    world = World()
    async with served(fitness=world.fitness) as registry, world.running():
        for _ in range(5):
            assert (await registry.ask("GET", "/v2/")).status == 200
        assert world.asked == 1
