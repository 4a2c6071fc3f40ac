"""A server of blobs in a thread with a loop of its own, and sockets to be its clients."""

from __future__ import annotations

import asyncio
import http.client
import queue
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from gateway.bodies import send_blob
from gateway.ranges import choose_spans
from node.blob_files import FileBlobs
from node.blobs import BlobStore, OpenBlob, SessionId
from node.errors import RegistryError
from tests.blob_calls import put
from tests.fake_blobs import MemoryBlobs
from tests.waiting import eventually_sync

EMPTY: Final = b""
SMALL: Final = b"0123456789" * 10
LARGE: Final = bytes(range(256)) * 8_000
# More than the kernel keeps for a client that does not read.
HUGE: Final = bytes(range(256)) * 80_000
CONTENTS: Final = {"/empty": EMPTY, "/small": SMALL, "/large": LARGE, "/huge": HUGE}
HEAD: Final = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": "sha256:x"}
ETAG: Final = '"sha256:x"'
LOOPS: Final[dict[str, Callable[[], asyncio.AbstractEventLoop]]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


class Longer:
    """An OpenBlob that promises more bytes than there are, like a file that was cut."""

    def __init__(self, blob: OpenBlob) -> None:
        self._size = blob.size + 10
        self.fileno, self.read, self.close = blob.fileno, blob.read, blob.close

    @property
    def size(self) -> int:
        """Length in bytes, and ten more."""
        return self._size


class Server:
    """A server of the contents, and what its handler said of each request."""

    def __init__(self, stall_s: float) -> None:
        self.outcomes: queue.Queue[object] = queue.Queue()
        self.tasks: queue.Queue[asyncio.Task[Any]] = queue.Queue()
        self.wrap: Callable[[OpenBlob], OpenBlob] = lambda blob: blob
        self.memory = MemoryBlobs()
        self.port = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        self.trusting: ssl.SSLContext | None = None
        self._stall_s = stall_s
        self._ready = threading.Event()
        self._end = asyncio.Event()

    def ready(self) -> None:
        """Wait until it listens."""
        assert self._ready.wait(10)

    def stop(self) -> None:
        """Let `serve` return."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._end.set)

    async def serve(self, root: Path | None, tls: ssl.SSLContext | None) -> None:
        """Serve files, or memory, until stopped; with one thread, so that who holds it is seen."""
        self.loop = asyncio.get_running_loop()
        files = None if root is None else await FileBlobs.open_store(root, threads=1)
        blobs: BlobStore = files or self.memory
        threads = files.threads if files else ThreadPoolExecutor(1)
        names = {
            path: await put(blobs, content, SessionId(path[1:]))
            for path, content in CONTENTS.items()
        }

        async def answer(request: web.BaseRequest) -> web.StreamResponse:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.put(task)
            blob = self.wrap(await blobs.open(*names[request.path]))
            try:
                return await self._answer(request, blob, threads)
            finally:
                blob.close()

        runner = web.ServerRunner(
            web.Server(answer, access_log=None, max_field_size=1 << 16), shutdown_timeout=1
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()
        await asyncio.to_thread(threads.shutdown)

    async def _answer(
        self, request: web.BaseRequest, blob: OpenBlob, threads: ThreadPoolExecutor
    ) -> web.StreamResponse:
        wanted, condition = request.headers.get("Range"), request.headers.get("If-Range")
        try:
            spans = choose_spans(wanted, condition, etag=ETAG, size=blob.size)
            response = await send_blob(
                request, blob, head=HEAD, threads=threads, spans=spans, stall_s=self._stall_s
            )
        except RegistryError as err:
            self.outcomes.put(err)
            return web.Response(status=503)
        except BaseException as err:
            self.outcomes.put(err)
            raise
        self.outcomes.put(response.status)
        return response


@dataclass(frozen=True, slots=True)
class TlsEnds:
    """What a server and its clients need for TLS."""

    listening: ssl.SSLContext
    trusting: ssl.SSLContext


@contextmanager
def running(
    loop: str, root: Path | None, *, tls: TlsEnds | None = None, stall_s: float = 10
) -> Iterator[Server]:
    """A server on a free port of the loopback, in a thread."""
    server = Server(stall_s)
    server.trusting = tls.trusting if tls else None

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(server.serve(root, tls.listening if tls else None))

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(run)
        try:
            server.ready()
            yield server
        finally:
            server.stop()
            served.result(20)


def connect(server: Server, *, window: int = 0) -> socket.socket:
    """A connection; `window` keeps what the kernel takes in for it small."""
    connection = socket.socket()
    connection.settimeout(10)
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", server.port))
    if server.trusting is None:
        return connection
    return server.trusting.wrap_socket(connection, server_hostname="127.0.0.1")


@contextmanager
def client(server: Server) -> Iterator[http.client.HTTPConnection]:
    """A client that goes on with one connection, and fails if it has to make a second."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.sock = connect(server)
    connection.auto_open = 0
    try:
        yield connection
    finally:
        connection.close()


def ask(
    connection: http.client.HTTPConnection, path: str, method: str = "GET", **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request and its whole answer."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=sent)
    with connection.getresponse() as response:
        return response.status, response.headers, response.read()


def open_descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def settled_descriptors() -> int:
    """How many there are while a condition is waited for, which takes some itself."""
    return eventually_sync(open_descriptors, 60, "a count of descriptors")


def leave_early(server: Server) -> None:
    """Ask for much, take a little and reset the connection."""
    with connect(server, window=4096) as connection:
        connection.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def receive(connection: socket.socket) -> bytes:
    """Some bytes; none at the end, however it came."""
    try:
        return connection.recv(1 << 20)
    except ConnectionResetError:
        return b""
