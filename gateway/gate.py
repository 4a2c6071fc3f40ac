"""Where every request passes: routed, answered, counted; errors become answers.

Nothing is logged for a read that goes well; a write and an error get one line each.  What is not a
`RegistryError` is a bug: it is logged with its traceback, and the client gets 500 and no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import structlog
from aiohttp import web

from gateway.answers import Answer, Renderer
from gateway.auth import Peers
from gateway.counts import Counts
from gateway.errors import render, render_unknown
from gateway.fitness import Fitness
from gateway.incoming import check_framing
from gateway.routes import Endpoint, Target, endpoint_of, parse_target
from node.errors import BodyCut, RegistryError, TooManyRequests

_NOTHING: Final = "none"
_READS: Final = frozenset({"GET", "HEAD"})
# The steps of an upload write nothing that anybody sees; its end is the line.
_STEPS: Final = frozenset({Endpoint.START_UPLOAD, Endpoint.APPEND_UPLOAD})

# Of a path in the log: one may have 64 KiB.
_SHOWN: Final = 1000

Handler: TypeAlias = Callable[[web.BaseRequest, Target], Awaitable[Answer | web.StreamResponse]]

_log = structlog.stdlib.get_logger(__name__)


class Gate:
    """Answers requests.

    `most` requests are under way at once, and more get 429 (G12).  `public_url` is what the
    registry is called outside, or nothing; `new_id` makes ids by which a failure is found in the
    log.  While `fitness` says that the site can't serve, nothing is handled but the question of how
    it is.
    """

    def __init__(
        self,
        handlers: Mapping[Endpoint, Handler],
        peers: Peers,
        renderer: Renderer,
        counts: Counts,
        fitness: Fitness,
        *,
        public_url: str,
        most: int,
        stopping: asyncio.Event,
        new_id: Callable[[], str],
    ) -> None:
        self._public_url = public_url
        self._handlers = handlers
        self._peers = peers
        self._renderer = renderer
        self._counts = counts
        self._fitness = fitness
        self._stopping = stopping
        self._most = most
        self._under_way = 0
        self._new_id = new_id

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The response to any request whatever; while the process drains, its connection's last."""
        began = time.monotonic()
        endpoint: Endpoint | None = None
        target: Target | None = None
        error: Exception | None = None
        try:
            check_framing(request)
            self._peers.verify(request.headers)
            target = parse_target(request.raw_path)
            endpoint = endpoint_of(request.method, target)
            answer = await self._handle(endpoint, request, target)
        except RegistryError as err:
            path = self._public_url + (target.path if target is not None else "")
            answer, error = render(err, path), err
        except ConnectionError:
            raise  # the client left; aiohttp ends the connection
        except Exception as err:  # noqa: BLE001 - a bug in one request must not end the others
            answer, error = render_unknown(), err
        if error is not None and request.writer.output_size:
            # It had begun: cutting the connection is the only way left to say that it failed.
            _log.error("response cut", path=request.raw_path[:_SHOWN], exc_info=error)
            raise ConnectionResetError from error
        duration_s = time.monotonic() - began
        self._counts.add(endpoint or _NOTHING, answer.status, duration_s)
        if error is not None:
            answer = self._report(request, answer, error)
        elif request.method not in _READS and endpoint not in _STEPS:
            _log.info("request", **_said(request, answer), duration_s=round(duration_s, 4))
        last = self._stopping.is_set() or _leaves_a_body(request, error)
        return self._response(request, answer, last=last)

    async def _handle(
        self, endpoint: Endpoint, request: web.BaseRequest, target: Target
    ) -> Answer | web.StreamResponse:
        # Who asks what is wrong is told so, of all requests just then.
        if endpoint is not Endpoint.SHOW_SITE:
            self._fitness.require()
        if self._under_way >= self._most:
            raise TooManyRequests(self._most)
        self._under_way += 1
        try:
            return await self._handlers[endpoint](request, target)
        finally:
            self._under_way -= 1

    def _response(
        self, request: web.BaseRequest, answer: Answer | web.StreamResponse, *, last: bool
    ) -> web.StreamResponse:
        if isinstance(answer, Answer):
            sent = len(answer.body)
            response: web.StreamResponse = self._renderer.response(answer, close=last)
        else:
            sent = answer.content_length or 0
            response = answer
            if last:
                response.force_close()
        received = request.content.total_bytes
        self._counts.add_bytes(received, 0 if request.method == "HEAD" else sent)
        return response

    def _report(
        self, request: web.BaseRequest, answer: Answer | web.StreamResponse, error: Exception
    ) -> Answer | web.StreamResponse:
        if answer.status >= 500 and isinstance(answer, Answer):
            request_id = self._new_id()
            trace = None if isinstance(error, RegistryError) else error
            _log.error(
                "request failed",
                **_said(request, answer),
                error=repr(error),
                request_id=request_id,
                exc_info=trace,
            )
            return answer._replace(headers={**answer.headers, "X-Request-Id": request_id})
        # Clients ask before every push whether something is there: that it is not is no news.
        if answer.status != 404 or request.method not in _READS:
            _log.info("request refused", **_said(request, answer), error=str(error))
        return answer


def _leaves_a_body(request: web.BaseRequest, error: Exception | None) -> bool:
    """Whether what comes next on the connection may be a body's rest or a request: nobody knows.

    A client that was not told to continue may leave its body out (RFC 9110 10.1.1); what follows a
    CONNECT is the tunnel's.
    """
    unasked = "Expect" in request.headers and not request.content.is_eof()
    return unasked or request.method == "CONNECT" or isinstance(error, BodyCut)


def _said(request: web.BaseRequest, answer: Answer | web.StreamResponse) -> dict[str, object]:
    return {
        "method": request.method,
        "path": request.raw_path[:_SHOWN],
        "status": answer.status,
        "remote": request.remote,
    }
