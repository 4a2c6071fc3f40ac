"""What the registry answers to uploads of blobs, row by row of PROTOCOL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import pytest

from node.config import Config
from node.digest import Algorithm, Digest
from node.errors import StorageFull
from tests.fake_blobs import Call
from tests.registry import LAYER, REPOSITORY, Served, digest_of, served

UPLOADS: Final = f"/v2/{REPOSITORY}/blobs/uploads/"
BLOB: Final = digest_of(LAYER)
PLACE: Final = f"/v2/{REPOSITORY}/blobs/{BLOB}"
SIZED: Final = "Host: x\r\nContent-Length: 1024\r\n\r\n"
OTHER: Final = digest_of(b"something else")


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """An empty registry."""
    async with served() as registry:
        yield registry


async def _chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def _held(registry: Served, location: str) -> str:
    reply = await registry.ask("GET", location)
    assert reply.status == 204
    return reply.headers["Range"]


@pytest.mark.parametrize("row", ["U1-U2-U3"])
async def test_start(registry: Served, row: str) -> None:
    """A session is a path with a query; nothing is held, said without a unit."""
    reply = await registry.ask("POST", UPLOADS)
    assert reply.status == 202
    assert reply.headers["Range"] == "0-0"
    assert reply.headers["Content-Length"] == "0"
    session_id = reply.headers["Docker-Upload-UUID"]
    assert reply.headers["Location"].startswith(f"{UPLOADS}{session_id}?")


@pytest.mark.parametrize("row", ["U14-N5"])
async def test_start_in_a_bad_name(registry: Served, row: str) -> None:
    """No session begins under a name that can't be."""
    reply = await registry.ask("POST", "/v2/Team/blobs/uploads/")
    assert (reply.status, reply.code) == (400, "NAME_INVALID")


@pytest.mark.parametrize("row", ["G14"])
async def test_start_without_the_final_slash(registry: Served, row: str) -> None:
    """The final slash may be missing."""
    assert (await registry.ask("POST", UPLOADS.rstrip("/"))).status == 202


@pytest.mark.parametrize("row", ["U4-U31-U32-U35"])
async def test_post_with_the_bytes(registry: Served, row: str) -> None:
    """One POST with digest and bytes makes the blob, again and again."""
    for _ in range(2):
        reply = await registry.ask("POST", f"{UPLOADS}?digest={BLOB}", LAYER)
        assert reply.status == 201
        assert reply.headers["Location"] == PLACE
        assert reply.headers["Docker-Content-Digest"] == BLOB
        assert (await registry.ask("HEAD", PLACE)).status == 200


@pytest.mark.parametrize(
    ("query", "body", "status"),
    [
        pytest.param(f"digest={OTHER}", LAYER, 400, id="of other bytes [U4]"),
        pytest.param("digest=sha256:0", LAYER, 400, id="no digest [U29]"),
        pytest.param(f"digest={BLOB}", b"", 202, id="announced without bytes [U5]"),
        pytest.param(f"digest={digest_of(b'')}", b"", 201, id="of nothing [U5]"),
        pytest.param("digest-algorithm=sha512", b"", 202, id="algorithm hint [U6]"),
        pytest.param("origin=x&ns=docker.io", b"", 202, id="what it doesn't know [U11]"),
    ],
)
async def test_post_with_parameters(registry: Served, query: str, body: bytes, status: int) -> None:
    """Parameters of the POST are taken as the protocol says."""
    assert (await registry.ask("POST", f"{UPLOADS}?{query}", body)).status == status
    assert (await registry.ask("HEAD", PLACE)).status == 404


@pytest.mark.parametrize("row", ["U7-B3"])
async def test_mount(registry: Served, row: str) -> None:
    """A blob of another repository is mounted without its bytes."""
    await registry.push_blob(LAYER, "other")
    reply = await registry.ask("POST", f"{UPLOADS}?mount={BLOB}&from=other")
    assert reply.status == 201
    assert reply.headers["Location"] == PLACE
    assert reply.headers["Docker-Content-Digest"] == BLOB
    assert (await registry.ask("GET", PLACE)).body == LAYER


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(f"mount={BLOB}&from=nowhere", id="unknown source [U7]"),
        pytest.param(f"mount={OTHER}&from=other", id="unknown blob [U7]"),
        pytest.param("mount=x&from=other", id="no digest [U7]"),
        pytest.param(f"mount={BLOB}&from=docker.io/Library", id="no name [U7]"),
        pytest.param(f"mount={BLOB}", id="no source [U9]"),
    ],
)
async def test_a_mount_that_fails_is_an_upload(registry: Served, query: str) -> None:
    """Where nothing can be mounted a live session answers (U8)."""
    await registry.push_blob(LAYER, "other")
    reply = await registry.ask("POST", f"{UPLOADS}?{query}")
    assert reply.status == 202
    assert (await registry.ask("DELETE", reply.headers["Location"])).status == 204


