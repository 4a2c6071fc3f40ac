"""A client's connection: aiohttp's, with limits in time and size, and answers of our own.

What is no request at all is answered here, in the form of all other errors.  Nobody holds a
connection for nothing: a head has to come within `head_s`, the next request within `idle_s`, an
answer has to be taken.  How long a body may pause is the reader's matter (gateway/incoming.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from resource import RLIMIT_NOFILE, getrlimit
from typing import Final

import structlog
from aiohttp import web
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import (
    ContentLengthError,
    InvalidHeader,
    LineTooLong,
    TransferEncodingError,
)
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from gateway.answers import Renderer
from gateway.errors import render_unknown

_HEAD_END: Final = b"\r\n\r\n"
_LINE_BREAK: Final = b"\r\n"

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one connection may take; a test's are shorter.

    `head_s` runs from a head's first byte and `idle_s` from the last answer, or the start; within
    each `stall_s` the client has to take something of its answer.  Of what a refused client goes on
    sending, so much is read that it sees why (G18): `linger_bytes`, for `linger_s`.
    """

    head_s: float = 30.0
    idle_s: float = 75.0
    stall_s: float = 60.0
    linger_s: float = 5.0
    linger_bytes: int = 64 << 20
    # H3: tokens with certificates in them, and lists of tags in a query, are longer than 8 KiB.
    line_bytes: int = 64 << 10
    head_bytes: int = 256 << 10
    header_lines: int = 128
    # Of the process; half of its descriptors are kept for files.
    connections: int = field(default_factory=lambda: getrlimit(RLIMIT_NOFILE)[0] // 2)


class Connection(web.RequestHandler):
    """A connection whose requests are answered also where they are malformed, or end too early."""

    renderer: Renderer
    limits: Limits
    # The body that comes in: the last request's, until that is answered.
    _body: StreamReader = EMPTY_PAYLOAD
    # A body whose request was answered before it had come.
    _spare: StreamReader = EMPTY_PAYLOAD
    _spare_bytes = 0
    # Whether the client has closed its side, with requests still to be begun.
    _ended = False
    # Of a head that has not come whole yet.
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request."""
        return self._waiter is not None and not self._waiter.done()

    def data_received(self, data: bytes) -> None:
        if self._close:
            return
        if self._body.is_eof():  # else it is all body: GiB of it are not searched
            end = data.find(_HEAD_END) + len(_HEAD_END)
            if len(_HEAD_END) <= end < len(data):
                # aiohttp drops a head that comes with what breaks its body's framing: apart, it is
                # a request, and answered as if the break had come later.
                self._feed(data[:end])
                data = data[end:]
        self._feed(data)
        if self.idle:
            self._await_head(data)
        elif self._head_timer is not None:
            self._forget_head()
        if not self._spare.is_eof():
            self._bound_spare(len(data))

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

    def _await_head(self, data: bytes) -> None:
        """Bound a head of which a part has come."""
        if self._head_timer is None:
            if not data.strip(_LINE_BREAK):  # RFC 9112 2.2: to be ignored before a request
                return
            self._head_timer = self._loop.call_later(self.limits.head_s, self._be_late)
        self._head_bytes += len(data)
        if self._head_bytes > self.limits.head_bytes:
            self._refuse(431, "the head is too large")

    def _be_late(self) -> None:
        if self.idle:
            self._refuse(408, "the head did not come in time")

    def _refuse(self, status: int, reason: str) -> None:
        """Answer what is not a request yet, and end."""
        _log.debug("request refused", status=status, reason=reason)
        answer = render_unknown(status, reason)
        if self.transport is not None:
            head = self.renderer.head(answer, "Connection: close\r\n")
            self.transport.write(head + answer.body)
        self._forget_head()
        # Of a connection that is closed with something unread, the client may lose the answer.
        self.close()
        self._head_timer = self._loop.call_later(self.limits.linger_s, self.force_close)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        self._head_bytes = 0

    def _bound_spare(self, size: int) -> None:
        self._spare_bytes += size
        if self._spare_bytes > self.limits.linger_bytes:
            self._spare.feed_eof()  # nobody waits for its end any more
            self.close()

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp never keeps it open
        """Keep a connection open whose client sends no more, until all it asked is answered."""
        if self.idle or not self._request_count or not self._spare.is_eof():
            return False
        if self._messages:
            self._ended = True
        else:
            self.close()  # when what is under way is answered
        if not self._body.is_eof():
            self._break_off("the client sends no more")
        # Under TLS that is the end of both directions.
        return self.transport is not None and not self.transport.get_extra_info("sslcontext")

    def pause_writing(self) -> None:
        """The client takes less than is sent: look later whether it takes any."""
        super().pause_writing()
        self._watch_writing(None)

    def _watch_writing(self, before: int | None) -> None:
        if self.transport is None:
            return
        left = self.transport.get_write_buffer_size()
        if before is not None and left >= before:
            self.transport.abort()
            return
        self._stall_timer = self._loop.call_later(self.limits.stall_s, self._watch_writing, left)

    def resume_writing(self) -> None:
        """It has taken most of it."""
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_head()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        super().connection_lost(exc)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._ended and not self._messages:
            resp.force_close()
        resp, lost = await super().finish_response(request, resp, start_time)
        if self._body is request.content:
            self._body = EMPTY_PAYLOAD  # what still comes is read for politeness only (G18)
            self._spare, self._spare_bytes = request.content, 0
        if self.writing_paused:
            # aiohttp looks at one answer's bytes: a client may ask for many, and take none.
            try:
                await self._drain_helper()
            except ConnectionError:
                lost = True
        return resp, lost

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
        _log.info("request malformed", remote=request.remote, status=status, error=repr(exc)[:200])
        # The parser's message may quote what the client sent: a sentence of ours will do.
        said = _why(exc) if status < 500 else "internal error"
        return self.renderer.response(render_unknown(status, said), close=True)


def _why(error: BaseException | None) -> str:
    match error:
        case LineTooLong():
            return "malformed request: a line or a header is too long"
        case InvalidHeader():
            return "malformed request: a header can't be read"
        case TransferEncodingError() | ContentLengthError():
            return "malformed request: the length of the body is not clear"
        case _:
            return "malformed request: this is no HTTP/1.1"
