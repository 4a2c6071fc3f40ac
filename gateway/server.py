"""The HTTP server: every request passes here, is routed, answered, counted; errors become answers.

Nothing is logged for a read that goes well; a write and an error get one line each.  What is not a
`RegistryError` is a bug: it is logged with its traceback, and the client gets 500 and no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeAlias

import structlog
from aiohttp import web
from prometheus_client import Counter, Histogram

from gateway.auth import Peers
from gateway.errors import render, render_unknown
from gateway.headers import Answer
from gateway.routes import Endpoint, Target, endpoint_of, parse_target
from node.config import Address
from node.errors import RegistryError
from node.lifecycle import binding
from node.telemetry import Metrics

# H3: tokens with certificates in them, and lists of tags in a query, are longer than 8 KiB.
MAX_LINE_BYTES: Final = 64 << 10
# G18: how long what a refused client goes on sending is read, so that it sees why.
LINGER_S: Final = 5.0
# Requests under way at the end; below the drain's own limit (node/lifecycle.py).
FINISH_S: Final = 20.0
_BACKLOG: Final = 1024

_NOTHING: Final = "none"
_READS: Final = frozenset({"GET", "HEAD"})

Handler: TypeAlias = Callable[[web.BaseRequest, Target], Awaitable[Answer | web.StreamResponse]]

_log = structlog.stdlib.get_logger(__name__)


class Gate:
    """Answers requests; `always` are the headers of every response."""

    def __init__(
        self,
        handlers: Mapping[Endpoint, Handler],
        peers: Peers,
        always: Mapping[str, str],
        metrics: Metrics,
        *,
        stopping: asyncio.Event,
        new_id: Callable[[], str],
    ) -> None:
        self._handlers = handlers
        self._peers = peers
        self._always = always
        self._counts = _Counts(metrics)
        self._stopping = stopping
        self._new_id = new_id

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request whatever; while the process drains, its connection's last."""
        began = time.monotonic()
        endpoint: Endpoint | None = None
        error: Exception | None = None
        try:
            self._peers.verify(request.headers)
            target = parse_target(request.raw_path)
            endpoint = endpoint_of(request.method, target)
            answer = await self._handlers[endpoint](request, target)
        except RegistryError as err:
            answer, error = render(err, request.raw_path.partition("?")[0]), err
        except ConnectionError:
            raise  # the client left; aiohttp ends the connection
        except Exception as err:  # noqa: BLE001 - a bug in one request must not end the others
            answer, error = render_unknown(), err
        if error is not None and request.writer.output_size:
            # It had begun: cutting the connection is the only way left to say that it failed.
            _log.error("response cut", path=request.raw_path, exc_info=error)
            raise ConnectionResetError from error
        response = answer.response(self._always) if isinstance(answer, Answer) else answer
        if self._stopping.is_set():
            response.force_close()
        duration_s = time.monotonic() - began
        self._counts.add(endpoint or _NOTHING, request, response, duration_s)
        if error is not None or request.method not in _READS:
            self._report(request, response, error, duration_s)
        return response

    def _report(
        self,
        request: web.BaseRequest,
        response: web.StreamResponse,
        error: Exception | None,
        duration_s: float,
    ) -> None:
        status = response.status
        if status == 404 and request.method in _READS:
            return  # clients ask before every push
        said = {
            "method": request.method,
            "path": request.raw_path,
            "status": status,
            "duration_s": round(duration_s, 4),
            "remote": request.remote,
        }
        if error is None:
            _log.info("request", **said)
        elif status < 500:
            _log.info("request refused", **said, error=str(error))
        else:
            request_id = self._new_id()
            response.headers["X-Request-Id"] = request_id
            trace = None if isinstance(error, RegistryError) else error
            _log.error(
                "request failed", **said, error=repr(error), request_id=request_id, exc_info=trace
            )


class _Counts:
    """Metrics of requests; label look-ups are kept, as they cost more than counting."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = metrics.counter(
            "http_requests", "Requests answered.", "endpoint", "status"
        )
        self._durations = metrics.histogram(
            "http_request_seconds", "From a request's head to its answer.", "endpoint"
        )
        self._in = metrics.counter("http_received_bytes", "Bytes of requests' bodies.")
        self._out = metrics.counter("http_sent_bytes", "Bytes of responses' bodies.")
        self._known: dict[tuple[str, int], tuple[Counter, Histogram]] = {}

    def add(
        self, endpoint: str, request: web.BaseRequest, response: web.StreamResponse, s: float
    ) -> None:
        known = self._known.get((endpoint, response.status))
        if known is None:
            known = (
                self._requests.labels(endpoint, response.status),
                self._durations.labels(endpoint),
            )
            self._known[endpoint, response.status] = known
        known[0].inc()
        known[1].observe(s)
        if received := request.content.total_bytes:
            self._in.inc(received)
        if request.method != "HEAD" and (sent := response.content_length):
            self._out.inc(sent)


class _Connection(web.RequestHandler):
    """A connection whose malformed requests are answered like all others."""

    always: Mapping[str, str] = {}

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request."""
        return self._waiter is not None

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
        response = render_unknown(status, said).response(self.always)
        response.force_close()
        return response


class _Server(web.Server):
    """aiohttp's server, with our connections, and a drain that lets uploads come in to their end.

    aiohttp's own drops what a client still sends as soon as it begins to shut down.
    """

    def __init__(self, gate: Gate, always: Mapping[str, str]) -> None:
        super().__init__(
            gate.answer,
            access_log=None,
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            lingering_time=LINGER_S,
        )
        self._always = always
        self._open: set[web.RequestHandler] = set()
        self._last_closed = asyncio.Event()

    def __call__(self) -> web.RequestHandler:
        connection = _Connection(self, loop=self._loop, **self._kwargs)
        connection.always = self._always
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
        for connection in list(self._open):
            if isinstance(connection, _Connection) and connection.idle:
                connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                if self._open:
                    await self._last_closed.wait()


class HttpServer:
    """The listeners of the registry's API."""

    def __init__(self, gate: Gate, always: Mapping[str, str]) -> None:
        self._server = _Server(gate, always)
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
