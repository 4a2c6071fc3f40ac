"""HTTP by hand, for requests that no proper client would send."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

ANSWER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """A response that was read to the end of the connection; no status: there was none."""

    status: int | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def codes(self) -> list[str]:
        """The codes of the errors in the body."""
        found: Any = json.loads(self.body)
        return [error["code"] for error in found["errors"]]


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as it goes over the wire, byte for byte, with a connection of its own."""
    lines = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


async def send(address: str, content: bytes) -> RawAnswer:
    """Send bytes and read one answer.

    A server may answer before it has read all: what it says is read all the same.
    """
    async with asyncio.timeout(ANSWER_S), _connected(address) as (reader, writer):
        writer.write(content)
        with suppress(OSError):
            await writer.drain()
        return await _read(reader)


@asynccontextmanager
async def sent(address: str, content: bytes) -> AsyncIterator[None]:
    """Send bytes, and close the connection when the body is done, without reading anything."""
    async with _connected(address) as (_, writer):
        writer.write(content)
        await writer.drain()
        yield


@asynccontextmanager
async def _connected(
    address: str,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader) -> RawAnswer:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, OSError):
        return RawAnswer(None, {}, b"")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return RawAnswer(int(status.split(" ")[1]), headers, body)
