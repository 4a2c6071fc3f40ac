"""How a request's body may end too early: the client leaves, stalls, or breaks the framing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

import pytest

from gateway.incoming import Incoming
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
    await eventually(lambda: bool(registry.blobs._pieces), 5, "the first bytes arrive")


@pytest.mark.parametrize("row", ["U36"])
async def test_a_client_that_leaves(registry: Served, row: str) -> None:
    """What came before the cut is kept, and the client goes on from there."""
    location = await registry.start_upload()
    async with registry.connected() as (_, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{SIZED}".encode() + LAYER[:400])
        await _arrived(registry)

    async def kept() -> bool:
        return await _held(registry, location) == "0-399"

    await eventually(kept, 5, "the bytes are kept")
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

    await eventually(kept, 5, "all bytes are kept")


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
        assert answer.split()[1] == b"400"
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
