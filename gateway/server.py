"""The HTTP listeners: aiohttp's low-level server, with connections and a drain of our own."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

from aiohttp import web

from gateway.answers import Renderer
from gateway.connection import Connection, Limits
from node.config import Address
from node.lifecycle import binding

# Requests under way at the end; below the drain's own limit (node/lifecycle.py).
FINISH_S: Final = 20.0
_BACKLOG: Final = 1024

Answering: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class _Server(web.Server):
    """aiohttp's server, with our connections, and a drain that lets uploads come in to their end.

    aiohttp's own drops what a client still sends as soon as it begins to shut down.
    """

    def __init__(self, answer: Answering, renderer: Renderer, limits: Limits) -> None:
        super().__init__(
            answer,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=limits.idle_s,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            max_headers=limits.header_lines,
            lingering_time=limits.linger_s,
        )
        self._renderer = renderer
        self._limits = limits
        self._open: dict[web.RequestHandler, None] = {}  # in the order of their coming
        self._last_closed = asyncio.Event()

    def __call__(self) -> web.RequestHandler:
        connection = Connection(self, loop=self._loop, **self._kwargs)
        connection.renderer = self._renderer
        connection.limits = self._limits
        return connection

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._open) >= self._limits.connections:
            self._make_room(transport)
        self._open[handler] = None
        self._last_closed.clear()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)
        if not self._open:
            self._last_closed.set()

    def _make_room(self, newest: asyncio.Transport) -> None:
        """Of too many connections, end the one that has been here longest for nothing."""
        idle = next((c for c in self._open if isinstance(c, Connection) and c.idle), None)
        if idle is None:
            newest.abort()
        else:
            idle.force_close()

    async def drain(self, limit_s: float) -> None:
        """Close idle connections, and wait until each of the others has had its answer."""
        await asyncio.sleep(0)  # what was accepted last gets to wait for its request
        for connection in list(self._open):
            if isinstance(connection, Connection) and connection.idle:
                connection.force_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                if self._open:
                    await self._last_closed.wait()


class HttpServer:
    """Listens, and has each request answered by `answer`."""

    def __init__(self, answer: Answering, renderer: Renderer, limits: Limits | None = None) -> None:
        self._server = _Server(answer, renderer, limits or Limits())
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1)

    async def start(
        self,
        listen: Mapping[str, Address],
        tls: ssl.SSLContext | None = None,
        *,
        shared: bool = False,
    ) -> None:
        """Listen on addresses, each by the key of the configuration that names it.

        `shared` if other workers of the site listen on them too.

        Raises:
            ConfigError: One is in use, or this machine does not have it.
        """
        await self._runner.setup()
        for key, address in listen.items():
            with binding(key, address):
                await web.TCPSite(
                    self._runner,
                    address.host,
                    address.port,
                    backlog=_BACKLOG,
                    ssl_context=tls,
                    reuse_port=shared,
                ).start()

    async def stop(self) -> None:
        """Take no more connections, end idle ones, and wait for the requests under way."""
        for site in self._runner.sites:
            await site.stop()
        await self._server.drain(FINISH_S)
        await self._runner.cleanup()
