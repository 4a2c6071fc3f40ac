"""Send a blob, or spans of one, as the body of a response.

The caller decides what is sent and with which headers; here it is put on the wire in the cheapest
way that fits:

- up to 128 KiB is read first and sent in one write with the head, so a disk that fails still gets
  the client a proper error;
- more goes by sendfile from the store's threads, straight from the page cache to the socket.  The
  threads use duplicates of both descriptors, so neither the end of the connection nor that of the
  request can put another file behind a number that is in use;
- under TLS, or from a store without files, it is read and written in chunks.

A client that leaves or stops reading ends its own response: the connection is aborted, and the
response comes back as if it had been sent.  When bytes that were promised can't be had from the
store the connection is aborted as well, so that nobody takes a part for the whole, and
`StorageFailed` says so.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeAlias

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from gateway.ranges import Span
from node.blobs import OpenBlob
from node.errors import StorageFailed

# Measured: up to here one read and one write are faster than setting up a sendfile.
_SMALL_BYTES: Final = 128 << 10
_CHUNK_BYTES: Final = 256 << 10
# What one call in a thread sends at most, so that many slow disks share the threads fairly.
_SENDFILE_BYTES: Final = 4 << 20
_OCTETS: Final = "application/octet-stream"
# The socket's errors, next to ConnectionError and TimeoutError; all others are the file's.
_CLIENT_GONE: Final = frozenset(
    {errno.ENOTCONN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET}
)

# What a body is made of: text between the parts, and bytes of the blob.
Segment: TypeAlias = bytes | Span


@dataclass(frozen=True, slots=True)
class _Plan:
    """A response before anything of it is sent."""

    status: int
    head: Mapping[str, str]
    segments: Sequence[Segment]
    length: int

    def response(self) -> web.StreamResponse:
        """The response whose body is still to be written."""
        return web.StreamResponse(status=self.status, headers=self._headers())

    def response_with(self, body: bytes) -> web.Response:
        """The response that aiohttp sends in one write."""
        return web.Response(status=self.status, headers=self._headers(), body=body)

    def _headers(self) -> dict[str, str]:
        return {**self.head, "Accept-Ranges": "bytes", "Content-Length": str(self.length)}


def describe_blob(size: int, head: Mapping[str, str]) -> web.StreamResponse:
    """The answer to HEAD: the headers of a whole GET and no body; never a 206 (PROTOCOL B2)."""
    return _plan(size, head, None).response()


async def send_blob(
    request: web.BaseRequest,
    blob: OpenBlob,
    *,
    head: Mapping[str, str],
    threads: Executor,
    spans: Sequence[Span] | None = None,
    stall_s: float = 60.0,
) -> web.StreamResponse:
    """Answer a GET or HEAD with a blob: whole, one span of it, or several as multipart/byteranges.

    `head` is sent as it is, but for Content-Length, Content-Range, Accept-Ranges and the type of
    a multipart body, which are set here.  `threads` are the store's.  A client that takes nothing
    for `stall_s` seconds is cut.  The caller closes the blob, which may be done at once.

    Raises:
        StorageFailed: The store could not give all bytes; the connection is of no more use, or
            nothing was sent yet.
    """
    if request.method == "HEAD":
        return describe_blob(blob.size, head)
    plan = _plan(blob.size, head, spans)
    segments = plan.segments
    # Each part of a multipart body would cost a read of its own, unless it is in memory.
    if plan.length <= _SMALL_BYTES and (len(segments) <= 1 or blob.fileno() is None):
        body = b"".join([await _segment_bytes(blob, segment) for segment in segments])
        return plan.response_with(body)
    response = plan.response()
    async with _whole_or_aborted(request, response):
        writer = await response.prepare(request)
        assert writer is not None
        outlet = _Outlet.open(request, blob, segments)
        if outlet is None:
            await _send_by_hand(response, blob, segments, stall_s)
        else:
            await _send_by_outlet(request, writer, outlet, threads, stall_s)
        await response.write_eof()
    return response


def _plan(size: int, head: Mapping[str, str], spans: Sequence[Span] | None) -> _Plan:
    if spans is None:
        return _Plan(200, head, [Span(0, size - 1)] if size else [], size)
    if len(spans) == 1:
        head = {**head, "Content-Range": spans[0].content_range(size)}
        return _Plan(206, head, spans, spans[0].length)
    boundary = secrets.token_hex(16)
    segments = multipart(spans, size, head.get("Content-Type", _OCTETS), boundary)
    length = sum(len(text) if isinstance(text, bytes) else text.length for text in segments)
    head = {**head, "Content-Type": f"multipart/byteranges; boundary={boundary}"}
    return _Plan(206, head, segments, length)


def multipart(spans: Sequence[Span], size: int, content_type: str, boundary: str) -> list[Segment]:
    """The body of a multipart/byteranges response (RFC 9110 14.6), one part for each span."""
    segments: list[Segment] = []
    opening = f"--{boundary}"
    for span in spans:
        text = (
            f"{opening}\r\nContent-Type: {content_type}\r\n"
            f"Content-Range: {span.content_range(size)}\r\n\r\n"
        )
        segments += [text.encode(), span]
        opening = f"\r\n--{boundary}"
    return [*segments, f"{opening}--\r\n".encode()]


@asynccontextmanager
async def _whole_or_aborted(
    request: web.BaseRequest, response: web.StreamResponse
) -> AsyncIterator[None]:
    """Abort the connection if the body inside does not end well; a client's own end is no error."""
    try:
        yield
    except BaseException as err:
        response.force_close()
        if request.transport is not None:
            request.transport.abort()
        if isinstance(err, ConnectionError | TimeoutError):
            return
        if isinstance(err, OSError):
            if err.errno in _CLIENT_GONE:
                return
            raise StorageFailed(err.strerror or str(err)) from err
        raise


