"""Reads and deletes of blobs, row by row of PROTOCOL."""

from __future__ import annotations

from typing import Final

import pytest

from tests.registry import JSON, LAYER, Client, Reply, Served, digest_of, image

BLOB: Final = digest_of(LAYER)
EMPTY: Final = digest_of(b"")
ABSENT: Final = digest_of(b"never pushed")
OTHER: Final = "room/of/others"
LARGE: Final = bytes(range(250)) * 2000


async def _read(registry: Client, digest: str = BLOB, method: str = "GET", **headers: str) -> Reply:
    asked = {name.replace("_", "-"): value for name, value in headers.items()}
    return await registry.ask(method, registry.path(f"blobs/{digest}"), None, asked)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(LAYER, id="small [B1 B2]"),
        pytest.param(LARGE, id="larger than is sent in one write [B1 B2]"),
        pytest.param(b"", id="empty [B11]"),
    ],
)
async def test_a_blob(registry: Client, content: bytes) -> None:
    """A blob comes exact, with all its headers; HEAD has the same ones, range or not."""
    digest = await registry.push_blob(content)
    reply = await _read(registry, digest, Accept_Encoding="zstd, gzip, deflate")
    assert (reply.status, reply.body) == (200, content)
    expected = {
        "Content-Length": str(len(content)),
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": digest,
        "Accept-Ranges": "bytes",
        "ETag": f'"{digest}"',
        "Cache-Control": "private, max-age=31536000, immutable",
    }
    assert {name: reply.headers.get(name) for name in expected} == expected
    assert "Content-Encoding" not in reply.headers
    for asked in ({}, {"Range": "bytes=0-1"}):
        head = await _read(registry, digest, "HEAD", **asked)
        assert (head.status, head.body) == (200, b"")
        assert {**head.headers, "Date": ""} == {**reply.headers, "Date": ""}


@pytest.mark.parametrize("row", ["B2-B3"])
@pytest.mark.parametrize("digest", [BLOB, ABSENT])
async def test_a_blob_that_is_not_here(registry: Client, row: str, digest: str) -> None:
    """What this repository does not have is unknown, whoever else has it."""
    await registry.push_blob(LAYER, OTHER)
    head = await _read(registry, digest, "HEAD")
    assert (head.status, head.body) == (404, b"")
    reply = await _read(registry, digest)
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")
    reply = await _read(registry, digest, "DELETE")
    assert (reply.status, reply.code) == (404, "BLOB_UNKNOWN")


@pytest.mark.parametrize("row", ["B16"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE"])
@pytest.mark.parametrize("digest", ["sha256:0", f"sha256:{'A' * 64}", "md5:abc", "v1"])
async def test_no_digest(registry: Client, row: str, method: str, digest: str) -> None:
    """What is no digest is refused."""
    reply = await _read(registry, digest, method)
    assert reply.status == 400
    assert method == "HEAD" or reply.code == "DIGEST_INVALID"


@pytest.mark.parametrize("row", ["B13"])
async def test_a_manifest_is_a_blob_too(registry: Client, row: str) -> None:
    """A manifest's body is read under its digest as a blob, and deleted as a manifest only."""
    body = image(LAYER)
    digest = await registry.push_image()
    reply = await _read(registry, digest)
    assert (reply.status, reply.body) == (200, body)
    reply = await _read(registry, digest, "DELETE")
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        pytest.param("2-5", 2, 5, id="some [B4]"),
        pytest.param("0-0", 0, 0, id="the first [B4]"),
        pytest.param("1023-1023", 1023, 1023, id="the last [B4]"),
        pytest.param("1000-", 1000, 1023, id="the rest [B4]"),
        pytest.param("-24", 1000, 1023, id="the end [B4]"),
        pytest.param("-5000", 0, 1023, id="more than all from the end [B4]"),
        pytest.param("1000-5000", 1000, 1023, id="past the end [B4]"),
        pytest.param("0-", 0, 1023, id="all of it [B6]"),
        pytest.param("0-1023", 0, 1023, id="all of it by both ends [B6]"),
    ],
)
async def test_a_range(stocked: Client, asked: str, first: int, last: int) -> None:
    """A range is answered with just its bytes, which are counted."""
    reply = await _read(stocked, Range=f"bytes={asked}")
    assert (reply.status, reply.body) == (206, LAYER[first : last + 1])
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/1024"
    assert reply.headers["Content-Length"] == str(last + 1 - first)
    assert reply.headers["Docker-Content-Digest"] == BLOB


