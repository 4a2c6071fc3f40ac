"""Blobs as bodies, over real connections: under both loops, from files and from memory, under TLS.

The server runs in a thread with a loop of its own; the tests are its clients, with plain sockets.
"""

from __future__ import annotations

import asyncio
import http.client
import queue
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import uvloop
from aiohttp import web

from gateway.bodies import describe_blob, multipart, send_blob
from gateway.ranges import Span, choose_spans
from node.blob_files import FileBlobs
from node.blobs import BlobStore, OpenBlob, SessionId
from node.errors import RegistryError, StorageFailed
from tests.blob_calls import put
from tests.fake_blobs import Call, MemoryBlobs
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


@contextmanager
def running(
    loop: str, root: Path | None, *, tls: ssl.SSLContext | None = None, stall_s: float = 10
) -> Iterator[Server]:
    """A server on a free port of the loopback, in a thread."""
    server = Server(stall_s)

    def run() -> None:
        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            runner.run(server.serve(root, tls))

    with ThreadPoolExecutor(1) as thread:
        served = thread.submit(run)
        try:
            server.ready()
            yield server
        finally:
            server.stop()
            served.result(20)


@pytest.fixture(params=["asyncio-files", "uvloop-files", "uvloop-memory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of each kind in turn."""
    loop, _, store = str(request.param).partition("-")
    with running(loop, tmp_path / "blobs" if store == "files" else None) as found:
        yield found


@pytest.fixture(params=list(LOOPS))
def impatient(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of files that cuts who takes nothing for a fifth of a second."""
    with running(request.param, tmp_path / "blobs", stall_s=0.2) as found:
        yield found


def connect(server: Server, *, window: int = 0) -> socket.socket:
    """A plain connection; `window` keeps what the kernel takes in for it small."""
    connection = socket.socket()
    connection.settimeout(10)
    if window:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    connection.connect(("127.0.0.1", server.port))
    return connection


@contextmanager
def client(server: Server) -> Iterator[http.client.HTTPConnection]:
    """A client that goes on with one connection, and fails if it has to make a second."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.connect()
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
    return eventually_sync(open_descriptors, 5, "a count of descriptors")


def test_bodies_of_any_size_share_one_connection(server: Server) -> None:
    """Each body comes whole, with its headers, and the connection goes on after it."""
    with client(server) as connection:
        for path in ("/small", "/large", "/empty", "/huge", "/large", "/small"):
            status, headers, body = ask(connection, path)
            assert (status, body == CONTENTS[path]) == (200, True)
            assert headers["Content-Length"] == str(len(CONTENTS[path]))
            assert headers["Accept-Ranges"] == "bytes"
            assert {name: headers[name] for name in HEAD} == HEAD


def test_requests_sent_at_once_are_answered_in_order(server: Server) -> None:
    """A client that does not wait for the first body gets each behind the one before."""
    paths = ["/large", "/small", "/huge", "/empty", "/large"]
    with connect(server) as connection:
        asked = [f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n" for path in paths]
        asked.append("GET /small HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        connection.sendall("".join(asked).encode())
        with connection.makefile("rb") as answers:
            for path in (*paths, "/small"):
                assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                headers = http.client.parse_headers(answers)
                assert answers.read(int(headers["Content-Length"])) == CONTENTS[path]
            assert answers.read() == b""


@pytest.mark.parametrize("path", list(CONTENTS))
def test_head_tells_what_get_would_send(server: Server, path: str) -> None:
    """HEAD has the headers of the whole, no body, and never is a 206 (PROTOCOL B2)."""
    with client(server) as connection:
        _, whole, _ = ask(connection, path)
        for wanted in ({}, {"Range": "bytes=0-0"} if CONTENTS[path] else {}):
            status, headers, body = ask(connection, path, "HEAD", **wanted)
            assert (status, body) == (200, b"")
            assert {**headers, "Date": ""} == {**whole, "Date": ""}


def test_head_needs_no_blob() -> None:
    """What the metadata knows is enough for the headers."""
    response = describe_blob(42, HEAD)
    assert response.status == 200
    assert dict(response.headers) == {**HEAD, "Accept-Ranges": "bytes", "Content-Length": "42"}


@pytest.mark.parametrize(
    ("path", "wanted", "first", "last"),
    [
        ("/small", "bytes=3-7", 3, 7),
        ("/small", "bytes=-1", 99, 99),
        ("/large", "bytes=0-", 0, len(LARGE) - 1),
        ("/large", "bytes=1000000-9999999", 1_000_000, len(LARGE) - 1),
        ("/huge", "bytes=5-19999999", 5, 19_999_999),
    ],
)
def test_one_range_is_answered_with_its_bytes(
    server: Server, path: str, wanted: str, first: int, last: int
) -> None:
    """206 with exactly these bytes, and headers that say which."""
    content = CONTENTS[path]
    with client(server) as connection:
        status, headers, body = ask(connection, path, Range=wanted)
        assert status == 206
        assert body == content[first : last + 1]
        assert headers["Content-Range"] == f"bytes {first}-{last}/{len(content)}"
        assert headers["Content-Length"] == str(last + 1 - first)
        assert headers["Content-Type"] == HEAD["Content-Type"]
        assert ask(connection, path, Range=wanted, If_Range='"old"')[0] == 200


def parts_of(body: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """The parts of a multipart/byteranges body: what each says it is, and its bytes."""
    opening = f"--{boundary}".encode()
    assert body.startswith(opening + b"\r\n")
    assert body.endswith(b"\r\n" + opening + b"--\r\n")
    parts = []
    for part in (b"\r\n" + body).split(b"\r\n" + opening)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[:2] == ["", f"Content-Type: {HEAD['Content-Type']}"]
        parts.append((lines[2].removeprefix("Content-Range: "), content))
    return parts


@pytest.mark.parametrize(
    ("path", "spans"),
    [
        pytest.param("/small", [(50, 59), (0, 9), (5, 14)], id="out of order and overlapping"),
        pytest.param("/large", [(0, 0), (2_000_000, 2_000_999)], id="small parts of a large blob"),
        pytest.param("/huge", [(9, 19_000_000), (0, 19_000_000)], id="large parts"),
        pytest.param("/huge", [(n * 20_000, n * 20_000 + n) for n in range(999)], id="very many"),
    ],
)
def test_several_ranges_come_as_parts_in_request_order(
    server: Server, path: str, spans: list[tuple[int, int]]
) -> None:
    """multipart/byteranges, one part for each range (PROTOCOL B7), and the connection goes on."""
    content = CONTENTS[path]
    with client(server) as connection:
        wanted = "bytes=" + ",".join(f"{first}-{last}" for first, last in spans)
        status, headers, body = ask(connection, path, Range=wanted)
        assert status == 206
        kind, _, boundary = headers["Content-Type"].partition("; boundary=")
        assert kind == "multipart/byteranges"
        assert parts_of(body, boundary) == [
            (f"bytes {first}-{last}/{len(content)}", content[first : last + 1])
            for first, last in spans
        ]
        assert ask(connection, "/small")[2] == SMALL


def test_the_text_of_a_multipart_body() -> None:
    """Byte for byte the shape of RFC 9110 14.6."""
    assert multipart([Span(0, 1), Span(5, 5)], 9, "a/b", "XY") == [
        b"--XY\r\nContent-Type: a/b\r\nContent-Range: bytes 0-1/9\r\n\r\n",
        Span(0, 1),
        b"\r\n--XY\r\nContent-Type: a/b\r\nContent-Range: bytes 5-5/9\r\n\r\n",
        Span(5, 5),
        b"\r\n--XY--\r\n",
    ]


def test_a_slow_client_gets_everything(server: Server) -> None:
    """A client that takes little at a time makes the server wait, and loses nothing."""
    with connect(server, window=4096) as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = bytearray()
        while chunk := connection.recv(3_001):
            received += chunk
    assert bytes(received).partition(b"\r\n\r\n")[2] == LARGE


def leave_early(server: Server) -> None:
    """Ask for much, take a little and reset the connection."""
    with connect(server, window=4096) as connection:
        connection.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1_000)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_clients_that_leave_cost_nothing(server: Server) -> None:
    """A client gone in the middle is no error, and its descriptors come back."""
    with client(server) as connection:
        ask(connection, "/huge")
    before = settled_descriptors()
    while not server.outcomes.empty():
        server.outcomes.get()
    for _ in range(8):
        leave_early(server)
        assert server.outcomes.get(timeout=10) == 200
    eventually_sync(lambda: open_descriptors() <= before, 5, "all descriptors are closed")
    with client(server) as connection:
        assert ask(connection, "/huge")[2] == HUGE


def test_clients_that_stop_reading_hold_no_thread_and_are_cut(impatient: Server) -> None:
    """With one thread and five stalled clients others are served; the five end at their limit."""
    before = settled_descriptors()
    stalled = [connect(impatient, window=4096) for _ in range(5)]
    for connection in stalled:
        connection.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(5) == b"HTTP/"
    with client(impatient) as other:
        assert ask(other, "/large")[2] == LARGE
    assert [impatient.outcomes.get(timeout=10) for _ in range(6)] == [200] * 6
    for connection in stalled:
        received = 0
        with connection:
            while chunk := receive(connection):
                received += len(chunk)
        assert received < len(HUGE)
    eventually_sync(lambda: open_descriptors() <= before, 5, "all descriptors are closed")


def receive(connection: socket.socket) -> bytes:
    """Some bytes; none at the end, however it came."""
    try:
        return connection.recv(1 << 20)
    except ConnectionResetError:
        return b""


def test_a_blob_that_ends_early_breaks_the_connection(server: Server) -> None:
    """Nobody takes a part for the whole: fewer bytes than promised end in a broken connection."""
    server.wrap = Longer
    for wanted in ({}, {"Range": f"bytes=0-9,100-{len(LARGE) + 9}"}):
        with client(server) as connection, pytest.raises(http.client.IncompleteRead):
            ask(connection, "/large", **wanted)
        assert isinstance(server.outcomes.get(timeout=10), StorageFailed)


def test_a_small_blob_that_ends_early_gets_an_error(server: Server) -> None:
    """What is read before the head is sent can still be answered properly."""
    server.wrap = Longer
    with client(server) as connection:
        assert ask(connection, "/small")[0] == 503
    assert isinstance(server.outcomes.get(timeout=10), StorageFailed)


def test_a_read_that_fails_breaks_the_connection() -> None:
    """An error of the store in the middle of a body is told to the server, not to the client."""
    with running("uvloop", None) as server, client(server) as connection:
        server.memory.faults.fail_next(Call.READ, StorageFailed("broken"))
        with pytest.raises(http.client.IncompleteRead):
            ask(connection, "/large")
        assert isinstance(server.outcomes.get(timeout=10), StorageFailed)


def test_a_cancelled_response_gives_everything_back(server: Server) -> None:
    """A handler that is cancelled in the middle breaks its connection and leaves nothing open."""
    before = settled_descriptors()
    for _ in range(5):
        with connect(server, window=4096) as connection:
            connection.sendall(b"GET /huge HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(5) == b"HTTP/"
            assert server.loop is not None
            server.loop.call_soon_threadsafe(server.tasks.get(timeout=10).cancel)
            assert isinstance(server.outcomes.get(timeout=10), asyncio.CancelledError)
            while receive(connection):
                pass
    eventually_sync(lambda: open_descriptors() <= before, 5, "all descriptors are closed")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl program")
@pytest.mark.parametrize("loop", list(LOOPS))
def test_tls_gets_the_same_bytes(loop: str, tmp_path: Path) -> None:
    """Under TLS the bytes are read and written, ranges included, on one connection."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    made += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(key),
        "-out",
        str(certificate),
    ]
    subprocess.run(made, check=True, capture_output=True)
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ours.load_cert_chain(certificate, key)
    theirs = ssl.create_default_context(cafile=str(certificate))
    with running(loop, tmp_path / "blobs", tls=ours) as server:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", server.port, timeout=10, context=theirs
        )
        for path in CONTENTS:
            assert ask(connection, path)[2] == CONTENTS[path]
        assert ask(connection, "/large", Range="bytes=7-1000006")[2] == LARGE[7:1_000_007]
        assert ask(connection, "/huge", Range="bytes=0-0,9-9")[0] == 206
        connection.close()
