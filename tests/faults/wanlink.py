"""The link between two sites: a TCP proxy that can be cut, healed, slowed, and made to lie.

A cut link is what a broken line is: connections in use end, new ones are refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

_HOST: Final = "127.0.0.1"
_CHUNK: Final = 64 << 10

Change = Callable[[bytes], bytes]


def _honest(content: bytes) -> bytes:
    return content


class WanLink:
    """A proxy to `host:port`, at an address of its own while it is up.

    `delay_s` holds back every chunk, in both directions; `change` is what becomes of the bytes that
    come from the other end.
    """

    def __init__(self, target: str, port: int) -> None:
        self.address = f"{_HOST}:{port}"
        self.delay_s = 0.0
        self.change: Change = _honest
        self._port = port
        self._target_host, _, target_port = target.rpartition(":")
        self._target_port = int(target_port)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def heal(self) -> None:
        """Let connections through again; nothing happens to a link that is up."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, _HOST, self._port)

    async def cut(self) -> None:
        """End all connections and refuse new ones, until `heal`."""
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
            pass  # the cut; nobody waits for this task but `cut`
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_there = await asyncio.open_connection(self._target_host, self._target_port)
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, to_there, _honest))
                pumps.create_task(self._pump(there, writer, self._changed))
        finally:
            to_there.transport.abort()

    def _changed(self, content: bytes) -> bytes:
        return self.change(content)  # as it is now, not as it was when the connection began

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Change
    ) -> None:
        while content := await reader.read(_CHUNK):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            writer.write(change(content))
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


@asynccontextmanager
async def linked(target: str, port: int) -> AsyncIterator[WanLink]:
    """A link that is up, and cut at the end."""
    link = WanLink(target, port)
    await link.heal()
    try:
        yield link
    finally:
        await link.cut()
