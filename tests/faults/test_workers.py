"""`--workers 2`: two gateways on one port, and what clients see when one of them is killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.faults.registry import Registry, new_image
from tests.faults.served import DEADLINE_S, arguments, children, is_free, served
from tests.sites import Site, ended, site_ports
from tests.waiting import eventually

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"
TWO: Final = ("--workers", "2")
CLIENTS: Final = 6
# What a worker that dies does to the connections that it had.
RESETS: Final = (
    aiohttp.ServerDisconnectedError,
    aiohttp.ClientPayloadError,
    aiohttp.ClientOSError,
)


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site whose workers are watched at its third and its fifth port."""
    return Site("fra", tmp_path / "fra", port=site_ports(5))


def _health(site: Site, worker: int) -> str:
    return f"http://127.0.0.1:{site.port + (2, 4)[worker]}"


async def _ready(site: Site, worker: int) -> None:
    """Wait until a worker is ready."""

    async def says_so() -> bool:
        try:
            async with aiohttp.request("GET", f"{_health(site, worker)}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    await eventually(says_so, DEADLINE_S, f"worker {worker} is ready")


@asynccontextmanager
async def _served(site: Site, command: str = "serve") -> AsyncIterator[Any]:
    """Run the site with two workers, until both are ready."""
    async with served(site, *TWO, command=command) as supervisor:
        for worker in (0, 1):
            await _ready(site, worker)
        yield supervisor


async def _count(site: Site, worker: int, sample: str) -> float:
    """The sum of a metric of one worker over all its labels."""
    async with aiohttp.request("GET", f"{_health(site, worker)}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    samples = [one for family in families for one in family.samples]
    return sum(one.value for one in samples if one.name == sample)


def _pid(supervisor: int, worker: int) -> int | None:
    wanted = f"{worker}/2"
    return next((pid for pid in children(supervisor) if wanted in arguments(pid)), None)


async def _reached(site: Site, registry: Registry, worker: int) -> None:
    """Ask over new connections until this worker has answered one."""
    before = await _count(site, worker, "entrepot_http_requests_total")

    async def counts() -> bool:
        assert await registry.answers()
        return await _count(site, worker, "entrepot_http_requests_total") > before

    await eventually(counts, DEADLINE_S, f"worker {worker} answers a request")


async def test_both_workers_answer_and_end_together(site: Site) -> None:
    """New connections reach either; each is watched by itself; SIGTERM drains all, ports free."""
    image = new_image(random.Random(1), (1 << 16,))
    async with _served(site) as supervisor, Registry.at(site.url) as registry:
        await registry.push(REPOSITORY, image, "v1")
        for worker in (0, 1):
            await _reached(site, registry, worker)
        answer = await registry.call("GET", "/api/v1/site")
        assert [_health(site, n).removeprefix("http://").encode() in answer.body for n in (0, 1)]
        pulls = (registry.pull(REPOSITORY, "v1") for _ in range(20))
        assert set(await asyncio.gather(*pulls)) == {image.digest}
        supervisor.terminate()
        assert await to_thread(supervisor.wait, DEADLINE_S) == 0
    assert all(is_free(port) for port in range(site.port, site.port + 5))


async def test_gateways_alone_can_be_workers(site: Site) -> None:
    """`entrepot gateway --workers 2` runs two gateways and nothing else, and ends as told."""
    async with _served(site, "gateway") as supervisor, Registry.at(site.url) as registry:
        found = [arguments(pid) for pid in children(supervisor.pid)]
        assert sorted(one[one.index("--worker") + 1] for one in found) == ["0/2", "1/2"]
        assert all("gateway" in one for one in found)
        for worker in (0, 1):
            await _reached(site, registry, worker)
        supervisor.terminate()
        assert await to_thread(supervisor.wait, DEADLINE_S) == 0


async def test_a_killed_worker_costs_connections_and_no_more(site: Site) -> None:
    """Pushes and pulls go on at the other, with nothing but resets; the worker comes back."""
    resets: list[Exception] = []
    rounds = [0] * CLIENTS

    async def client(number: int, registry: Registry) -> None:
        chance = random.Random(number)
        while True:
            image = new_image(chance, (1 << 14,))
            tag = f"c{number}-{rounds[number]}"
            await _again(resets, partial(registry.push, REPOSITORY, image, tag))
            pulled = await _again(resets, partial(registry.pull, REPOSITORY, tag))
            assert pulled == image.digest
            rounds[number] += 1

    async def all_go_on(by: int) -> None:
        goals = [done + by for done in rounds]
        await eventually(
            lambda: all(done >= goal for done, goal in zip(rounds, goals, strict=True)),
            DEADLINE_S,
            "every client goes on",
        )

    async with _served(site) as supervisor, Registry.at(site.url) as registry:
        try:
            async with asyncio.TaskGroup() as clients:
                load = [clients.create_task(client(n, registry)) for n in range(CLIENTS)]
                for worker in (0, 1):
                    await all_go_on(by=2)
                    victim = _pid(supervisor.pid, worker)
                    assert victim is not None
                    os.kill(victim, signal.SIGKILL)
                    await all_go_on(by=2)
                    await _ready(site, worker)
                    assert _pid(supervisor.pid, worker) not in (None, victim)
                    await _reached(site, registry, worker)
                for task in load:
                    task.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group
        supervisor.terminate()
        assert await to_thread(supervisor.wait, DEADLINE_S) == 0
    # Each client has one request under way, so each kill can cost it one, and one more that comes
    # in the moment in which the kernel takes the listener away.  Were there no other listener, each
    # would be refused hundreds of times.
    assert len(resets) <= 4 * CLIENTS, resets


async def _again(resets: list[Exception], work: Callable[[], Awaitable[Any]]) -> Any:
    """Do something as clients do: once more after a reset, and after no other error."""
    while True:
        try:
            return await work()
        except RESETS as err:
            resets.append(err)


async def test_a_peer_follows_whichever_worker_there_is(site: Site, tmp_path: Path) -> None:
    """The feed is on one port too: when the worker that serves a peer dies, the other does."""
    nyc = Site("nyc", tmp_path / "nyc")
    site.follow(nyc)
    nyc.follow(site)
    chance = random.Random(3)
    with ended(nyc):
        async with _served(site) as supervisor, Registry.at(site.url) as fra:
            await nyc.start()
            async with Registry.at(nyc.url) as registry:
                for tag in ("v1", "v2", "v3"):
                    image = new_image(chance, (1 << 12,))
                    await fra.push(REPOSITORY, image, tag)

                    async def arrived(tag: str = tag, digest: str = image.digest) -> bool:
                        return await registry.pull(REPOSITORY, tag) == digest

                    await eventually(arrived, DEADLINE_S, f"{tag} is at nyc")
                    streams = [await _count(site, n, "entrepot_feed_streams") for n in (0, 1)]
                    assert sorted(streams) == [0, 1]
                    follower = _pid(supervisor.pid, streams.index(1))
                    assert follower is not None
                    os.kill(follower, signal.SIGKILL)
                    await _ready(site, streams.index(1))
            await nyc.stop_all()
