"""Answers: responses that are whole in memory, and how they go out in one write.

A registry's hot path answers small things thousands of times a second.  aiohttp's own Response
takes half of such a request's time, so these are written as bytes at once; whatever is streamed
is left to it (gateway/bodies.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, NamedTuple

from aiohttp import HttpVersion10, web

_STATUS_LINES: Final = {s.value: f"HTTP/1.1 {s.value} {s.phrase}" for s in HTTPStatus}
# RFC 9110 8.6 and 15.4.5: neither has a body, and a length would be that of another answer.
_NO_CONTENT: Final = frozenset({204, 304})


class Answer(NamedTuple):
    """A response that is whole in memory; to HEAD its body is left out and its length kept."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


class Renderer:
    """Turns answers into bytes; `always` are the headers of every response."""

    def __init__(self, always: Mapping[str, str]) -> None:
        self._always = _lines(always)
        self._second = 0
        self._date = ""

    def response(self, answer: Answer, *, close: bool = False) -> WholeResponse:
        """What aiohttp sends; with `close` it is its connection's last."""
        return WholeResponse(self, answer, close=close)

    def head(self, answer: Answer, connection: str) -> bytes:
        """The status line and the headers, to the empty line that ends them."""
        length = "" if answer.status in _NO_CONTENT else f"Content-Length: {len(answer.body)}\r\n"
        return (
            f"{_STATUS_LINES[answer.status]}\r\n{self._always}{_lines(answer.headers)}"
            f"{length}{self._now()}{connection}\r\n"
        ).encode("utf-8", "surrogateescape")

    def _now(self) -> str:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._date = f"Date: {formatdate(now, usegmt=True)}\r\n"
        return self._date


class WholeResponse(web.StreamResponse):
    """An answer on its way."""

    def __init__(self, renderer: Renderer, answer: Answer, *, close: bool) -> None:
        super().__init__(status=answer.status)
        self._renderer = renderer
        self._answer = answer
        if close:
            self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send all of it."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        connection = ""
        if not self._keep_alive:
            connection = "Connection: close\r\n"
        elif request.version == HttpVersion10:
            connection = "Connection: keep-alive\r\n"
        answer = self._answer
        head = self._renderer.head(answer, connection)
        if request.method == "HEAD" or answer.status in _NO_CONTENT:
            await request.writer.write(head)
        else:
            await request.writer.write(head + answer.body)

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to be sent."""


def _lines(headers: Mapping[str, str]) -> str:
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers) or text.count("\r") != len(headers):
        raise ValueError("a header may not hold a line break")
    return text
