"""What one connection may take: time, bytes, other connections' room; and where a request ends."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest

from gateway.connection import Limits
from gateway.incoming import Incoming
from tests.registry import LAYER, Served, digest_of, served
from tests.waiting import eventually

SOON_S: Final = 0.2
# Where a request is to be heard before.
LATER_S: Final = 1.0
ANSWER_S: Final = 30.0
HOST: Final = b" HTTP/1.1\r\nHost: x\r\n"
PING: Final = b"GET /v2/" + HOST + b"\r\n"
UPLOADS: Final = "/v2/team/app/blobs/uploads/"


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """An empty registry, with the usual limits."""
    async with served() as registry:
        yield registry


async def _talk(registry: Served, *sent: bytes) -> tuple[list[int], bytes]:
    """Send bytes, and read to the end: the statuses of the answers, and the last body."""
    async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
        for content in sent:
            writer.write(content)
        return _answers(await _rest(reader))


async def _rest(reader: asyncio.StreamReader) -> bytes:
    """All that comes; who wrote to a connection that had been cut is told so by a reset."""
    content = b""
    with suppress(ConnectionError):
        while part := await reader.read(1 << 16):
            content += part
    return content


def _answers(content: bytes) -> tuple[list[int], bytes]:
    *heads, last = content.split(b"HTTP/1.1 ")[1:] or [b""]
    statuses = [int(head[:3]) for head in (*heads, last) if head]
    return statuses, last.partition(b"\r\n\r\n")[2]


def _code(body: bytes) -> str:
    return str(json.loads(body)["errors"][0]["code"])


# --- time


async def test_a_head_that_takes_its_time() -> None:
    """A head that does not come whole in time is 408, however often a byte of it comes."""
    async with served(limits=Limits(head_s=SOON_S, linger_s=SOON_S)) as registry:
        async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
            writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX: ")
            while b"408" not in (got := await _some(reader)):
                assert not got
                writer.write(b"y")
            _, body = _answers(got + await reader.read())
        assert _code(body) == "UNKNOWN"
        assert (await registry.ask("GET", "/v2/")).status == 200


async def _some(reader: asyncio.StreamReader) -> bytes:
    try:
        async with asyncio.timeout(SOON_S / 10):
            return await reader.read(1 << 16)
    except TimeoutError:
        return b""


async def test_a_head_in_pieces_is_a_head(registry: Served) -> None:
    """A head may come byte by byte, and after line breaks that belong to nothing."""
    end = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
        for byte in b"\r\n\r\n" + PING + end:
            writer.write(bytes([byte]))
            await writer.drain()
        assert _answers(await reader.read())[0] == [200, 200]


@pytest.mark.parametrize("sent", [b"", PING, b"\r\n"], ids=["nothing", "a request", "a break"])
async def test_a_connection_without_requests_ends(sent: bytes) -> None:
    """Who asks for nothing, at first or any more, is cut after a time, without a word."""
    async with served(limits=Limits(idle_s=LATER_S)) as registry:
        assert (await _talk(registry, sent))[0] == ([200] if sent == PING else [])


async def test_a_request_that_takes_long_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client whose upload pauses longer than a connection may be idle goes on."""
    async with served(limits=Limits(head_s=LATER_S, idle_s=LATER_S)) as registry:
        location = await registry.start_upload()
        async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
            writer.write(f"PATCH {location}".encode() + HOST + b"Content-Length: 4\r\n\r\nab")
            async with registry.connected() as (idle, _):
                await idle.read()  # begun later, and ended before
            writer.write(b"cd")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202 ")


@pytest.mark.parametrize("row", ["U36"])
async def test_a_body_that_stalls(
    registry: Served, monkeypatch: pytest.MonkeyPatch, row: str
) -> None:
    """A body that pauses for too long is 408 and the connection's last; what came is kept."""
    monkeypatch.setitem(Incoming.__init__.__kwdefaults__ or {}, "idle_s", SOON_S)
    location = await registry.start_upload()
    async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
        writer.write(f"PATCH {location}".encode() + HOST + b"Content-Length: 9\r\n\r\nabc")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"\r\nConnection: close\r\n" in head
        assert _code(await reader.readuntil(b"}]}")) == "SIZE_INVALID"
    assert (await registry.ask("GET", location)).headers["Range"] == "0-2"


