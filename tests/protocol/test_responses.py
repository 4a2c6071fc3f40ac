"""What holds for every response (rows G)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from tests.protocol.exchanges import Exchange, require_form
from tests.registry import CONFIG, LAYER, Client, Reply, digest_of, image, served

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
BLOB: Final = digest_of(LAYER)
ABSENT: Final = digest_of(b"never pushed")
LARGE: Final = b"the same again and again, which is easily compressed" * 6_000
# What containerd says it can take.
PACKED: Final = {"Accept-Encoding": "zstd, gzip, deflate"}

STATUSES: Final = [
    Exchange("200", "GET", "manifests/v1", 200),
    Exchange("202", "POST", "blobs/uploads/", 202),
    Exchange("206", "GET", f"blobs/{BLOB}", 206, {"Range": "bytes=1-2"}),
    Exchange("301", "GET", "/v2", 301),
    Exchange("304", "GET", "manifests/v1", 304, {"If-None-Match": "*"}),
    Exchange("400", "GET", "manifests/sha256:0", 400, code="DIGEST_INVALID"),
    Exchange("401", "GET", "/v2/", 401, {"Entrepot-Site": "oslo"}, code="UNAUTHORIZED"),
    Exchange("404", "GET", "manifests/v2", 404, code="MANIFEST_UNKNOWN"),
    Exchange("404 of no endpoint", "GET", "/v2/nothing", 404, code="UNSUPPORTED"),
    Exchange("404 of another world", "GET", "/v3/", 404, code="UNSUPPORTED"),
    Exchange("405", "PATCH", "manifests/v1", 405, code="UNSUPPORTED"),
    Exchange("412", "DELETE", "manifests/v1", 412, {"If-Match": '"x"'}, code="DENIED"),
    Exchange("416", "GET", f"blobs/{BLOB}", 416, {"Range": "bytes=9999-"}, code="SIZE_INVALID"),
]

# Every method that is offered at a place, as PROTOCOL's endpoints have it.
OFFERED: Final = [
    ("root", "/", "GET, HEAD"),
    ("no slash", "/v2", "GET, HEAD"),
    ("ping", "/v2/", "GET, HEAD"),
    ("catalog", "/v2/_catalog", "GET, HEAD"),
    ("tag", "manifests/v1", "GET, HEAD, PUT, DELETE"),
    ("manifest", f"manifests/{DIGEST}", "GET, HEAD, PUT, DELETE"),
    ("blob", f"blobs/{BLOB}", "GET, HEAD, DELETE"),
    ("uploads", "blobs/uploads/", "POST"),
    ("session", "blobs/uploads/some-session", "GET, HEAD, PATCH, PUT, DELETE"),
    ("tags", "tags/list", "GET, HEAD"),
    ("referrers", f"referrers/{DIGEST}", "GET, HEAD"),
]
METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "REPORT")


@pytest.mark.parametrize("exchange", STATUSES, ids=lambda exchange: f"{exchange.said} [G1 G2]")
async def test_every_status(filled: Client, exchange: Exchange) -> None:
    """Whatever the status, the API's version is told, and an error has the errors' form."""
    await exchange.hold(filled)


@pytest.mark.parametrize("row", ["G1-G2"])
async def test_what_is_no_request_is_answered_in_form(registry: Client, row: str) -> None:
    """Also what can't be read as a request is told so in the registry's own form."""
    async with registry.connected() as (reader, writer):
        writer.write(b"hello\r\n\r\n")
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0].split()[1] == "400"
    assert "Docker-Distribution-API-Version: registry/2.0" in lines
    assert "Content-Type: application/json" in lines
    assert body.startswith(b'{"errors": [{"code": "')


@pytest.mark.parametrize("row", ["G1-G2"])
async def test_bugs_and_weather_are_answered_in_form(
    row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 and 503 have the form of all errors."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with served() as fakes:
        with monkeypatch.context() as patched:
            patched.setattr(type(fakes.site.metadata), "tags", broken)
            bug = await fakes.ask("GET", fakes.path("tags/list"))
        fakes.kv.down = True
        weather = await fakes.ask("GET", fakes.path("tags/list"))
    assert (bug.status, weather.status) == (500, 503)
    assert (bug.code, weather.code) == ("UNKNOWN", "UNAVAILABLE")
    for reply in (bug, weather):
        require_form(reply)


def _require_exact(by_get: Reply, by_head: Reply, body: bytes) -> None:
    assert by_get.body == body
    assert by_head.body == b""
    for reply in (by_get, by_head):
        assert reply.headers["Content-Length"] == str(len(body))
        assert reply.headers["Docker-Content-Digest"] == digest_of(body)
        assert not {"Content-Encoding", "Transfer-Encoding"} & set(reply.headers)


@pytest.mark.parametrize("row", ["G3-H5-0.1"])
@pytest.mark.parametrize("content", [LAYER, LARGE], ids=["small", "large"])
async def test_lengths_of_what_is_read(registry: Client, content: bytes, row: str) -> None:
    """Blobs and manifests come with their digest and length, as they are, by GET and by HEAD."""
    for blob in (CONFIG, content):
        await registry.push_blob(blob)
    manifest = image(content, annotations={"text": "again and again " * 1_000})
    await registry.push_manifest(manifest, "v1")
    for body, place in (
        (content, f"blobs/{digest_of(content)}"),
        (manifest, f"manifests/{digest_of(manifest)}"),
        (manifest, "manifests/v1"),
    ):
        by_get = await registry.ask("GET", registry.path(place), headers=PACKED)
        by_head = await registry.ask("HEAD", registry.path(place), headers=PACKED)
        _require_exact(by_get, by_head, body)


@pytest.mark.parametrize("row", ["G3-H5"])
async def test_lengths_of_what_is_written(registry: Client, row: str) -> None:
    """What has been made, taken or deleted is told in an answer whose length is said to be 0."""
    location = await registry.start_upload()
    answers = [
        await registry.ask("POST", registry.path("blobs/uploads/")),
        await registry.ask("PATCH", location, LAYER),
        await registry.ask("PUT", f"{location}&digest={BLOB}"),
        await registry.ask(
            "PUT", registry.path("manifests/v1"), b'{"schemaVersion": 2,"manifests": []}'
        ),
        await registry.ask("DELETE", registry.path("manifests/v1")),
        await registry.ask("DELETE", registry.path(f"blobs/{BLOB}")),
    ]
    assert [reply.status for reply in answers] == [202, 202, 201, 201, 202, 202]
    for reply in answers:
        assert (reply.headers["Content-Length"], reply.body) == ("0", b"")
        assert "Transfer-Encoding" not in reply.headers


@pytest.mark.parametrize("offered", OFFERED, ids=lambda offered: f"{offered[0]} [G15 H6]")
async def test_methods_that_are_not_offered(
    registry: Client, offered: tuple[str, str, str]
) -> None:
    """A method that a place does not offer is 405, with those that it does."""
    _, place, allowed = offered
    for method in METHODS:
        if method in allowed.split(", "):
            continue
        said, headers = f"{method} {place}", {"Allow": allowed}
        code = "" if method == "HEAD" else "UNSUPPORTED"
        await Exchange(said, method, place, 405, headers=headers, code=code).hold(registry)


@pytest.mark.parametrize("place", ["manifests/v1", f"blobs/{BLOB}", "tags/list", "/v2/"])
@pytest.mark.parametrize("row", ["G16"])
async def test_a_read_with_a_body(filled: Client, place: str, row: str) -> None:
    """A GET that brings a body is answered, and the connection goes on with the next one."""
    path = place if place.startswith("/") else filled.path(place)
    expected = await filled.ask("GET", path)
    async with filled.connected() as (reader, writer):
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
        writer.write(2 * f"{head}what for?".encode())
        for _ in range(2):
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert await reader.readexactly(len(expected.body)) == expected.body


def _escaped(digest: str) -> str:
    return digest.replace(":", "%3A")


@pytest.mark.parametrize("written", [str, _escaped], ids=["raw", "escaped"])
@pytest.mark.parametrize("row", ["G20"])
async def test_a_colon_may_be_escaped(
    filled: Client, written: Callable[[str], str], row: str
) -> None:
    """A digest is read with its colon escaped or not, in paths and in queries."""
    blob, manifest = written(BLOB), written(DIGEST)
    for place in (f"blobs/{blob}", f"manifests/{manifest}", f"referrers/{manifest}"):
        assert (await filled.ask("GET", filled.path(place))).status == 200
    session = await filled.start_upload()
    assert (await filled.ask("PUT", f"{session}&digest={blob}", LAYER)).status == 201
    uploads = filled.path("blobs/uploads/", f"{filled.repository}/other")
    for query in (f"digest={blob}", f"mount={blob}&from={filled.repository}"):
        body = LAYER if query.startswith("digest") else None
        reply = await filled.ask("POST", f"{uploads}?{query}", body)
        assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, BLOB)


@pytest.mark.parametrize("plus", ["+", "%2B", "%20"])
@pytest.mark.parametrize("row", ["G20"])
async def test_a_plus_may_have_become_a_blank(filled: Client, plus: str, row: str) -> None:
    """A media type's plus in a query is one, raw, escaped, or turned into a blank on its way."""
    subject = {"mediaType": "x/y", "digest": ABSENT, "size": 1}
    digest = await filled.push_manifest(
        image(LAYER, artifactType="application/a.b+json", subject=subject), "sbom"
    )
    query = f"artifactType=application/a.b{plus}json"
    reply = await filled.ask("GET", filled.path(f"referrers/{ABSENT}?{query}"))
    assert [entry["digest"] for entry in reply.json()["manifests"]] == [digest]
