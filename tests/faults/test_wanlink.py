"""The long line itself: what is measured over it is worth what it is."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from tests.faults.line import Line
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port

pytestmark = pytest.mark.slow

DELAY_S: Final = 0.025
BYTES_PER_S: Final = 12.5e6
MIB: Final = 1 << 20

_TIMES: Final = 12
# A machine that is busy makes a timer late, and never early.
_LATE_S: Final = 1.0


@asynccontextmanager
async def _line(line: Line) -> AsyncIterator[WanLink]:
    """A link to a server that sends as many MiB as the line that it gets says."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while number := await reader.readline():
                writer.write(number if number == b"0\n" else bytes(int(number) * MIB))
                await writer.drain()
        except ConnectionError:
            pass  # the cut at the end
        finally:
            writer.close()

    port = free_port()
    server = await asyncio.start_server(answer, "127.0.0.1", port)
    try:
        async with linked(f"127.0.0.1:{port}", free_port(), line) as link:
            yield link
    finally:
        server.close()


async def _open(link: WanLink) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = link.address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=MIB)


async def _ping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> float:
    clock = asyncio.get_running_loop().time
    began = clock()
    writer.write(b"0\n")
    assert await reader.readline() == b"0\n"
    return clock() - began


async def test_a_round_trip_takes_as_long_as_it_should() -> None:
    """50 ms there and back, and as much again for the handshake of a new connection."""
    async with _line(Line(delay_s=DELAY_S, bytes_per_s=BYTES_PER_S)) as link:
        reader, writer = await _open(link)
        first = await _ping(reader, writer)
        later = min([await _ping(reader, writer) for _ in range(_TIMES)])
        writer.close()
    assert first >= 4 * DELAY_S
    assert 2 * DELAY_S <= later < 2 * DELAY_S + _LATE_S


async def test_connections_share_the_whole_rate() -> None:
    """Two transfers at once get most of 100 Mbit/s, and no more, once they are under way."""
    async with _line(Line(delay_s=DELAY_S, bytes_per_s=BYTES_PER_S)) as link:
        connections = [await _open(link) for _ in range(2)]
        came = asyncio.Queue[int]()

        async def receive(reader: asyncio.StreamReader) -> None:
            while content := await reader.read(MIB):
                came.put_nowait(len(content))

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(receive(reader)) for reader, _ in connections]
            for _, writer in connections:
                writer.write(b"100\n")
            rates = [await _rate(came) for _ in range(4)]
            for reading in readers:
                reading.cancel()
        for _, writer in connections:
            writer.close()
    # The first has the windows that are still small in it.
    assert 0.5 * BYTES_PER_S < max(rates[1:]) < 1.2 * BYTES_PER_S


async def _rate(came: asyncio.Queue[int]) -> float:
    """The rate of the next 6 MiB, in bytes per second."""
    clock = asyncio.get_running_loop().time
    began, left = clock(), 6 * MIB
    while left > 0:
        left -= await came.get()
    return (6 * MIB - left) / (clock() - began)


async def test_a_window_begins_small_and_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 MiB takes seven round trips over a line that is only long, and few on an open window."""
    async with _line(Line(delay_s=DELAY_S)) as link:
        reader, writer = await _open(link)
        await _ping(reader, writer)
        clock = asyncio.get_running_loop().time

        async def takes() -> float:
            began = clock()
            writer.write(b"1\n")
            await reader.readexactly(MIB)
            return clock() - began

        monkeypatch.setattr("tests.faults.line._PAUSE_S", math.inf)
        small = await takes()
        opened = min([await takes() for _ in range(5)])
        monkeypatch.setattr("tests.faults.line._PAUSE_S", 0.0)
        again = await takes()
        writer.close()
    assert small > 12 * DELAY_S
    assert opened < small / 2
    assert again > 12 * DELAY_S


async def test_a_cut_is_a_reset_and_heals() -> None:
    """Who reads from a link that is cut gets an error, not an end; a healed one takes anew."""
    async with _line(Line(delay_s=DELAY_S, bytes_per_s=BYTES_PER_S)) as link:
        reader, writer = await _open(link)
        writer.write(b"100\n")
        await reader.readexactly(MIB)
        await link.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await _open(link)
        await link.heal()
        reader, writer = await _open(link)
        assert await _ping(reader, writer) >= 4 * DELAY_S
        writer.close()