@pytest.mark.parametrize("row", ["B4-B6"])
async def test_a_long_range(registry: Client, row: str) -> None:
    """A range that is larger than what is sent in one write is as exact."""
    digest = await registry.push_blob(LARGE)
    reply = await _read(registry, digest, Range="bytes=7-")
    assert (reply.status, reply.body) == (206, LARGE[7:])
    assert reply.headers["Content-Range"] == f"bytes 7-{len(LARGE) - 1}/{len(LARGE)}"
    assert reply.headers["Content-Length"] == str(len(LARGE) - 7)


@pytest.mark.parametrize(
    ("digest", "asked"),
    [
        pytest.param(BLOB, "1024-", id="at the end [B5]"),
        pytest.param(BLOB, "5000-6000", id="past the end [B5]"),
        pytest.param(BLOB, "500-0", id="backwards [B5]"),
        pytest.param(BLOB, "-0", id="nothing from the end [B5]"),
        pytest.param(BLOB, "2000-,5000-", id="several past the end [B5]"),
        pytest.param(EMPTY, "0-", id="all of nothing [B11]"),
        pytest.param(EMPTY, "0-0", id="the first of nothing [B11]"),
        pytest.param(EMPTY, "-1", id="the end of nothing [B11]"),
    ],
)
async def test_a_range_without_bytes(stocked: Client, digest: str, asked: str) -> None:
    """A range in which there is no byte is refused, and the size told."""
    await stocked.push_blob(b"")
    reply = await _read(stocked, digest, Range=f"bytes={asked}")
    assert (reply.status, reply.code) == (416, "SIZE_INVALID")
    size = 1024 if digest == BLOB else 0
    assert reply.headers["Content-Range"] == f"bytes */{size}"


