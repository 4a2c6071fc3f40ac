"""What HTTP libraries do behind one's back, and a registry must not (rows H); small rows of 0."""

from __future__ import annotations

import gzip
from typing import Final

import pytest

from node.manifest import OCI_INDEX, OCI_MANIFEST
from tests.registry import JSON, LAYER, Client, digest_of, image, index

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
PACKED: Final = gzip.compress(LAYER, mtime=0)
GZIP: Final = {"Content-Encoding": "gzip"}
# What a guess at the type would take for something.
CONTENTS: Final = {
    "gzip": PACKED,
    "a page": b"<!doctype html><html></html>",
    "JSON": b'{"a": 1}',
    "large": b"<html>" * 50_000,
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("row", ["H2"])
async def test_blobs_are_octets(registry: Client, content: bytes, row: str) -> None:
    """A blob's type is never guessed, its entity tag is its digest, and it comes in any ranges."""
    digest = await registry.push_blob(content)
    path = registry.path(f"blobs/{digest}")
    whole = await registry.ask("GET", path)
    one = await registry.ask("GET", path, headers={"Range": "bytes=2-5"})
    two = await registry.ask("GET", path, headers={"Range": "bytes=4-5,0-1"})
    assert (whole.status, whole.body) == (200, content)
    assert (one.status, one.body) == (206, content[2:6])
    assert two.status == 206
    assert two.headers["Content-Type"].startswith("multipart/byteranges; boundary=")
    assert two.body.index(b"\r\n\r\n" + content[4:6]) < two.body.rindex(b"\r\n\r\n" + content[0:2])
    assert "Content-Encoding" not in whole.headers
    for reply in (whole, one):
        assert reply.headers["Content-Type"] == "application/octet-stream"
    for reply in (whole, one, two):
        assert reply.headers["ETag"] == f'"{digest}"'


@pytest.mark.parametrize("how", ["POST", "PATCH", "PUT"])
@pytest.mark.parametrize("row", ["H4"])
async def test_blobs_are_not_unpacked(registry: Client, how: str, row: str) -> None:
    """A body that says it is packed is stored as it comes, under the digest of what came."""
    digest = digest_of(PACKED)
    if how == "POST":
        path = registry.path(f"blobs/uploads/?digest={digest}")
        reply = await registry.ask("POST", path, PACKED, GZIP)
    else:
        location = await registry.start_upload()
        if how == "PATCH":
            assert (await registry.ask("PATCH", location, PACKED, GZIP)).status == 202
        body = PACKED if how == "PUT" else None
        reply = await registry.ask("PUT", f"{location}&digest={digest}", body, GZIP)
    assert reply.status == 201
    found = await registry.ask("GET", registry.path(f"blobs/{digest}"))
    assert (found.body, found.headers.get("Content-Encoding")) == (PACKED, None)


@pytest.mark.parametrize("row", ["H4"])
async def test_manifests_are_not_unpacked(stocked: Client, row: str) -> None:
    """A manifest's bytes are what came: packed they are none, whatever the header says."""
    path = stocked.path("manifests/v1")
    packed = await stocked.ask("PUT", path, gzip.compress(IMAGE), GZIP)
    assert (packed.status, packed.code) == (400, "MANIFEST_INVALID")
    assert (await stocked.ask("PUT", path, IMAGE, GZIP)).status == 201
    found = await stocked.ask("GET", path)
    assert (found.body, found.headers.get("Content-Encoding")) == (IMAGE, None)


@pytest.mark.parametrize(
    ("place", "media_type"),
    [
        ("manifests/v1", OCI_MANIFEST),
        (f"referrers/{DIGEST}", OCI_INDEX),
        ("tags/list", JSON),
        ("manifests/none", JSON),
        ("/v2/", JSON),
    ],
)
@pytest.mark.parametrize("row", ["H7-G4"])
async def test_types_have_no_parameters(
    filled: Client, place: str, media_type: str, row: str
) -> None:
    """No type has a character set added to it."""
    path = place if place.startswith("/") else filled.path(place)
    for method in ("GET", "HEAD"):
        assert (await filled.ask(method, path)).headers["Content-Type"] == media_type


@pytest.mark.parametrize("row", ["H8"])
async def test_headers_of_several_lines(filled: Client, row: str) -> None:
    """A header may be written in any case, and a list in several lines."""
    blob = digest_of(LAYER)
    for path, digest in (("manifests/v1", DIGEST), (f"blobs/{blob}", blob)):
        known = [("if-none-match", '"x"'), ("if-none-match", f'"{digest}"')]
        for method in ("GET", "HEAD"):
            assert (await filled.ask(method, filled.path(path), None, known)).status == 304
    location = await filled.start_upload()
    reply = await filled.ask("PATCH", location, LAYER, {"cONTENT-rANGE": "5-1028"})
    assert reply.status == 416
    typed = {"CONTENT-TYPE": OCI_INDEX}
    assert (await filled.ask("PUT", filled.path("manifests/v2"), index(), typed)).status == 201


@pytest.mark.parametrize("row", ["0.5"])
async def test_a_last_chunk_out_of_order(registry: Client, row: str) -> None:
    """A last chunk that does not follow what is held is 416, and the upload can go on."""
    location = await registry.start_upload()
    assert (await registry.ask("PATCH", location, LAYER[:10])).status == 202
    finish = f"{location}&digest={digest_of(LAYER)}"
    for text in ("0-1013", "11-1024"):
        reply = await registry.ask("PUT", finish, LAYER[10:], {"Content-Range": text})
        assert (reply.status, reply.headers["Range"]) == (416, "0-9")
    reply = await registry.ask("PUT", finish, LAYER[10:], {"Content-Range": "10-1023"})
    assert reply.status == 201
