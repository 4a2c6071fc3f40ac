"""One HTTP/1.1 connection that costs its client next to nothing.

Client and server share the machine's cores, so every cycle that a client takes is one that its
server doesn't get.  Bodies go out by `sendfile` and come in through one buffer; of a head nothing
is read but what a step needs.  It knows the answers of a registry and no more: a body must have a
length.
"""

from __future__ import annotations

import os
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypeAlias
from urllib.parse import urlsplit

from tests.bench.content import Blob

# What docker's client writes at once: Go's io.Copy takes 32 KiB.
CHUNK_BYTES: Final = 32 << 10
STALL_S: Final = 120
_BUFFER_BYTES: Final = 256 << 10
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LOCATION: Final = re.compile(rb"\r\nlocation: *(\S+)", re.IGNORECASE)

Sink: TypeAlias = Callable[[memoryview], object]


class UnexpectedAnswerError(Exception):
    """A server did not do what was asked of it, so there is nothing to measure."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer whose body of `size` bytes was read."""

    status: int
    head: bytes
    size: int

    @property
    def location(self) -> str:
        """The path and query where its Location points."""
        found = _LOCATION.search(self.head)
        if found is None:
            raise UnexpectedAnswerError(f"no Location in {self.head!r}")
        parts = urlsplit(found[1].decode())
        return f"{parts.path}?{parts.query}" if parts.query else parts.path


class Connection:
    """A connection to a registry at a port of this machine; to be used by one thread."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=STALL_S)
        # A blocking socket whose waits end in the kernel: no poll beside each call.
        self._socket.settimeout(None)
        limit = struct.pack("ll", STALL_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._socket.close()

    def exchange(
        self,
        method: str,
        target: str,
        *,
        expect: int | None,
        headers: str = "",
        content: bytes | None = None,
        sink: Sink | None = None,
    ) -> Answer:
        """Send a request, with its content if it has one, and read the answer into the sink.

        With None, any status is expected.

        Raises:
            UnexpectedAnswerError: The status is not the expected one.
            OSError: The connection broke or stalled.
        """
        if content is not None:
            headers += f"Content-Length: {len(content)}\r\n"
        self._socket.sendall(self._head(method, target, headers) + (content or b""))
        return self._answer(f"{method} {target}", expect, sink, bodiless=method == "HEAD")

    def send_blob(
        self, method: str, target: str, blob: Blob, *, expect: int, chunked: bool
    ) -> Answer:
        """Send a blob as a request's body: with its length, or in chunks as docker does.

        Raises:
            UnexpectedAnswerError: The status is not the expected one.
            OSError: The connection broke or stalled.
        """
        framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {blob.size}"
        head = self._head(
            method, target, f"{framing}\r\nContent-Type: application/octet-stream\r\n"
        )
        self._socket.sendall(head, socket.MSG_MORE)
        if chunked:
            self._send_chunks(blob)
        else:
            self._send_file(blob.file, 0, blob.shared_bytes)
            self._socket.sendall(blob.tail)
        return self._answer(f"{method} {target}", expect, None, bodiless=False)

    def _head(self, method: str, target: str, headers: str) -> bytes:
        host = f"Host: 127.0.0.1:{self._port}\r\n"
        return f"{method} {target} HTTP/1.1\r\n{host}{headers}\r\n".encode("ascii")

    def _send_chunks(self, blob: Blob) -> None:
        for offset in range(0, blob.shared_bytes, CHUNK_BYTES):
            count = min(CHUNK_BYTES, blob.shared_bytes - offset)
            self._socket.sendall(f"{count:x}\r\n".encode(), socket.MSG_MORE)
            self._send_file(blob.file, offset, count)
            self._socket.sendall(b"\r\n", socket.MSG_MORE)
        self._socket.sendall(f"{len(blob.tail):x}\r\n".encode() + blob.tail + b"\r\n0\r\n\r\n")

    def _send_file(self, file: int, offset: int, count: int) -> None:
        while count:
            sent = os.sendfile(self._socket.fileno(), file, offset, count)
            offset += sent
            count -= sent

    def _answer(
        self, request: str, expect: int | None, sink: Sink | None, *, bodiless: bool
    ) -> Answer:
        head, rest = self._read_head()
        status = int(head[9:12])
        found = _LENGTH.search(head)
        size = int(found[1]) if found else 0
        if found is None and (status not in (204, 304)) and not bodiless:
            raise UnexpectedAnswerError(f"{request}: no length in {head!r}")
        if bodiless:
            size = 0
        kept = bytearray()
        wrong = expect is not None and status != expect
        self._read_body(rest, size, kept.extend if wrong else sink)
        if wrong:
            raise UnexpectedAnswerError(f"{request}: {status}, not {expect}: {kept.decode()}")
        return Answer(status, head, size)

    def _read_head(self) -> tuple[bytes, memoryview]:
        filled = 0
        while True:
            count = self._receive(self._buffer[filled:])
            filled += count
            end = bytes(self._buffer[:filled]).find(b"\r\n\r\n")
            if end >= 0:
                return bytes(self._buffer[: end + 2]), self._buffer[end + 4 : filled]

    def _read_body(self, first: memoryview, size: int, sink: Sink | None) -> None:
        left = size - len(first)
        if sink:
            sink(first)
        while left > 0:
            count = self._receive(self._buffer[:left] if left < _BUFFER_BYTES else self._buffer)
            if sink:
                sink(self._buffer[:count])
            left -= count
        if left < 0:
            raise UnexpectedAnswerError("more bytes than the answer's length")

    def _receive(self, into: memoryview) -> int:
        count = self._socket.recv_into(into)
        if count == 0:
            raise ConnectionResetError("the server closed the connection")
        return count
