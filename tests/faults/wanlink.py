"""The link between two sites: a TCP proxy that can be cut, healed, slowed, and made to lie.

A cut link is what a broken line is: connections in use are reset, new ones are refused.  In a black
hole they stay, and nothing comes out of them ever again, as behind a router that forgot them.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple, TypeAlias

from tests.faults.line import Line, Way, Window

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 64 << 10

Change = Callable[[bytes], bytes]
# What is under way, each with when it comes out; nothing is the end.
_Pipe: TypeAlias = asyncio.Queue[tuple[float, bytes]]


def _honest(content: bytes) -> bytes:
    return content


class _Course(NamedTuple):
    """One direction of a connection: its way, what becomes of its bytes, and where they vanish."""

    way: Way
    change: Change
    hole: asyncio.Event


class WanLink:
    """A proxy to `host:port`, at an address of its own while it is up.

    `line` says how long and how fast it is, and may be shared with other links; `change` is what
    becomes of the bytes that come from the other end.  `passed_bytes` counts those of both
    directions.
    """

    def __init__(self, target: str, port: int, line: Line | None = None) -> None:
        self.address = f"{_HOST}:{port}"
        self.line = line or Line()
        self.passed_bytes = 0
        self.change: Change = _honest
        self._port = port
        self._target_host, _, target_port = target.rpartition(":")
        self._target_port = int(target_port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._resets = True
        # Set: whatever is sent over the connections that were given this one is lost.
        self._hole = asyncio.Event()

    def blackhole(self) -> None:
        """Lose all that is sent, without a word to either end; new connections seem to be made."""
        self._hole.set()

    async def heal(self) -> None:
        """Let new connections through again; nothing happens to a link that is up."""
        if self._hole.is_set():
            self._hole = asyncio.Event()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, _HOST, self._port)

    async def cut(self, *, reset: bool = True) -> None:
        """End all connections, by a reset or just so, and refuse new ones until `heal`."""
        self._resets = reset
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with suppress(OSError, ExceptionGroup):
                await self._join(reader, writer)
        except asyncio.CancelledError:
            self._end(writer)  # the cut; nobody waits for this task but `cut`
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hole = self._hole
        there, to_there = await asyncio.open_connection(self._target_host, self._target_port)
        try:
            # The handshake: both ends of this proxy are there at once, those of a line are not.
            await asyncio.sleep(2 * self.line.delay_s)
            async with asyncio.TaskGroup() as pumps:
                outward = _Course(self.line.there, _honest, hole)
                homeward = _Course(self.line.back, self._changed, hole)
                self._pump(pumps, reader, to_there, outward)
                self._pump(pumps, there, writer, homeward)
        except asyncio.CancelledError:
            self._end(to_there)
            raise
        finally:
            to_there.transport.abort()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        if self._resets:
            _reset(writer)

    def _changed(self, content: bytes) -> bytes:
        return self.change(content)  # as it is now, not as it was when the connection began

    def _pump(
        self,
        pumps: asyncio.TaskGroup,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        course: _Course,
    ) -> None:
        pipe: _Pipe = asyncio.Queue()  # bounded by the window
        window = Window(course.way.line)
        pumps.create_task(_send(reader, pipe, course, window))
        pumps.create_task(self._deliver(pipe, writer, window, course))

    async def _deliver(
        self, pipe: _Pipe, writer: asyncio.StreamWriter, window: Window, course: _Course
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, content = await pipe.get()
            if due > clock():
                await asyncio.sleep(due - clock())
            if course.hole.is_set():
                continue
            if not content:
                break
            writer.write(course.change(content))
            await writer.drain()
            self.passed_bytes += len(content)
            window.arrived(len(content))
        if writer.can_write_eof():
            writer.write_eof()


async def _send(reader: asyncio.StreamReader, pipe: _Pipe, course: _Course, window: Window) -> None:
    try:
        while content := await reader.read(_CHUNK):
            while content:
                count = await window.take(len(content))
                pipe.put_nowait((await course.way.send(count), content[:count]))
                content = content[count:]
    except ConnectionError:
        if course.hole.is_set():
            return  # nobody hears of it
        raise
    pipe.put_nowait((await course.way.send(0), b""))


def _reset(writer: asyncio.StreamWriter) -> None:
    """Let the connection end by RST; what is still in its buffers is lost, as on a line."""
    connection: socket.socket = writer.get_extra_info("socket")
    with suppress(OSError):  # it has ended already
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@asynccontextmanager
async def linked(target: str, port: int, line: Line | None = None) -> AsyncIterator[WanLink]:
    """A link that is up, and cut at the end."""
    link = WanLink(target, port, line)
    await link.heal()
    try:
        yield link
    finally:
        await link.cut()