async def test_a_client_that_takes_nothing() -> None:
    """Who asks for more than it takes is cut, and its answers are not piled up."""
    async with served(limits=Limits(stall_s=LATER_S)) as registry:
        content = bytes(100_000)
        path = f"/v2/team/app/blobs/{await registry.push_blob(content)}"
        await registry.client.close()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", registry.port))
            client.setblocking(False)
            requests = (f"GET {path}".encode() + HOST + b"\r\n") * 500
            await asyncio.get_running_loop().sock_sendall(client, requests)
            await eventually(lambda: _connections() == 1, ANSWER_S, "it is served")
            await eventually(lambda: not _connections(), ANSWER_S, "the client is cut")
        value = registry.metrics.get_sample_value
        labels = {"endpoint": "get-blob", "status": "200"}
        assert (value("entrepot_http_requests_total", labels) or 0) < 400


def _connections() -> int:
    """How many connections are served; each has a task."""
    names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
    return names.count("RequestHandler.start")


async def test_idle_connections_hold_up_no_end() -> None:
    """The drain closes idle connections, and does not wait for their clients to do so."""
    async with asyncio.timeout(ANSWER_S), AsyncExitStack() as stack:
        async with served() as registry:
            reader, writer = await stack.enter_async_context(registry.connected())
            writer.write(PING)
            assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
        assert await reader.read() == b""


# --- sizes


async def test_a_head_without_end() -> None:
    """A head whose fields are short and never end is 431."""
    async with served(limits=Limits(head_bytes=500, linger_s=SOON_S)) as registry:
        lines = [f"X-{n}: y\r\n".encode() for n in range(100)]
        statuses, body = await _talk(registry, b"GET /v2/" + HOST, b"".join(lines))
        assert (statuses, _code(body)) == ([431], "UNKNOWN")


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET /v2/?" + b"q" * (65 << 10) + HOST, id="a long line"),
        pytest.param(b"GET /v2/" + HOST + b"X: " + b"y" * (65 << 10) + b"\r\n", id="a long field"),
        pytest.param(b"GET /v2/" + HOST + b"X: y\r\n" * 200, id="many fields"),
        pytest.param(b"GET /v2/ HTTP/1.1\r\n", id="no host"),
        pytest.param(b"GET /v2/" + HOST + b"Host: y\r\n", id="two hosts"),
    ],
)
async def test_heads_that_are_refused(registry: Served, head: bytes) -> None:
    """What is too long, too much or lacks what HTTP demands is 400, and the connection's last."""
    statuses, body = await _talk(registry, head + b"\r\n")
    assert (statuses, _code(body)) == ([400], "UNKNOWN")


@pytest.mark.parametrize("row", ["H3"])
async def test_long_lines_are_taken(registry: Served, row: str) -> None:
    """A field and a query of 60 KiB, a hundred fields and a thousand parameters are no error."""
    long = "x" * (60 << 10)
    many = "&".join(f"a{n}=b" for n in range(1000))
    accepts = b"Accept: application/json\r\n" * 100
    assert (await registry.ask("GET", f"/v2/?{long}")).status == 200
    assert (await registry.ask("GET", f"/v2/_catalog?{many}&n=0")).status == 200
    assert (await registry.ask("GET", "/v2/", headers={"Authorization": long})).status == 200
    head = b"GET /v2/" + HOST + accepts + b"Connection: close\r\n\r\n"
    assert (await _talk(registry, head))[0] == [200]


@pytest.mark.parametrize("row", ["G18"])
async def test_not_everything_of_a_refused_body_is_read(row: str) -> None:
    """A client that is refused, and sends on and on, is cut after so many bytes."""
    limits = Limits(linger_bytes=1 << 20, linger_s=600)
    async with served(limits=limits) as registry, registry.connected() as (reader, writer):
        head = f"PATCH {UPLOADS}none".encode() + HOST
        writer.write(head + f"Content-Length: {1 << 40}\r\n\r\n".encode())
        assert (await reader.readuntil(b"}]}")).startswith(b"HTTP/1.1 404 ")
        async with asyncio.timeout(ANSWER_S):
            with pytest.raises(ConnectionError):
                await _send_on(writer)


