"""What a process tells its keeper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node import health
from node.config import Address, ConfigError
from node.health import HealthServer
from node.telemetry import Metrics
from tests.ports import free_port

Checks = Mapping[str, Callable[[], Awaitable[None]]]


async def passes() -> None:
    pass


async def fails() -> None:
    raise OSError("the disk is gone")


async def hangs() -> None:
    await asyncio.Event().wait()


@asynccontextmanager
async def serving(
    checks: Checks, stopping: asyncio.Event | None = None
) -> AsyncIterator[Callable[[str], Awaitable[tuple[int, str]]]]:
    """A health server, and how to ask it."""
    address = Address("127.0.0.1", free_port())
    server = HealthServer(
        address,
        checks,
        lambda: {"quorum": False},
        Metrics("test").registry,
        stopping=stopping or asyncio.Event(),
        supervisor="nonce",
    )
    await server.start()
    async with aiohttp.ClientSession(f"http://{address}") as client:

        async def get(path: str) -> tuple[int, str]:
            async with client.get(path) as answer:
                return answer.status, await answer.text()

        try:
            yield get
        finally:
            await server.stop()


async def test_a_process_is_alive_whatever_its_checks_say() -> None:
    """Restarting it mends no disk."""
    async with serving({"blobs": fails}) as get:
        assert (await get("/livez"))[0] == 200


async def test_a_process_whose_checks_pass_is_ready() -> None:
    """Ready is 200, and the body names each check."""
    async with serving({"blobs": passes, "metadata": passes}) as get:
        status, body = await get("/readyz")
    assert status == 200
    assert '"checks": {"blobs": "ok", "metadata": "ok"}' in body
    assert '"status": {"quorum": false}' in body
    assert '"supervisor": "nonce"' in body


@pytest.mark.parametrize(
    ("check", "said"), [(fails, "OSError: the disk is gone"), (hangs, "no answer within")]
)
async def test_a_check_that_fails_or_hangs_makes_it_unready(
    check: Callable[[], Awaitable[None]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body says which check it is and why; the others are still told."""
    monkeypatch.setattr(health, "CHECK_LIMIT_S", 0.05)
    async with serving({"blobs": check, "metadata": passes}) as get:
        status, body = await get("/readyz")
    assert status == 503
    assert f'"blobs": "{said}' in body
    assert '"metadata": "ok"' in body


async def test_a_process_that_drains_is_unready_and_alive() -> None:
    """No new requests should come here, and nobody should kill it for that."""
    stopping = asyncio.Event()
    async with serving({}, stopping) as get:
        assert (await get("/readyz"))[0] == 200
        stopping.set()
        assert (await get("/readyz"))[0] == 503
        assert (await get("/livez"))[0] == 200


async def test_metrics_are_what_prometheus_reads() -> None:
    """Every metric of the process's own registry, in Prometheus' text format."""
    async with serving({}) as get:
        status, body = await get("/metrics")
    assert status == 200
    families = {family.name: family for family in text_string_to_metric_families(body)}
    (sample,) = families["entrepot_build_info"].samples
    assert sample.labels["program"] == "test"


async def test_there_is_nothing_else() -> None:
    """Another path is 404: the registry does not answer here."""
    async with serving({}) as get:
        assert (await get("/v2/"))[0] == 404


async def test_its_address_in_use_is_a_configuration_problem() -> None:
    """A second process on the port is told which key to change."""
    address = Address("127.0.0.1", free_port())
    first, second = (
        HealthServer(
            address,
            {},
            dict,
            Metrics("test").registry,
            stopping=asyncio.Event(),
            key="replicator.listen",
        )
        for _ in range(2)
    )
    await first.start()
    try:
        with pytest.raises(ConfigError) as caught:
            await second.start()
        assert caught.value.problems == (f"replicator.listen: {address} is in use",)
    finally:
        await second.stop()
        await first.stop()