@pytest.mark.parametrize("row", ["B7"])
async def test_as_many_ranges_as_podman_asks_for(registry: Client, row: str) -> None:
    """containers/storage merges them to 1,024, and fetches the whole of a layer for a 200."""
    digest = await registry.push_blob(LARGE)
    firsts = range(0, 1024 * 16, 16)
    asked = ",".join(f"{first}-{first + 7}" for first in firsts)
    reply = await _read(registry, digest, Range=f"bytes={asked}")
    assert reply.status == 206
    _, _, boundary = reply.headers["Content-Type"].partition("; boundary=")
    _, *parts, _ = reply.body.split(f"--{boundary}".encode())
    found = [part.rpartition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
    assert b"".join(found) == b"".join(LARGE[first : first + 8] for first in firsts)


@pytest.mark.parametrize("row", ["B7"])
@pytest.mark.parametrize("content", [LAYER, LARGE], ids=["small", "large"])
async def test_several_ranges(registry: Client, row: str, content: bytes) -> None:
    """Several ranges come as parts of one answer, one for each, in the order asked for."""
    digest, size = await registry.push_blob(content), len(content)
    spans = [(10, 11), (0, 1), (size - 3, size - 1), (1, size // 2), (1, 1)]
    asked = ", ".join(f"{first}-{last}" for first, last in spans)
    reply = await _read(registry, digest, Range=f"bytes={asked}")
    assert reply.status == 206
    assert reply.headers["Content-Length"] == str(len(reply.body))
    media_type, _, boundary = reply.headers["Content-Type"].partition("; boundary=")
    assert media_type == "multipart/byteranges"
    before, *parts, after = (b"\r\n" + reply.body).split(f"\r\n--{boundary}".encode())
    assert (before, after) == (b"", b"--\r\n")
    assert [part.partition(b"\r\n\r\n") for part in parts] == [
        (
            b"\r\nContent-Type: application/octet-stream"
            b"\r\nContent-Range: bytes %d-%d/%d" % (first, last, size),
            b"\r\n\r\n",
            content[first : last + 1],
        )
        for first, last in spans
    ]


@pytest.mark.parametrize(
    ("tag", "status"),
    [
        pytest.param(f'"{BLOB}"', 206, id="the same [B9]"),
        pytest.param(f'"{ABSENT}"', 200, id="another [B9]"),
        pytest.param(f'W/"{BLOB}"', 200, id="a weak one [B9]"),
        pytest.param("Sat, 29 Oct 1994 19:43:31 GMT", 200, id="a date [B9]"),
    ],
)
async def test_a_range_of_the_same_content(stocked: Client, tag: str, status: int) -> None:
    """A range holds for the content it was meant for, and of other content all is sent."""
    reply = await _read(stocked, Range="bytes=2-5", If_Range=tag)
    assert (reply.status, reply.body) == (status, LAYER[2:6] if status == 206 else LAYER)


@pytest.mark.parametrize("row", ["B10"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_content_that_is_wanted(stocked: Client, row: str, method: str) -> None:
    """Who wants nothing but other content gets none, and is told why."""
    for tag in (f'"{BLOB}"', f'"x", "{BLOB}"', "*"):
        assert (await _read(stocked, method=method, If_Match=tag)).status == 200
    for tag in (f'"{ABSENT}"', f'W/"{BLOB}"'):
        assert (await _read(stocked, method=method, If_Match=tag)).status == 412


@pytest.mark.parametrize("row", ["B10"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_content_that_is_known(stocked: Client, row: str, method: str) -> None:
    """A client that has the blob is told so, before any range."""
    for tag in (f'"{BLOB}"', BLOB, f'"x", W/"{BLOB}"', "*"):
        reply = await _read(stocked, method=method, If_None_Match=tag, Range="bytes=0-1")
        assert (reply.status, reply.body) == (304, b"")
        assert reply.headers["ETag"] == f'"{BLOB}"'
    reply = await _read(stocked, method=method, If_None_Match=f'"{ABSENT}"')
    assert reply.status == 200


# --- deletes


@pytest.mark.parametrize("row", ["B14-B15"])
async def test_delete(stocked: Client, row: str) -> None:
    """A deleted blob is gone at once from its repository, and from no other; a push brings it."""
    await stocked.push_blob(LAYER, OTHER)
    assert (await _read(stocked, method="HEAD")).status == 200
    reply = await _read(stocked, method="DELETE")
    assert (reply.status, reply.headers["Content-Length"]) == (202, "0")
    for method in ("HEAD", "GET", "DELETE"):
        assert (await _read(stocked, method=method)).status == 404
    assert (await stocked.ask("GET", stocked.path(f"blobs/{BLOB}", OTHER))).body == LAYER
    await stocked.push_blob(LAYER)
    assert (await _read(stocked)).body == LAYER


@pytest.mark.parametrize("row", ["B15"])
async def test_delete_a_blob_in_use(registry: Client, row: str) -> None:
    """A blob that a live manifest needs stays, and the answer says why; without it, it goes."""
    manifest = await registry.push_image()
    reply = await _read(registry, method="DELETE")
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")
    assert reply.headers["Content-Type"] == JSON
    assert "in use" in reply.json()["errors"][0]["message"]
    assert reply.headers["Allow"] == "GET, HEAD"
    assert (await _read(registry)).body == LAYER
    await registry.ask("DELETE", registry.path(f"manifests/{manifest}"))
    assert (await _read(registry, method="DELETE")).status == 202


@pytest.mark.parametrize("row", ["P9"])
async def test_lost_bytes_are_unknown_until_pushed_again(fakes: Served, row: str) -> None:
    """A blob whose bytes are lost is 404, so that clients push it, which heals it."""
    await fakes.push_image()
    copies = {str(digest): (digest, generation) for digest, generation in fakes.blobs.copies}
    fakes.blobs.lose(*copies[BLOB])
    for method in ("HEAD", "GET"):
        assert (await _read(fakes, method=method)).status == 404
    await fakes.push_blob(LAYER)
    assert (await _read(fakes)).body == LAYER