async def _send_on(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(bytes(256 << 10))
        await writer.drain()


async def test_room_is_made_for_who_asks() -> None:
    """Where there are as many connections as may be, one that asks for nothing gives way."""
    async with served(limits=Limits(connections=2)) as registry:
        location = await registry.start_upload()
        async with asyncio.timeout(ANSWER_S), registry.connected() as (busy, writer):
            writer.write(f"PATCH {location}".encode() + HOST + b"Content-Length: 2\r\n\r\na")
            await eventually(lambda: bool(registry.blobs._pieces), 60, "the first byte arrives")
            async with registry.connected() as (idle, _):
                assert (await _talk(registry, PING.replace(b"\r\n\r\n", b"\r\n" + CLOSE)))[0]
                assert await idle.read() == b""
            writer.write(b"b")
            assert (await busy.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 202 ")


# --- where a request ends

CLOSE: Final = b"Connection: close\r\n\r\n"
CHUNKED: Final = b"Transfer-Encoding: chunked\r\n"
NEXT: Final = b"GET /v2/" + HOST + CLOSE

CLEAR: Final = {
    "a length": (b"Content-Length: 2\r\n\r\nab", 2),
    "chunks": (CHUNKED + b"\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n", 2),
    "chunks in capitals": (b"TRANSFER-ENCODING:\tCHUNKED\r\n\r\n2\r\nab\r\n0\r\n\r\n", 2),
    "a chunk's extension": (CHUNKED + b'\r\n2;a="b"\r\nab\r\n0\r\n\r\n', 2),
    "trailers": (CHUNKED + b"\r\n2\r\nab\r\n0\r\nX: y\r\n\r\n", 2),
    "leading zeros": (CHUNKED + b"\r\n0002\r\nab\r\n0\r\n\r\n", 2),
    "nothing": (b"Content-Length: 0\r\n\r\n", 0),
    "an unknown expectation": (b"Expect: much\r\nContent-Length: 2\r\n\r\nab", 2),
}

UNCLEAR: Final = {
    "a length and chunks": b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "one length twice": b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nab",
    "a list of lengths": b"Content-Length: 2, 2\r\n\r\nab",
    "a sign": b"Content-Length: +2\r\n\r\nab",
    "a hexadecimal length": b"Content-Length: 0x2\r\n\r\nab",
    "no length": b"Content-Length: \r\n\r\n",
    "a length of 64 bits": b"Content-Length: 18446744073709551615\r\n\r\n",
    "a length of more": b"Content-Length: 18446744073709551616\r\n\r\n",
    "a length of 5000 digits": b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
    "chunked twice": CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "a list of chunked": b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, then another": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "another, then chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "another": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a blank that is none": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded line": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a blank first": b" Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a line feed alone": b"X: y\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "a head of line feeds": b"X: y\n\n",
    "a carriage return alone": b"X: y\rTransfer-Encoding: chunked\r\n\r\n",
    "a NUL": b"X: y\x00\r\n\r\n",
    "no name": b": y\r\n\r\n",
}

BROKEN: Final = {
    "a negative size": b"-2\r\nab\r\n0\r\n\r\n",
    "a prefix": b"0x2\r\nab\r\n0\r\n\r\n",
    "a size of 72 bits": b"f" * 18 + b"\r\nab\r\n0\r\n\r\n",
    "a blank after the size": b"2 \r\nab\r\n0\r\n\r\n",
    "line feeds alone": b"2\nab\n0\n\n",
    "a line feed after the bytes": b"2\r\nab\n0\r\n\r\n",
    "a line feed in an extension": b"2;a\nb\r\nab\r\n0\r\n\r\n",
    "a length in the trailers": b"2\r\nab\r\n0\r\nContent-Length: 9\r\n\r\n",
    "trailers without end": b"0\r\n" + b"X: y\r\n" * 200,
}


@pytest.mark.parametrize(("sent", "size"), CLEAR.values(), ids=CLEAR)
async def test_a_body_ends_where_it_says(registry: Served, sent: bytes, size: int) -> None:
    """After a body, however it is framed, the next request is the next request."""
    location = await registry.start_upload()
    head = f"PATCH {location}".encode() + HOST
    assert (await _talk(registry, head + sent + NEXT))[0] == [202, 200]
    assert (await registry.ask("GET", location)).headers["Range"] == f"0-{max(0, size - 1)}"


@pytest.mark.parametrize("method", ["PATCH", "GET"])
@pytest.mark.parametrize("sent", UNCLEAR.values(), ids=UNCLEAR)
async def test_framing_that_may_be_read_twice(registry: Served, sent: bytes, method: str) -> None:
    """What a proxy might frame in another way is 400, and never two requests out of one."""
    location = await registry.start_upload()
    head = f"{method} {location}".encode() + HOST
    statuses, body = await _talk(registry, head + sent + NEXT)
    assert (statuses, bool(_code(body))) == ([400], True)
    assert (await registry.ask("GET", location)).headers["Range"] == "0-0"


@pytest.mark.parametrize("sent", BROKEN.values(), ids=BROKEN)
async def test_chunks_that_break_off(registry: Served, sent: bytes) -> None:
    """Chunks that can't be read are 400, and nothing that comes after them is a request."""
    location = await registry.start_upload()
    head = f"PATCH {location}".encode() + HOST + CHUNKED + b"\r\n"
    statuses, body = await _talk(registry, head + sent + NEXT)
    assert (statuses, _code(body)) == ([400], "SIZE_INVALID")


@pytest.mark.parametrize("row", ["G16"])
async def test_a_body_of_a_read(registry: Served, row: str) -> None:
    """A GET may have a body, of either framing; it is passed over."""
    head = b"GET /v2/" + HOST
    sized, chunked = b"Content-Length: 2\r\n\r\nab", CHUNKED + b"\r\n2\r\nab\r\n0\r\n\r\n"
    assert (await _talk(registry, head + sized + head + chunked + NEXT))[0] == [200, 200, 200]


async def test_requests_in_a_row(registry: Served) -> None:
    """Requests that are sent before the answers to others have come are answered in order."""
    digest = digest_of(LAYER)
    push = f"POST {UPLOADS}?digest={digest}".encode() + HOST + b"Content-Length: 1024\r\n\r\n"
    pull = f"HEAD /v2/team/app/blobs/{digest}".encode() + HOST + b"\r\n"
    statuses, _ = await _talk(registry, (push + LAYER + pull) * 50 + NEXT)
    assert statuses == [201, 200] * 50 + [200]


async def test_a_client_that_asks_and_closes_its_side(registry: Served) -> None:
    """All that was asked is answered also if the client says at once that it asks no more."""
    digest = await registry.push_blob(bytes(1 << 20))
    pull = f"GET /v2/team/app/blobs/{digest}".encode() + HOST + b"\r\n"
    push = f"POST {UPLOADS}?digest={digest}".encode() + HOST + b"Content-Length: 1048576\r\n\r\n"
    for sent, expected in (PING * 3 + pull, [200] * 4), (PING + push + bytes(1 << 20), [200, 201]):
        async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
            writer.write(sent)
            writer.write_eof()
            assert _answers(await reader.read())[0] == expected


@pytest.mark.parametrize("row", ["G17"])
async def test_a_body_that_was_not_asked_for(registry: Served, row: str) -> None:
    """A client refused before its body ends the connection: what it sends next is no body."""
    head = f"PATCH {UPLOADS}none".encode() + HOST + b"Expect: 100-continue\r\n"
    async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
        writer.write(head + b"Content-Length: 9999\r\n\r\n")
        said = await reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 404 ")
        assert b"\r\nConnection: close\r\n" in said


async def test_the_absolute_form(registry: Served) -> None:
    """A target with a scheme and a host is read as its path; what is no URL is 400."""
    good = b"GET http://elsewhere/v2/" + HOST + CLOSE
    assert (await _talk(registry, good))[0] == [200]
    for bad in (b"GET http://" + HOST, b"GET v2" + HOST, b"GET *" + HOST):
        assert (await _talk(registry, bad + b"\r\n"))[0] == [400], bad


async def test_a_tunnel_is_refused(registry: Served) -> None:
    """CONNECT is not offered, and what would go through the tunnel is no request."""
    async with asyncio.timeout(ANSWER_S), registry.connected() as (reader, writer):
        writer.write(b"CONNECT elsewhere:80" + HOST + b"\r\n" + PING)
        said = await reader.readuntil(b"\r\n\r\n")
        assert said.startswith(b"HTTP/1.1 405 ")
        assert b"\r\nConnection: close\r\n" in said