@pytest.mark.parametrize("row", ["U20-U26-U37"])
async def test_stream_then_finish(registry: Served, row: str) -> None:
    """One PATCH of any length and an empty PUT, as docker pushes."""
    location = await registry.start_upload()
    reply = await registry.ask("PATCH", location, _chunked(LAYER[:700], LAYER[700:]))
    assert reply.status == 202
    assert reply.headers["Range"] == "0-1023"
    assert reply.headers["Docker-Upload-UUID"] in reply.headers["Location"]
    reply = await registry.ask("PUT", f"{reply.headers['Location']}&digest={BLOB}")
    assert reply.status == 201
    assert reply.headers["Location"] == PLACE
    assert reply.headers["Docker-Content-Digest"] == BLOB
    assert reply.headers["Content-Length"] == "0"
    assert (await registry.ask("GET", PLACE)).body == LAYER


@pytest.mark.parametrize("row", ["U27"])
async def test_finish_with_all_bytes(registry: Served, row: str) -> None:
    """One PUT with all bytes, with or without length, as containerd pushes."""
    for body in (LAYER, _chunked(LAYER)):
        location = await registry.start_upload()
        assert (await registry.ask("PUT", f"{location}&digest={BLOB}", body)).status == 201


@pytest.mark.parametrize("row", ["U21-U25-U27"])
async def test_chunks(registry: Served, row: str) -> None:
    """Chunks with ranges, with a unit or without, the last one in the PUT."""
    location = await registry.start_upload()
    assert await _held(registry, location) == "0-0"
    reply = await registry.ask("PATCH", location, LAYER[:400], {"Content-Range": "0-399"})
    assert (reply.status, reply.headers["Range"]) == (202, "0-399")
    asked = {"Content-Range": "bytes 400-799/*"}
    assert (await registry.ask("PATCH", location, _chunked(LAYER[400:800]), asked)).status == 202
    assert await _held(registry, location) == "0-799"
    asked = {"Content-Range": "800-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[800:], asked)
    assert reply.status == 201


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
async def test_chunks_out_of_order(
    registry: Served, chunk: tuple[str, bytes, int], method: str, framing: str
) -> None:
    """A chunk that does not fit is refused whole, and the session goes on (U22, U28)."""
    given, body, status = chunk
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER[:400])
    sent = body if framing == "length" else _chunked(body)
    query = f"&digest={BLOB}" if method == "PUT" else ""
    reply = await registry.ask(method, location + query, sent, {"Content-Range": given})
    assert reply.status == status
    if status == 416:
        assert reply.headers["Range"] == "0-399"
        assert reply.headers["Location"] == location
    assert await _held(registry, location) == "0-399"
    asked = {"Content-Range": "400-1023"}
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[400:], asked)
    assert reply.status == 201


@pytest.mark.parametrize("row", ["U24"])
async def test_an_empty_chunk(registry: Served, row: str) -> None:
    """A PATCH of nothing changes nothing."""
    location = await registry.start_upload()
    for body in (b"", _chunked()):
        reply = await registry.ask("PATCH", location, body)
        assert (reply.status, reply.headers["Range"]) == (202, "0-0")


@pytest.mark.parametrize("row", ["U3"])
@pytest.mark.parametrize("glue", ["&", "?"])
async def test_scripts_append_the_digest(registry: Served, row: str, glue: str) -> None:
    """The digest is found, whichever way a script glues it to our query."""
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    assert (await registry.ask("PUT", f"{location}{glue}digest={BLOB}")).status == 201


@pytest.mark.parametrize("row", ["U30"])
async def test_sha512(registry: Served, row: str) -> None:
    """A blob may be known by another algorithm than the one hashed on the way."""
    digest = str(Digest.of(LAYER, Algorithm.SHA512))
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    reply = await registry.ask("PUT", f"{location}&digest={digest}")
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, digest)
    assert (await registry.ask("GET", f"/v2/{REPOSITORY}/blobs/{digest}")).body == LAYER


@pytest.mark.parametrize("row", ["U29"])
async def test_other_bytes_than_promised(registry: Served, row: str) -> None:
    """Bytes that are not what the digest says are dropped, and the session with them."""
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    reply = await registry.ask("PUT", f"{location}&digest={OTHER}")
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert (await registry.ask("GET", location)).status == 404
    assert not registry.blobs.copies