async def _segment_bytes(blob: OpenBlob, segment: Segment) -> bytes:
    if isinstance(segment, bytes):
        return segment
    content = await blob.read(segment.first, segment.length)
    if len(content) != segment.length:
        raise _missing(segment)
    return content


async def _send_by_hand(
    response: web.StreamResponse, blob: OpenBlob, segments: Sequence[Segment], stall_s: float
) -> None:
    """Read and write, as fast as the client takes it."""
    for segment in segments:
        if isinstance(segment, bytes):
            await response.write(segment)
            continue
        for first in range(segment.first, segment.last + 1, _CHUNK_BYTES):
            step = Span(first, min(first + _CHUNK_BYTES - 1, segment.last))
            content = await _segment_bytes(blob, step)
            async with asyncio.timeout(stall_s):
                await response.write(content)


async def _send_by_outlet(
    request: web.BaseRequest,
    writer: AbstractStreamWriter,
    outlet: _Outlet,
    threads: Executor,
    stall_s: float,
) -> None:
    """Send from threads, waiting here whenever the socket is full."""
    job: Future[bool] | None = None
    try:
        async with asyncio.timeout(stall_s):
            await _flush(request, writer)
        while not outlet.done:
            _transport(request)  # or nobody listens any more
            job = threads.submit(outlet.push)
            before = outlet.sent
            full = await asyncio.wrap_future(job)
            writer.output_size += outlet.sent - before
            if full:
                await outlet.wait_writable(stall_s)
    finally:
        # A thread may be at it still if this was cancelled; then the descriptors are closed there.
        if job is None:
            outlet.close()
        else:
            job.add_done_callback(outlet.close)


async def _flush(request: web.BaseRequest, writer: AbstractStreamWriter) -> None:
    """Wait until all that was written is with the kernel, so that nothing can overtake it."""
    transport = _transport(request)
    transport.set_write_buffer_limits(0)
    try:
        await writer.drain()
    finally:
        if not transport.is_closing():
            transport.set_write_buffer_limits()


def _transport(request: web.BaseRequest) -> asyncio.Transport:
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the connection was closed")
    return transport


class _Outlet:
    """Sends segments from a file to a socket, by descriptors of its own.

    `push` belongs in a thread and all else on the loop, one at a time.
    """

    def __init__(self, sink: socket.socket, source: int, segments: Sequence[Segment]) -> None:
        self.sent = 0
        self._sink = sink
        self._source = source
        self._left = deque(segments)

    @classmethod
    def open(
        cls, request: web.BaseRequest, blob: OpenBlob, segments: Sequence[Segment]
    ) -> _Outlet | None:
        """An outlet, or None where bytes can't go from a file to a socket as they are."""
        transport, source = request.transport, blob.fileno()
        if transport is None or source is None or transport.get_extra_info("sslcontext"):
            return None
        connection: socket.socket | None = transport.get_extra_info("socket")
        if connection is None:
            return None
        sink = connection.dup()
        try:
            return cls(sink, os.dup(source), segments)
        except BaseException:
            sink.close()
            raise

    @property
    def done(self) -> bool:
        """Whether the kernel has taken everything."""
        return not self._left

    def push(self) -> bool:
        """Send some megabytes, or less if the socket is full: then True.

        Raises:
            StorageFailed: The file is shorter than it was.
            OSError: Of the socket or of the file.
        """
        budget = _SENDFILE_BYTES
        try:
            while self._left and budget > 0:
                sent = self._push_one(self._left[0], budget)
                self.sent += sent
                budget -= sent
        except BlockingIOError:
            return True
        return False

    def _push_one(self, segment: Segment, most: int) -> int:
        """Send a part of the first segment, and keep the rest as the first."""
        rest: Segment | None
        if isinstance(segment, bytes):
            more = socket.MSG_MORE if len(self._left) > 1 else 0
            sent = self._sink.send(segment, more)
            rest = segment[sent:] or None
        else:
            count = min(segment.length, most)
            sent = os.sendfile(self._sink.fileno(), self._source, segment.first, count)
            if not sent:
                raise _missing(segment)
            rest = Span(segment.first + sent, segment.last) if sent < segment.length else None
        if rest is None:
            self._left.popleft()
        else:
            self._left[0] = rest
        return sent

    async def wait_writable(self, stall_s: float) -> None:
        """Wait until the socket takes bytes again, or has failed.

        Raises:
            TimeoutError: It did not for `stall_s` seconds.
        """
        loop, number = asyncio.get_running_loop(), self._sink.fileno()
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_writer(number, _settle, ready)
        try:
            async with asyncio.timeout(stall_s):
                await ready
        finally:
            loop.remove_writer(number)

    def close(self, _job: Future[bool] | None = None) -> None:
        """Let go of the descriptors."""
        self._sink.close()
        os.close(self._source)


def _settle(ready: asyncio.Future[None]) -> None:
    """Wake who waits; a writer is called at every turn of the loop until it is removed."""
    if not ready.done():
        ready.set_result(None)


def _missing(span: Span) -> StorageFailed:
    return StorageFailed(f"a blob ends before its byte {span.last}")
