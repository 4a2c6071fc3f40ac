"""A real gateway with more of its clients than it takes: connections, requests, bodies."""

from __future__ import annotations

import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.faults.raw import request, send
from tests.faults.registry import Registry
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

IDLE: Final = 1_000
PING: Final = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
# For the parser, buffers and the task; 5 were measured.
KIB_EACH: Final = 32


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    """Give children a soft limit below what is needed; ours is as before afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def site(tmp_path: Path, few_descriptors: None) -> AsyncIterator[Site]:
    """A gateway that was started with few descriptors."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",))
    with ended(site):
        await site.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        yield site
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await site.stop_all()


def _descriptors(site: Site) -> int:
    return len(list(Path(f"/proc/{site.pid('gateway')}/fd").iterdir()))


def _memory_kib(site: Site) -> int:
    status = Path(f"/proc/{site.pid('gateway')}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1])


async def test_a_thousand_idle_connections(site: Site) -> None:
    """Idle connections cost little, keep nobody from being served, and leave nothing behind."""
    before, memory = _descriptors(site), _memory_kib(site)
    with ExitStack() as stack:
        for number in range(IDLE):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", site.port)))
            if number % 2:  # the others have never asked for anything
                client.sendall(PING)
                assert client.recv(12) == b"HTTP/1.1 200"
        # Some that were open before have been closed since.
        await eventually(lambda: _descriptors(site) > before + IDLE - 50, 30, "all are taken")
        start = request("POST", "/v2/team/app/blobs/uploads/", {"Content-Length": "0"})
        assert (await send(site.http, start)).status == 202
        assert _memory_kib(site) - memory < IDLE * KIB_EACH
    await eventually(lambda: _descriptors(site) < before + 50, 30, "all are closed")
    assert (await send(site.http, request("GET", "/v2/", {}))).status == 200


@pytest.mark.parametrize("row", ["G12-0.8"])
async def test_a_request_too_many_is_told_when_to_come_again(tmp_path: Path, row: str) -> None:
    """429 with its code and a time, while another is under way; then it is served."""
    settings = {"limits": {"requests": 1}}
    site = Site("fra", tmp_path / "fra", settings=settings, programs=("gateway",))
    with ended(site):
        await site.start()
        async with Registry.at(site.url) as registry:
            begun = await registry.call("POST", "/v2/app/blobs/uploads/")
            head = f"PATCH {begun.headers['Location']} HTTP/1.1\r\nHost: x\r\n"
            with socket.create_connection((site.host, site.port)) as slow:
                slow.sendall(f"{head}Content-Length: 2\r\n\r\na".encode())

                async def refused() -> bool:
                    answer = await registry.call("GET", "/v2/")
                    return answer.status == 429 and b'"TOOMANYREQUESTS"' in answer.body

                await eventually(refused, 30, "a request is refused")
                assert int((await registry.call("GET", "/v2/")).headers["Retry-After"]) > 0

            async def answered() -> bool:
                return (await registry.call("GET", "/v2/")).status == 200

            await eventually(answered, 30, "it is answered when the other has ended")
        await site.stop_all()