@pytest.mark.parametrize("query", ["", "&digest=", "&digest=sha256:0", "&digest=md5:abc"])
@pytest.mark.parametrize("row", ["U29"])
async def test_a_digest_that_is_none(registry: Served, row: str, query: str) -> None:
    """Without a digest that can be read, nothing ends and nothing is taken."""
    location = await registry.start_upload()
    reply = await registry.ask("PUT", location + query, LAYER)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    assert await _held(registry, location) == "0-0"


@pytest.mark.parametrize("row", ["U33"])
async def test_cancel(registry: Served, row: str) -> None:
    """A cancelled session is gone."""
    location = await registry.start_upload()
    assert (await registry.ask("DELETE", location)).status == 204
    assert (await registry.ask("DELETE", location)).status == 404


@pytest.mark.parametrize("row", ["U34"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH", "PUT", "DELETE"])
async def test_no_such_session(registry: Served, row: str, method: str) -> None:
    """Sessions that are unknown, of another repository, expired or no ids at all are 404."""
    location = await registry.start_upload("other")
    expired = await registry.start_upload()
    registry.clock.advance(8 * 24 * 3600 * 1000)
    places = [
        f"{UPLOADS}0b5f9a6e-0000-4000-8000-000000000000",
        location.replace("/other/", f"/{REPOSITORY}/"),
        expired,
        f"{UPLOADS}%00%ff",
        f"{UPLOADS}{'x' * 1000}",
    ]
    for place in places:
        mark = "&" if "?" in place else "?"
        reply = await registry.ask(method, f"{place}{mark}digest={BLOB}")
        assert reply.status == 404, place
        assert method == "HEAD" or reply.code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize("row", ["G17"])
async def test_expect_continue(registry: Served, row: str) -> None:
    """`100 Continue` comes only when the body is wanted."""
    location = await registry.start_upload()
    expect = f"Expect: 100-continue\r\n{SIZED}"
    async with registry.connected() as (reader, writer):
        writer.write(f"PUT {location}&digest={BLOB} HTTP/1.1\r\n{expect}".encode())
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(LAYER)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
    async with registry.connected() as (reader, writer):
        writer.write(f"PATCH {UPLOADS}none HTTP/1.1\r\n{expect}".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("row", ["G18"])
async def test_a_refused_client_goes_on_sending(registry: Served, row: str) -> None:
    """A client that is refused while it sends reads why, and may use the connection again."""
    size = 2 << 20
    async with registry.connected() as (reader, writer):
        head = f"PATCH {UPLOADS}none HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
        writer.write(head.encode())
        for _ in range(size // (64 << 10)):
            writer.write(bytes(64 << 10))
            await writer.drain()
        assert (await reader.readuntil(b"}]}")).startswith(b"HTTP/1.1 404 ")
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")


async def test_a_full_store(registry: Served) -> None:
    """A push that finds no room is 503 with a time to come back, and pulls go on."""
    await registry.push_blob(LAYER)
    location = await registry.start_upload()
    registry.blobs.faults.fail_next(Call.WRITE, StorageFull(0))
    reply = await registry.ask("PATCH", location, LAYER)
    assert reply.status == 503
    assert int(reply.headers["Retry-After"]) > 0
    assert (await registry.ask("GET", PLACE)).body == LAYER


@pytest.mark.parametrize("row", ["U35"])
async def test_two_at_once(registry: Served, row: str) -> None:
    """Two uploads of one blob at a time both succeed."""
    places = [await registry.start_upload() for _ in range(2)]
    replies = await asyncio.gather(
        *(registry.ask("PUT", f"{place}&digest={BLOB}", LAYER) for place in places)
    )
    assert [reply.status for reply in replies] == [201, 201]
    assert len(registry.blobs.copies) == 1


@pytest.mark.parametrize("row", ["G6"])
async def test_locations_of_a_site_with_a_public_url(row: str) -> None:
    """Where the operator says what the registry is called outside, locations say so too."""
    config = Config.model_validate({"http": {"public_url": "https://hub.example:444"}})
    async with served(config) as registry:
        location = await registry.start_upload()
        assert location.startswith(f"https://hub.example:444{UPLOADS}")
        reply = await registry.ask("POST", f"{UPLOADS}?digest={BLOB}", LAYER)
        assert reply.headers["Location"] == f"https://hub.example:444{PLACE}"
        path = location.removeprefix("https://hub.example:444")
        late = await registry.ask("PATCH", path, b"late", {"Content-Range": "5-8"})
        assert late.status == 416
        assert late.headers["Location"].startswith(f"https://hub.example:444{UPLOADS}")
