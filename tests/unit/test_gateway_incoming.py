"""How a request's body may end too early: the client leaves, stalls, or breaks the framing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiohttp import web

from gateway.incoming import Incoming, SmallBodies
from node.errors import RegistryError
from tests.ports import free_port
from tests.registry import LAYER, Served, digest_of, served
from tests.waiting import eventually

BLOB: Final = digest_of(LAYER)
SIZED: Final = "Host: x\r\nContent-Length: 1024\r\n\r\n"
CHUNKED: Final = "Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """An empty registry."""
    async with served() as registry:
        yield registry


async def _held(registry: Served, location: str) -> str:
    reply = await registry.ask("GET", location)
    assert reply.status == 204
    return reply.headers["Range"]


async def _arrived(registry: Served) -> None:
    await eventually(lambda: bool(registry.blobs._pieces), 60, "the first bytes arrive")


@pytest.mark.parametrize("row", ["U36"])
async def test_a_client_that_leaves(registry: Served, row: str) -> None:
    """What came before the cut is kept, and the client goes on from there."""
    location = await registry.start_upload()
    async with registry.connected() as (_, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{SIZED}".encode() + LAYER[:400])
        await _arrived(registry)

    async def kept() -> bool:
        return await _held(registry, location) == "0-399"

    await eventually(kept, 60, "the bytes are kept")
    asked = {"Content-Range": "400-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[400:], asked)
    assert reply.status == 201


@pytest.mark.parametrize("row", ["U36"])
@pytest.mark.parametrize("size", [10, 100_000, 1_000_000])
async def test_a_client_that_leaves_at_once(registry: Served, row: str, size: int) -> None:
    """All that arrived is kept, even if the client had left before anybody read it."""
    location = await registry.start_upload()
    head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {8 << 20}\r\n\r\n"
    async with registry.connected() as (_, writer):
        writer.write(head.encode() + bytes(size))

    async def kept() -> bool:
        return await _held(registry, location) == f"0-{size - 1}"

    await eventually(kept, 60, "all bytes are kept")


@pytest.mark.parametrize("row", ["U36"])
@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_client_that_sends_no_more(
    registry: Served, row: str, when: str, framing: str
) -> None:
    """A client that ends its side too early, but still listens, is told so; its bytes are kept."""
    location = await registry.start_upload()
    headers, body = SIZED, LAYER[:400]
    if framing == "chunked":
        headers, body = CHUNKED, b"190\r\n" + body
    async with registry.connected() as (reader, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{headers}".encode() + body)
        if when == "later":
            await _arrived(registry)
        writer.write_eof()
        answer, _, said = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.split()[1] == b"400"
    assert json.loads(said)["errors"][0]["code"] == "SIZE_INVALID"
    assert await _held(registry, location) == "0-399"


async def test_a_client_that_stalls(registry: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends nothing more is answered after a time, and may go on later (U36)."""
    defaults = Incoming.__init__.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "idle_s", 0.05)
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{SIZED}".encode() + LAYER[:400])
        answer = await reader.readuntil(b"}]}")
        assert answer.split()[1] == b"408"
    assert await _held(registry, location) == "0-399"


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(b"zz\r\n", id="no size"),
        pytest.param(b"-3\r\n", id="negative size"),
        pytest.param(b"5\r\nhelloworld\r\n", id="no line break"),
        pytest.param(b"f" * 40 + b"\r\n", id="overlong size"),
    ],
)
async def test_broken_framing(registry: Served, when: str, broken: bytes) -> None:
    """Chunks that can't be read are the client's fault; what was read before them is kept."""
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        sent = f"PATCH {location} HTTP/1.1\r\n{CHUNKED}".encode() + b"6\r\nfirst \r\n"
        if when == "later":
            writer.write(sent)
            sent = b""
            await _arrived(registry)
        writer.write(sent + broken)
        answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.split()[1] == b"400"
    assert b"Docker-Distribution-API-Version" in answer
    assert json.loads(body)["errors"][0]["code"] == "SIZE_INVALID"
    whole = b"first " + (b"hello" if b"hello" in broken else b"")
    assert await _held(registry, location) == f"0-{len(whole) - 1}"


# --- bodies in memory


@asynccontextmanager
async def _reading(bodies: SmallBodies) -> AsyncIterator[str]:
    """A server that reads each body and answers with its length, or with what was wrong."""

    async def answer(request: web.BaseRequest) -> web.Response:
        try:
            return web.Response(text=str(len(await bodies.read(request))))
        except RegistryError as err:
            return web.Response(text=type(err).__name__)

    # What is refused is answered at once, and not after ten seconds more of its body.
    runner = web.ServerRunner(web.Server(answer, lingering_time=0.1))
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"127.0.0.1:{port}"
    await runner.cleanup()


async def _answer(address: str, length: int, body: bytes) -> str:
    head = f"PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        writer.write(head.encode() + body)
        return (await reader.read()).rpartition(b"\r\n")[2].decode()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_bodies_that_are_not_whole_take_no_more_than_there_is() -> None:
    """Who begins many and ends none keeps others waiting, and the process small."""
    bodies = SmallBodies(1_000, room_bytes=2_500)
    async with _reading(bodies) as address, asyncio.TaskGroup() as group:
        assert await _answer(address, 1_001, b"") == "ManifestTooLarge"
        slow = [group.create_task(_answer(address, 1_000, b"x" * 999)) for _ in range(2)]
        await eventually(lambda: bodies._held_bytes == 1_998, 60, "both are begun")
        assert await _answer(address, 600, b"x" * 600) == "NoRoom"
        assert await _answer(address, 500, b"x" * 500) == "500"
        for task in slow:
            task.cancel()
        await eventually(lambda: bodies._held_bytes == 0, 60, "both are forgotten")
        assert await _answer(address, 600, b"x" * 600) == "600"


async def test_a_body_in_memory_has_to_come_in_time() -> None:
    """A byte now and then keeps an upload going, and no manifest."""
    async with _reading(SmallBodies(1_000, whole_s=0.2)) as address:
        assert await _answer(address, 1_000, b"x" * 999) == "BodyStalled"
