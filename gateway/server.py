"""The HTTP listeners: aiohttp's low-level server, with limits and a drain of our own.

What is no request at all is answered here, in the form of all other errors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.answers import Renderer
from gateway.errors import render_unknown
from node.config import Address
from node.lifecycle import binding

# H3: tokens with certificates in them, and lists of tags in a query, are longer than 8 KiB.
MAX_LINE_BYTES: Final = 64 << 10
# G18: how long what a refused client goes on sending is read, so that it sees why.
LINGER_S: Final = 5.0
# Requests under way at the end; below the drain's own limit (node/lifecycle.py).
FINISH_S: Final = 20.0
_BACKLOG: Final = 1024
_HEAD_END: Final = b"\r\n\r\n"

Answering: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_log = structlog.stdlib.get_logger(__name__)


class _Connection(web.RequestHandler):
    """A connection whose requests are answered also where they are malformed, or end too early."""

    renderer: Renderer
    # The body that comes in: the last request's, until that is answered.
    _body: StreamReader = EMPTY_PAYLOAD

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request."""
        return self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        if self._body.is_eof():  # else it is all body: GiB of it are not searched
            end = data.find(_HEAD_END) + len(_HEAD_END)
            if len(_HEAD_END) <= end < len(data):
                # aiohttp drops a head that comes with what breaks its body's framing: apart, it is
                # a request, and answered as if the break had come later.
                self._feed(data[:end])
                data = data[end:]
        self._feed(data)

    def _feed(self, data: bytes) -> None:
        super().data_received(data)
        if not self._messages:
            return
        message, body = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._body = body
        elif not self._body.is_eof():
            # The framing of the body broke.  aiohttp would answer that only once its request has
            # ended, and nobody tells the request.
            self._break_off(message.message)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp never keeps it open
        """Keep a connection open whose request was cut, until that is told."""
        if self._body.is_eof():
            return False
        self._break_off("the client sends no more")
        return True

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        if self._body is request.content:
            self._body = EMPTY_PAYLOAD  # what still comes is read for politeness only (G18)
        return finished

    def _break_off(self, reason: str) -> None:
        self._body.set_exception(web.RequestPayloadError(reason))
        self._lingering_time = 0.0  # so this is the connection's last request

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionResetError from exc
        _log.debug("request malformed", remote=request.remote, status=status, error=repr(exc))
        # The parser's message may quote what the client sent: a sentence of ours will do.
        said = "malformed request" if status < 500 else "internal error"
        return self.renderer.response(render_unknown(status, said), close=True)


class _Server(web.Server):
    """aiohttp's server, with our connections, and a drain that lets uploads come in to their end.

    aiohttp's own drops what a client still sends as soon as it begins to shut down.
    """

    def __init__(self, answer: Answering, renderer: Renderer) -> None:
        super().__init__(
            answer,
            access_log=None,
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            lingering_time=LINGER_S,
        )
        self._renderer = renderer
        self._open: set[web.RequestHandler] = set()
        self._last_closed = asyncio.Event()

    def __call__(self) -> web.RequestHandler:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        connection.renderer = self._renderer
        return connection

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._open.add(handler)
        self._last_closed.clear()

    def connection_lost(
        self, handler: web.RequestHandler, exc: BaseException | None = None
    ) -> None:
        super().connection_lost(handler, exc)
        self._open.discard(handler)
        if not self._open:
            self._last_closed.set()

    async def drain(self, limit_s: float) -> None:
        """Close idle connections, and wait until each of the others has had its answer."""
        await asyncio.sleep(0)  # what was accepted last gets to wait for its request
        for connection in list(self._open):
            if isinstance(connection, _Connection) and connection.idle:
                connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                if self._open:
                    await self._last_closed.wait()


class HttpServer:
    """Listens, and has each request answered by `answer`."""

    def __init__(self, answer: Answering, renderer: Renderer) -> None:
        self._server = _Server(answer, renderer)
        self._runner = web.ServerRunner(self._server, shutdown_timeout=1)

    async def start(self, listen: Mapping[str, Address]) -> None:
        """Listen on addresses, each by the key of the configuration that names it.

        Raises:
            ConfigError: One is in use, or this machine does not have it.
        """
        await self._runner.setup()
        for key, address in listen.items():
            with binding(key, address):
                await web.TCPSite(
                    self._runner, address.host, address.port, backlog=_BACKLOG
                ).start()

    async def stop(self) -> None:
        """Take no more connections, end idle ones, and wait for the requests under way."""
        for site in self._runner.sites:
            await site.stop()
        await self._server.drain(FINISH_S)
        await self._runner.cleanup()
