"""What the registry answers to reads, row by row of PROTOCOL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pytest

from node.manifest import OCI_MANIFEST
from tests.registry import JSON, LAYER, Served, digest_of, image, served

IMAGE: Final = image(LAYER)
MANIFEST: Final = digest_of(IMAGE)
BLOB: Final = digest_of(LAYER)
EMPTY: Final = digest_of(b"")
ABSENT: Final = digest_of(b"never pushed")
V1: Final = "/v2/team/app/manifests/v1"
BLOBS: Final = "/v2/team/app/blobs"
UPLOADS: Final = f"{BLOBS}/uploads/"
NO_LENGTH: Final = {"Content-Length": "0"}


@dataclass(frozen=True, slots=True)
class Row:
    """One exchange: what is asked, and what the answer must be."""

    said: str
    method: str
    path: str
    status: int
    ask: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    code: str = ""


ROWS: Final = [
    # --- every response, ping
    Row("root answers probes [G13]", "GET", "/", 200, headers={"Cache-Control": "no-cache"}),
    Row("v2 without slash leads on [G14]", "GET", "/v2", 301, headers={"Location": "/v2/"}),
    Row("ping [PI1 G1]", "GET", "/v2/", 200, headers={"Content-Type": JSON}, body=b"{}"),
    Row("ping by HEAD [PI7]", "HEAD", "/v2/", 200, headers={"Content-Length": "2"}, body=b""),
    Row("ping with a query", "GET", "/v2/?x=1", 200),
    Row("unknown path is JSON [G2]", "GET", "/v2/nothing", 404, code="UNSUPPORTED"),
    Row("unknown world", "GET", "/v3/", 404, code="UNSUPPORTED"),
    Row("v1 is no more [TL12 PI8]", "GET", "/v1/repositories/x/tags", 404, code="UNSUPPORTED"),
    Row(
        "wrong method says which are right [G15]",
        "POST",
        V1,
        405,
        headers={"Allow": "GET, HEAD, PUT, DELETE"},
        code="UNSUPPORTED",
    ),
    Row(
        "GET where uploads begin [G15]", "GET", f"{BLOBS}/uploads/", 405, headers={"Allow": "POST"}
    ),
    # --- manifests
    Row(
        "manifest by tag [MG1 MG8]",
        "GET",
        V1,
        200,
        {"Accept": "text/html"},
        {
            "Content-Type": OCI_MANIFEST,
            "Docker-Content-Digest": MANIFEST,
            "Content-Length": str(len(IMAGE)),
            "ETag": f'"{MANIFEST}"',
        },
        IMAGE,
    ),
    Row("manifest by digest [MG1]", "GET", f"/v2/team/app/manifests/{MANIFEST}", 200, body=IMAGE),
    Row(
        "escaped colon in a digest [G20]",
        "GET",
        f"/v2/team/app/manifests/{MANIFEST.replace(':', '%3A')}",
        200,
        body=IMAGE,
    ),
    Row(
        "HEAD has all headers and no body [MG2]",
        "HEAD",
        V1,
        200,
        headers={
            "Content-Type": OCI_MANIFEST,
            "Docker-Content-Digest": MANIFEST,
            "Content-Length": str(len(IMAGE)),
        },
        body=b"",
    ),
    Row("known by bare tag [MG7]", "GET", V1, 304, {"If-None-Match": MANIFEST}, body=b""),
    Row(
        "known by a list of weak tags [MG7]",
        "GET",
        V1,
        304,
        {"If-None-Match": f'"x", W/"{MANIFEST}"'},
        {"ETag": f'"{MANIFEST}"'},
        b"",
    ),
    Row("known whatever it is [MG7]", "GET", V1, 304, {"If-None-Match": "*"}),
    Row("not known [MG7]", "GET", V1, 200, {"If-None-Match": '"sha256:0"'}, body=IMAGE),
    Row("ns is for proxies [MG11]", "GET", f"{V1}?ns=docker.io", 200, body=IMAGE),
    Row("unknown tag [MG5]", "GET", "/v2/team/app/manifests/v2", 404, code="MANIFEST_UNKNOWN"),
    Row("unknown tag by HEAD [MG5 MG13]", "HEAD", "/v2/team/app/manifests/v2", 404, body=b""),
    Row(
        "unknown digest [MG5]",
        "GET",
        f"/v2/team/app/manifests/{ABSENT}",
        404,
        code="MANIFEST_UNKNOWN",
    ),
    Row("unknown repository [MG5]", "GET", "/v2/x/manifests/v1", 404, code="MANIFEST_UNKNOWN"),
    Row(
        "malformed tag is not there [MG6]",
        "GET",
        "/v2/team/app/manifests/.INVALID",
        404,
        code="MANIFEST_UNKNOWN",
    ),
    Row(
        "malformed digest [MG6 N7]",
        "GET",
        "/v2/team/app/manifests/sha256:bad",
        400,
        code="DIGEST_INVALID",
    ),
    Row(
        "unknown algorithm [N3]",
        "GET",
        "/v2/team/app/manifests/md5:d41d8cd98f00b204e9800998ecf8427e",
        400,
        code="DIGEST_INVALID",
    ),
    # --- names
    Row("upper case in a name [N5]", "GET", "/v2/Team/manifests/v1", 400, code="NAME_INVALID"),
    Row("empty part of a name [N1]", "GET", "/v2/a//b/manifests/v1", 400, code="NAME_INVALID"),
    Row("dots as a name [N1]", "GET", "/v2/../manifests/v1", 400, code="NAME_INVALID"),
    Row("escaped dots [N1]", "GET", "/v2/a/%2e%2e/manifests/v1", 400, code="NAME_INVALID"),
    Row("escaped slash [H6]", "GET", "/v2/team%2fapp/manifests/v1", 400, code="NAME_INVALID"),
    Row("NUL in a name [H6]", "GET", "/v2/a%00b/manifests/v1", 400, code="NAME_INVALID"),
    Row("NUL in a tag [H6]", "GET", "/v2/a/manifests/v%001", 404, code="MANIFEST_UNKNOWN"),
    Row("no UTF-8 in a name [H6]", "GET", "/v2/%ff%fe/manifests/v1", 400, code="NAME_INVALID"),
    Row("newline in a tag [N2]", "GET", "/v2/a/manifests/v1%0a", 404, code="MANIFEST_UNKNOWN"),
    Row("long name [N1]", "GET", f"/v2/{'a' * 256}/manifests/v1", 400, code="NAME_INVALID"),
    Row("no name at all", "GET", "/v2/manifests/v1", 404, code="UNSUPPORTED"),
    Row("long query [H3]", "GET", f"{V1}?x={'y' * 40_000}", 200, body=IMAGE),
    Row("long header [H3]", "GET", V1, 200, {"Authorization": f"Bearer {'y' * 40_000}"}),
    # --- blobs
    Row(
        "blob [B1]",
        "GET",
        f"{BLOBS}/{BLOB}",
        200,
        headers={
            "Content-Type": "application/octet-stream",
            "Content-Length": "1024",
            "Docker-Content-Digest": BLOB,
            "Accept-Ranges": "bytes",
            "ETag": f'"{BLOB}"',
        },
        body=LAYER,
    ),
    Row(
        "blob by HEAD, range or not [B2]",
        "HEAD",
        f"{BLOBS}/{BLOB}",
        200,
        {"Range": "bytes=0-1"},
        {"Content-Length": "1024", "Docker-Content-Digest": BLOB, "Accept-Ranges": "bytes"},
        b"",
    ),
    Row("missing blob by HEAD [B2]", "HEAD", f"{BLOBS}/{ABSENT}", 404, body=b""),
    Row("missing blob [B3]", "GET", f"{BLOBS}/{ABSENT}", 404, code="BLOB_UNKNOWN"),
    Row("blob of another repository [B3]", "GET", f"/v2/x/blobs/{BLOB}", 404, code="BLOB_UNKNOWN"),
    Row(
        "range [B4]",
        "GET",
        f"{BLOBS}/{BLOB}",
        206,
        {"Range": "bytes=2-5"},
        {"Content-Range": "bytes 2-5/1024", "Content-Length": "4"},
        LAYER[2:6],
    ),
    Row("range to the end [B6]", "GET", f"{BLOBS}/{BLOB}", 206, {"Range": "bytes=0-"}, body=LAYER),
    Row(
        "range past the end [B5]",
        "GET",
        f"{BLOBS}/{BLOB}",
        416,
        {"Range": "bytes=1024-"},
        {"Content-Range": "bytes */1024"},
        code="SIZE_INVALID",
    ),
    Row(
        "range of an older blob [B9]",
        "GET",
        f"{BLOBS}/{BLOB}",
        200,
        {"Range": "bytes=2-5", "If-Range": '"x"'},
        body=LAYER,
    ),
    Row("known blob [B10]", "GET", f"{BLOBS}/{BLOB}", 304, {"If-None-Match": f'"{BLOB}"'}),
    Row("known blob by HEAD [B10]", "HEAD", f"{BLOBS}/{BLOB}", 304, {"If-None-Match": f'"{BLOB}"'}),
    Row("empty blob [B11]", "GET", f"{BLOBS}/{EMPTY}", 200, headers=NO_LENGTH),
    Row(
        "empty blob by HEAD [B11]", "HEAD", f"{BLOBS}/{EMPTY}", 200, headers={"Content-Length": "0"}
    ),
    Row("range of an empty blob [B11]", "GET", f"{BLOBS}/{EMPTY}", 416, {"Range": "bytes=0-"}),
    Row("malformed digest of a blob [B16]", "GET", f"{BLOBS}/sha256:0", 400, code="DIGEST_INVALID"),
    # --- lists
    Row(
        "tags in byte order [TL1]",
        "GET",
        "/v2/team/app/tags/list",
        200,
        headers={"Content-Type": JSON},
        body=b'{"name": "team/app", "tags": ["V1", "blue", "v1"]}',
    ),
    Row("unknown repository's tags [TL2]", "GET", "/v2/x/tags/list", 404, code="NAME_UNKNOWN"),
    Row(
        "two tags and where more are [TL3 TL7 G9]",
        "GET",
        "/v2/team/app/tags/list?n=2",
        200,
        headers={"Link": '</v2/team/app/tags/list?last=blue&n=2>; rel="next"'},
        body=b'{"name": "team/app", "tags": ["V1", "blue"]}',
    ),
    Row(
        "no tags asked for [TL3]",
        "GET",
        "/v2/team/app/tags/list?n=0",
        200,
        headers={"Link": ""},
        body=b'{"name": "team/app", "tags": []}',
    ),
    Row(
        "tags after one that is none [TL4]",
        "GET",
        "/v2/team/app/tags/list?last=bluf",
        200,
        headers={"Link": ""},
        body=b'{"name": "team/app", "tags": ["v1"]}',
    ),
    Row("no more tags [TL1]", "GET", "/v2/team/app/tags/list?last=zz%00", 200),
    Row("a great many tags [TL5]", "GET", f"/v2/team/app/tags/list?n={'9' * 5000}", 200),
    Row(
        "minus one tags [TL6]",
        "GET",
        "/v2/team/app/tags/list?n=-1",
        400,
        code="PAGINATION_NUMBER_INVALID",
    ),
    Row("some tags [TL6]", "GET", "/v2/team/app/tags/list?n=x", 400),
    Row(
        "catalog [TL8]",
        "GET",
        "/v2/_catalog",
        200,
        body=b'{"repositories": ["a/manifests/b", "blobs/uploads", "team/app"]}',
    ),
    Row(
        "catalog by pages [TL8 TL9]",
        "GET",
        "/v2/_catalog?n=1&last=b",
        200,
        headers={"Link": '</v2/_catalog?last=blobs%2Fuploads&n=1>; rel="next"'},
        body=b'{"repositories": ["blobs/uploads"]}',
    ),
    # --- referrers
    Row("no referrers [R2]", "GET", f"/v2/team/app/referrers/{ABSENT}", 200),
    Row("no repository to refer in [R2]", "GET", f"/v2/x/referrers/{ABSENT}", 200),
    Row("malformed subject [R4]", "GET", "/v2/x/referrers/v1", 400, code="DIGEST_INVALID"),
    # --- names that are words of the API
    Row("a name with manifests in it [N4]", "GET", "/v2/a/manifests/b/manifests/v1", 200),
    Row("a name of API words [N4]", "GET", "/v2/blobs/uploads/tags/list", 200),
    Row("a blob there [N4]", "GET", f"/v2/blobs/uploads/blobs/{BLOB}", 200, body=LAYER),
]


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry that holds an image under three tags, and repositories with odd names."""
    async with served() as registry:
        for tag in ("v1", "V1", "blue"):
            await registry.push_image(tag)
        await registry.push_blob(b"")
        await registry.push_image("v1", "a/manifests/b")
        await registry.push_image("v1", "blobs/uploads")
        yield registry


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.said)
async def test_reads(registry: Served, row: Row) -> None:
    """Each row of the protocol is answered as it says, under the registry's own header (G1)."""
    reply = await registry.ask(row.method, row.path, headers=row.ask)
    assert reply.status == row.status, reply
    assert reply.headers["Docker-Distribution-API-Version"] == "registry/2.0"
    for name, value in row.headers.items():
        assert reply.headers.get(name, "") == value, name
    if row.body is not None:
        assert reply.body == row.body
    if row.code:
        assert reply.headers["Content-Type"] == JSON
        assert reply.code == row.code


