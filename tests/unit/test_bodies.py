"""Blobs as bodies, over real connections: both loops, from files and from memory, under TLS."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.bodies import describe_blob, multipart
from gateway.ranges import Span
from node.config_models import Tls
from node.errors import StorageFailed
from node.tls import calling, listening
from tests.authority import Authority
from tests.blob_server import (
    CONTENTS,
    HEAD,
    HUGE,
    LARGE,
    SMALL,
    Longer,
    Server,
    TlsEnds,
    ask,
    client,
    connect,
    leave_early,
    open_descriptors,
    receive,
    running,
    settled_descriptors,
)
from tests.fake_blobs import Call
from tests.waiting import eventually_sync


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsEnds:
    """Both ends of TLS, under an authority of their own."""
    authority = Authority.make(tmp_path_factory.mktemp("tls") / "authority")
    pair = authority.sign("server")
    ours = listening(Tls(certificate=pair.certificate, key=pair.key))
    assert ours is not None
    return TlsEnds(ours, calling(authority.certificate, Tls()))


@pytest.fixture(
    params=["asyncio-files", "uvloop-files", "uvloop-memory", "asyncio-tls", "uvloop-tls"]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of each kind in turn."""
    loop, _, kind = str(request.param).partition("-")
    ends = request.getfixturevalue("tls") if kind == "tls" else None
    with running(loop, None if kind == "memory" else tmp_path / "blobs", tls=ends) as found:
        yield found


@pytest.fixture(params=["asyncio", "uvloop", "uvloop-tls"])
def impatient(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server of files that cuts who takes nothing for a fifth of a second."""
    loop, _, kind = str(request.param).partition("-")
    ends = request.getfixturevalue("tls") if kind else None
    with running(loop, tmp_path / "blobs", tls=ends, stall_s=0.2) as found:
        yield found


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
    eventually_sync(lambda: open_descriptors() <= before, 60, "all descriptors are closed")
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
    eventually_sync(lambda: open_descriptors() <= before, 60, "all descriptors are closed")


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
    eventually_sync(lambda: open_descriptors() <= before, 60, "all descriptors are closed")
