"""How uploads go on and end: PATCH, GET, PUT and DELETE of a session, row by row of PROTOCOL."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from node.errors import StorageFull
from tests.fake_blobs import Call
from tests.registry import LAYER, Client, Served, chunked, digest_of
from tests.waiting import eventually

UPLOADS: Final = "blobs/uploads/"
BLOB: Final = digest_of(LAYER)
OTHER: Final = digest_of(b"something else")
SIZED: Final = "Host: x\r\nContent-Length: 1024\r\n"
EXPECT: Final = f"{SIZED}Expect: 100-continue\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="no type [U37]"),
        pytest.param({"Content-Type": "application/octet-stream"}, id="bytes [U37]"),
        pytest.param({"Content-Type": "application/x-www-form-urlencoded"}, id="a form [U37]"),
        pytest.param({"Content-Type": "multipart/form-data; boundary=x"}, id="parts [U37]"),
    ],
)
@pytest.mark.parametrize("row", ["U20-U26"])
async def test_stream_then_finish(registry: Client, row: str, headers: dict[str, str]) -> None:
    """A PATCH with a length, one without, and an empty PUT, as docker pushes."""
    location = await registry.start_upload()
    for body, held in ((LAYER[:300], "0-299"), (chunked(LAYER[300:700], LAYER[700:]), "0-1023")):
        reply = await registry.ask("PATCH", location, body, headers)
        assert (reply.status, reply.headers["Range"]) == (202, held)
        assert reply.headers["Content-Length"] == "0"
        location = reply.headers["Location"]
        assert reply.headers["Docker-Upload-UUID"] in location
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", None, headers)
    assert reply.status == 201
    place = registry.path(f"blobs/{BLOB}")
    assert reply.headers["Location"] == place
    assert reply.headers["Docker-Content-Digest"] == BLOB
    assert reply.headers["Content-Length"] == "0"
    assert (await registry.ask("GET", place)).body == LAYER


@pytest.mark.parametrize("row", ["U27-U31-U32"])
@pytest.mark.parametrize("before", [0, 400])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_finish_with_the_rest(registry: Client, row: str, before: int, framing: str) -> None:
    """The PUT may bring all bytes, as containerd pushes, or the last ones, in any framing."""
    location = await registry.start_upload()
    if before:
        await registry.ask("PATCH", location, LAYER[:before])
    rest = LAYER[before:] if framing == "length" else chunked(LAYER[before:])
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", rest)
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, BLOB)
    assert (await registry.ask("HEAD", registry.path(f"blobs/{BLOB}"))).status == 200


@pytest.mark.parametrize("row", ["U21-U25-U27"])
async def test_chunks(registry: Client, row: str) -> None:
    """Chunks with ranges, with a unit or without, the last one in the PUT."""
    location = await registry.start_upload()
    assert await registry.held(location) == "0-0"
    reply = await registry.ask("PATCH", location, LAYER[:400], {"Content-Range": "0-399"})
    assert (reply.status, reply.headers["Range"]) == (202, "0-399")
    asked = {"Content-Range": "bytes 400-799/*"}
    assert (await registry.ask("PATCH", location, chunked(LAYER[400:800]), asked)).status == 202
    assert await registry.held(location) == "0-799"
    asked = {"Content-Range": "800-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[800:], asked)
    assert reply.status == 201


@pytest.mark.parametrize("row", ["U25"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_where_a_session_stands(registry: Client, row: str, method: str) -> None:
    """A session says where it goes on and what it holds; of nothing, 0-0."""
    location = await registry.start_upload()
    for body, held in ((b"", "0-0"), (LAYER, "0-1023")):
        await registry.ask("PATCH", location, body)
        reply = await registry.ask(method, location)
        assert (reply.status, reply.body, reply.headers["Range"]) == (204, b"", held)
        assert reply.headers["Location"] == location
        assert reply.headers["Docker-Upload-UUID"] in location


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(("0-399", LAYER[:400], 416), id="again [U22 U23]"),
        pytest.param(("500-899", LAYER[500:900], 416), id="ahead [U22]"),
        pytest.param(("400-1023", LAYER[400:800], 400), id="shorter than it says [U22]"),
        pytest.param(("400-499", LAYER[400:800], 400), id="longer than it says [U22]"),
        pytest.param(("now", LAYER[400:800], 416), id="no range at all"),
        pytest.param(("900-400", LAYER[400:800], 416), id="backwards"),
    ],
)
@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("row", ["U22-U28"])
async def test_chunks_out_of_order(
    registry: Client, row: str, chunk: tuple[str, bytes, int], method: str, framing: str
) -> None:
    """A chunk that does not fit is refused whole, and the session goes on."""
    given, body, status = chunk
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER[:400])
    sent = body if framing == "length" else chunked(body)
    query = f"&digest={BLOB}" if method == "PUT" else ""
    reply = await registry.ask(method, location + query, sent, {"Content-Range": given})
    assert reply.status == status
    if status == 416:
        assert reply.headers["Range"] == "0-399"
        assert reply.headers["Location"] == location
    else:
        assert reply.code == "SIZE_INVALID"
    assert await registry.held(location) == "0-399"
    asked = {"Content-Range": "400-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[400:], asked)
    assert reply.status == 201


@pytest.mark.parametrize("row", ["U23"])
async def test_an_older_location(registry: Client, row: str) -> None:
    """Every location that a session ever had leads to it, whatever its query has become."""
    first = await registry.start_upload()
    last = (await registry.ask("PATCH", first, LAYER[:400])).headers["Location"]
    for location in (first, last, first.partition("?")[0], f"{first}-older"):
        reply = await registry.ask("PATCH", location, LAYER[:400], {"Content-Range": "0-399"})
        assert (reply.status, reply.headers["Range"]) == (416, "0-399")
        assert await registry.held(location) == "0-399"


@pytest.mark.parametrize("row", ["U24"])
async def test_an_empty_chunk(registry: Client, row: str) -> None:
    """A PATCH of nothing changes nothing."""
    location = await registry.start_upload()
    for held in ("0-0", "0-399"):
        for body in (b"", chunked()):
            reply = await registry.ask("PATCH", location, body)
            assert (reply.status, reply.headers["Range"]) == (202, held)
        await registry.ask("PATCH", location, LAYER[:400], {"Content-Range": "0-399"})


@pytest.mark.parametrize("row", ["U26-U29"])
async def test_a_blob_of_nothing(registry: Client, row: str) -> None:
    """A session that holds nothing becomes the empty blob, and no other."""
    empty = digest_of(b"")
    location = await registry.start_upload()
    assert (await registry.ask("PUT", f"{location}&digest={empty}")).status == 201
    assert (await registry.ask("HEAD", registry.path(f"blobs/{empty}"))).status == 200
    location = await registry.start_upload()
    assert (await registry.ask("PUT", f"{location}&digest={BLOB}")).status == 400


@pytest.mark.parametrize("row", ["U3"])
@pytest.mark.parametrize("glue", ["&", "?"])
async def test_scripts_append_the_digest(registry: Client, row: str, glue: str) -> None:
    """The digest is found, whichever way a script glues it to our query."""
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    assert (await registry.ask("PUT", f"{location}{glue}digest={BLOB}")).status == 201


@pytest.mark.parametrize("row", ["U29"])
@pytest.mark.parametrize("given", ["before", "in the PUT"])
async def test_other_bytes_than_promised(registry: Client, row: str, given: str) -> None:
    """Bytes that are not what the digest says are dropped, and the session with them."""
    location = await registry.start_upload()
    if given == "before":
        await registry.ask("PATCH", location, LAYER)
    body = None if given == "before" else LAYER
    reply = await registry.ask("PUT", f"{location}&digest={OTHER}", body)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert (await registry.ask("GET", location)).status == 404
    for digest in (BLOB, OTHER):
        assert (await registry.ask("HEAD", registry.path(f"blobs/{digest}"))).status == 404


@pytest.mark.parametrize("row", ["U29-U33"])
async def test_nothing_is_left_of_what_is_dropped(fakes: Served, row: str) -> None:
    """A session that ends without a blob, by mismatch or by its client, leaves no bytes."""
    room = await fakes.blobs.usage()
    for method in ("PUT", "DELETE"):
        location = await fakes.start_upload()
        await fakes.ask("PATCH", location, LAYER)
        assert await fakes.blobs.usage() != room
        await fakes.ask(method, f"{location}&digest={OTHER}")
        assert await fakes.blobs.usage() == room


@pytest.mark.parametrize("query", ["", "&digest=", "&digest=sha256:0", "&digest=md5:abc"])
@pytest.mark.parametrize("row", ["U29"])
async def test_a_digest_that_is_none(registry: Client, row: str, query: str) -> None:
    """Without a digest that can be read, nothing ends and nothing is taken."""
    location = await registry.start_upload()
    reply = await registry.ask("PUT", location + query, LAYER)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert await registry.held(location) == "0-0"
    assert (await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER)).status == 201


@pytest.mark.parametrize("row", ["U33-0.4"])
async def test_cancel(registry: Client, row: str) -> None:
    """A cancelled session is gone, for every method."""
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    reply = await registry.ask("DELETE", location)
    assert (reply.status, reply.body) == (204, b"")
    for method in ("DELETE", "GET", "PATCH", "PUT"):
        reply = await registry.ask(method, f"{location}&digest={BLOB}")
        assert (reply.status, reply.code) == (404, "BLOB_UPLOAD_UNKNOWN")


@pytest.mark.parametrize("row", ["U34"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
async def test_no_such_session(registry: Client, row: str, method: str) -> None:
    """Sessions that are unknown, ended, of another repository or no ids at all are 404."""
    elsewhere = await registry.start_upload("other")
    ended = await registry.start_upload()
    await registry.ask("PUT", f"{ended}&digest={BLOB}", LAYER)
    places = [
        registry.path(f"{UPLOADS}0b5f9a6e-0000-4000-8000-000000000000"),
        elsewhere.replace("/other/", f"/{registry.repository}/"),
        ended,
        registry.path(f"{UPLOADS}%00%ff"),
        registry.path(f"{UPLOADS}{'x' * 1000}"),
    ]
    for place in places:
        mark = "&" if "?" in place else "?"
        reply = await registry.ask(method, f"{place}{mark}digest={BLOB}")
        assert reply.status == 404, place
        assert method == "HEAD" or reply.code == "BLOB_UPLOAD_UNKNOWN"
    assert await registry.held(elsewhere) == "0-0"


@pytest.mark.parametrize("row", ["U34-0.4"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
async def test_an_expired_session(fakes: Served, row: str, method: str) -> None:
    """A session that nobody has touched for eight days is none."""
    expired = await fakes.start_upload()
    fakes.clock.advance(8 * 24 * 3600 * 1000)
    assert (await fakes.ask(method, f"{expired}&digest={BLOB}", b"")).status == 404


@pytest.mark.parametrize("row", ["U35"])
async def test_two_at_once(registry: Client, row: str) -> None:
    """Two uploads of one blob at a time both succeed."""
    places = [await registry.start_upload() for _ in range(2)]
    replies = await asyncio.gather(
        *(registry.ask("PUT", f"{place}&digest={BLOB}", LAYER) for place in places)
    )
    assert [reply.status for reply in replies] == [201, 201]
    assert (await registry.ask("GET", registry.path(f"blobs/{BLOB}"))).body == LAYER


@pytest.mark.parametrize("row", ["U35"])
async def test_a_blob_is_kept_once(fakes: Served, row: str) -> None:
    """However often a blob is pushed, the store holds it once."""
    for repository in ("a", "b", "b"):
        await fakes.push_blob(LAYER, repository)
    assert len(fakes.blobs.copies) == 1


@pytest.mark.parametrize("row", ["U36"])
async def test_a_client_that_is_cut(registry: Client, row: str) -> None:
    """What arrived of a PATCH that was cut is kept, and the client goes on behind it."""
    location = await registry.start_upload()
    async with registry.connected() as (_, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{SIZED}\r\n".encode() + LAYER[:400])
        await writer.drain()

    async def kept() -> bool:
        return await registry.held(location) == "0-399"

    await eventually(kept, 30, "what arrived is kept")
    asked = {"Content-Range": "400-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[400:], asked)
    assert reply.status == 201


@pytest.mark.parametrize("row", ["U36"])
async def test_two_writers_of_one_session(registry: Client, row: str) -> None:
    """Of two PATCHes that began at one byte the first to end is kept, and the other told so."""
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        writer.write(f"PATCH {location} HTTP/1.1\r\n{EXPECT}".encode())
        assert await reader.readuntil(b"\r\n\r\n") == CONTINUE
        assert (await registry.ask("PATCH", location, LAYER[:400])).status == 202
        writer.write(bytes(1024))
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert answer.startswith("HTTP/1.1 416 ")
    assert "\r\nRange: 0-399\r\n" in answer
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[400:])
    assert reply.status == 201


@pytest.mark.parametrize("row", ["G17"])
async def test_expect_continue(registry: Client, row: str) -> None:
    """`100 Continue` comes only when the body is wanted."""
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        writer.write(f"PUT {location}&digest={BLOB} HTTP/1.1\r\n{EXPECT}".encode())
        assert await reader.readuntil(b"\r\n\r\n") == CONTINUE
        writer.write(LAYER)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    async with registry.connected() as (reader, writer):
        writer.write(f"PATCH {registry.path(UPLOADS)}none HTTP/1.1\r\n{EXPECT}".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("row", ["G17-U22"])
@pytest.mark.parametrize(("span", "status"), [("0-399", 400), ("400-1423", 416)])
async def test_a_chunk_that_is_wrong_from_the_start(
    registry: Client, row: str, span: str, status: int
) -> None:
    """A chunk whose range can't be right is refused before its bytes are asked for."""
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        head = f"PATCH {location} HTTP/1.1\r\nContent-Range: {span}\r\n{EXPECT}"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("row", ["G18"])
async def test_a_refused_client_goes_on_sending(registry: Client, row: str) -> None:
    """A client that is refused while it sends reads why, and may use the connection again."""
    size = 2 << 20
    async with registry.connected() as (reader, writer):
        path = f"{registry.path(UPLOADS)}none"
        writer.write(f"PATCH {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n".encode())
        for _ in range(size // (64 << 10)):
            writer.write(bytes(64 << 10))
            await writer.drain()
        assert (await reader.readuntil(b"}]}")).startswith(b"HTTP/1.1 404 ")
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")


async def test_a_full_store(fakes: Served) -> None:
    """A push that finds no room is 503 with a time to come back, and pulls go on."""
    await fakes.push_blob(LAYER)
    location = await fakes.start_upload()
    fakes.blobs.faults.fail_next(Call.WRITE, StorageFull(0))
    reply = await fakes.ask("PATCH", location, LAYER)
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert (await fakes.ask("GET", fakes.path(f"blobs/{BLOB}"))).body == LAYER