@pytest.mark.parametrize("row", ["B7"])
async def test_several_ranges(registry: Served, row: str) -> None:
    """Several ranges come as parts of one answer, in the order asked for."""
    asked = {"Range": "bytes=10-11,0-1"}
    reply = await registry.ask("GET", f"{BLOBS}/{BLOB}", headers=asked)
    assert reply.status == 206
    assert reply.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert reply.body.index(LAYER[10:12]) < reply.body.rindex(LAYER[0:2])


@pytest.mark.parametrize("row", ["G16"])
async def test_a_read_with_a_body(registry: Served, row: str) -> None:
    """A GET that brings a body is answered, and the connection goes on."""
    for _ in range(2):
        assert (await registry.ask("GET", V1, b"what for?")).body == IMAGE


async def test_the_site_says_who_it_is(registry: Served) -> None:
    """The admin API tells the site's name and life, and of no peers where there are none."""
    site = (await registry.ask("GET", "/api/v1/site")).json()
    assert (site["site"], site["incarnation"]) == ("local", "life")
    assert (await registry.ask("GET", "/api/v1/peers")).json() == {"peers": []}


@pytest.mark.parametrize("row", ["P9"])
async def test_lost_bytes_are_unknown_until_pushed_again(row: str) -> None:
    """A blob or manifest whose bytes are lost is 404, so that clients push it, which heals it."""
    async with served() as registry:
        await registry.push_image()
        copies = {str(digest): (digest, generation) for digest, generation in registry.blobs.copies}
        registry.blobs.lose(*copies[BLOB])
        for method in ("HEAD", "GET"):
            assert (await registry.ask(method, f"{BLOBS}/{BLOB}")).status == 404
        await registry.push_blob(LAYER)
        assert (await registry.ask("GET", f"{BLOBS}/{BLOB}")).body == LAYER
