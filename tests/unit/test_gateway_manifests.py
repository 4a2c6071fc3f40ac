"""What the registry answers to pushes and deletes of manifests, row by row of PROTOCOL."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Final

import pytest

from node.config import Config
from node.content import Content
from node.digest import Algorithm, Digest
from node.manifest import OCI_INDEX, OCI_MANIFEST
from tests.registry import (
    CONFIG,
    LAYER,
    OCI_LAYER,
    REPOSITORY,
    Served,
    descriptor,
    digest_of,
    image,
    index,
    served,
)

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
MANIFESTS: Final = f"/v2/{REPOSITORY}/manifests"
TYPED: Final = {"Content-Type": OCI_MANIFEST}
OTHER: Final = digest_of(b"something else")


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry that holds the blobs of the image."""
    async with served() as registry:
        for content in (CONFIG, LAYER):
            await registry.push_blob(content)
        yield registry


async def _chunked(body: bytes) -> AsyncIterator[bytes]:
    yield body[:100]
    yield body[100:]


@pytest.mark.parametrize("row", ["MP1-MP2-MP11-MG1"])
async def test_put(registry: Served, row: str) -> None:
    """A manifest is there when the 201 is, under its tag and its digest, again and again."""
    for _ in range(2):
        reply = await registry.ask("PUT", f"{MANIFESTS}/v1", IMAGE, TYPED)
        assert reply.status == 201
        assert reply.headers["Location"] == f"{MANIFESTS}/{DIGEST}"
        assert reply.headers["Docker-Content-Digest"] == DIGEST
        assert reply.headers["Content-Length"] == "0"
        for path in (f"{MANIFESTS}/v1", reply.headers["Location"]):
            found = await registry.ask("GET", path)
            assert (found.body, found.headers["Content-Type"]) == (IMAGE, OCI_MANIFEST)


@pytest.mark.parametrize("row", ["MP11"])
async def test_a_tag_moves(registry: Served, row: str) -> None:
    """A tag shows what was pushed last, and what it showed stays under its digest."""
    other = image(LAYER, annotations={"n": "2"})
    await registry.push_manifest(IMAGE, "v1")
    await registry.push_manifest(other, "v1")
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).body == other
    assert (await registry.ask("GET", f"{MANIFESTS}/{DIGEST}")).body == IMAGE


@pytest.mark.parametrize(
    ("reference", "body", "asked", "code"),
    [
        pytest.param(OTHER, IMAGE, TYPED, "DIGEST_INVALID", id="other digest [MP3]"),
        pytest.param("sha256:0", IMAGE, TYPED, "DIGEST_INVALID", id="no digest [MP3]"),
        pytest.param("md5:abc", IMAGE, TYPED, "DIGEST_INVALID", id="unknown algorithm [MP3]"),
        pytest.param("x" * 129, IMAGE, TYPED, "NAME_INVALID", id="long tag [MP16]"),
        pytest.param(".v1", IMAGE, TYPED, "NAME_INVALID", id="bad tag [MP16]"),
        pytest.param("v1", b"", TYPED, "MANIFEST_INVALID", id="no body [V3]"),
        pytest.param("v1", b"{", TYPED, "MANIFEST_INVALID", id="no JSON [V3]"),
        pytest.param("v1", b"[]", TYPED, "MANIFEST_INVALID", id="no object [V3]"),
        pytest.param("v1", b"{}", TYPED, "MANIFEST_INVALID", id="no version [V3]"),
        pytest.param("v1", b"\xff", TYPED, "MANIFEST_INVALID", id="no UTF-8 [V3]"),
        pytest.param("v1", b"[" * 50_000, TYPED, "MANIFEST_INVALID", id="too deep [V3]"),
        pytest.param(
            "v1", IMAGE, {"Content-Type": OCI_INDEX}, "MANIFEST_INVALID", id="other type [MP9]"
        ),
        pytest.param(
            "v1",
            image(LAYER, manifests=[]),
            TYPED,
            "MANIFEST_INVALID",
            id="image and index at once [MP9]",
        ),
        pytest.param(
            "v1",
            b'{"schemaVersion": 1}',
            {"Content-Type": "application/vnd.docker.distribution.manifest.v1+json"},
            "MANIFEST_INVALID",
            id="schema 1 [V2]",
        ),
    ],
)
async def test_refused(
    registry: Served, reference: str, body: bytes, asked: dict[str, str], code: str
) -> None:
    """What can't be stored is 400 with its own code, and leaves nothing."""
    reply = await registry.ask("PUT", f"{MANIFESTS}/{reference}", body, asked)
    assert (reply.status, reply.code) == (400, code)
    assert (await registry.ask("GET", "/v2/_catalog")).json() == {"repositories": []}


@pytest.mark.parametrize("row", ["MP12"])
async def test_missing_blobs(registry: Served, row: str) -> None:
    """Each blob that is missing is named, and nothing becomes visible."""
    body = image(LAYER, b"one", b"two")
    reply = await registry.ask("PUT", f"{MANIFESTS}/v1", body, TYPED)
    assert reply.status == 400
    errors = reply.json()["errors"]
    assert {error["code"] for error in errors} == {"MANIFEST_BLOB_UNKNOWN"}
    assert [error["detail"]["digest"] for error in errors] == [digest_of(b"one"), digest_of(b"two")]
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).status == 404
    assert len(registry.blobs.copies) == 2


@pytest.mark.parametrize("row", ["MP5"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_large_manifest(registry: Served, row: str, framing: str) -> None:
    """3.9 MB are taken, with a length or without."""
    body = image(LAYER, annotations={"k": "x" * 3_900_000})
    sent = body if framing == "length" else _chunked(body)
    assert (await registry.ask("PUT", f"{MANIFESTS}/v1", sent, TYPED)).status == 201
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).body == body


@pytest.mark.parametrize("row", ["MP5"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_too_large_a_manifest(registry: Served, row: str, framing: str) -> None:
    """More than the limit is 413."""
    body = image(LAYER, annotations={"k": "x" * (4 << 20)})
    sent = body if framing == "length" else _chunked(body)
    reply = await registry.ask("PUT", f"{MANIFESTS}/v1", sent, TYPED)
    assert (reply.status, reply.code) == (413, "SIZE_INVALID")


@pytest.mark.parametrize("row", ["MP4-MG3-MG4"])
async def test_sha512(registry: Served, row: str) -> None:
    """A manifest pushed by its sha512 is known by it, also under its tags."""
    digest = str(Digest.of(IMAGE, Algorithm.SHA512))
    reply = await registry.ask("PUT", f"{MANIFESTS}/{digest}?tag=v1", IMAGE, TYPED)
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, digest)
    for reference in (digest, "v1"):
        found = await registry.ask("HEAD", f"{MANIFESTS}/{reference}")
        assert found.headers["Docker-Content-Digest"] == digest


@pytest.mark.parametrize("row", ["MP7"])
async def test_several_tags(registry: Served, row: str) -> None:
    """A push by digest may name its tags; next to a tag they mean nothing."""
    tags = [f"t{n}" for n in range(12)]
    query = "&".join(f"tag={tag}" for tag in tags)
    reply = await registry.ask("PUT", f"{MANIFESTS}/{DIGEST}?{query}", IMAGE, TYPED)
    assert reply.headers["OCI-Tag"] == ", ".join(tags)
    assert (await registry.ask("GET", f"{MANIFESTS}/t11")).body == IMAGE
    reply = await registry.ask("PUT", f"{MANIFESTS}/v1?tag=other", IMAGE, TYPED)
    assert reply.status == 201
    assert "OCI-Tag" not in reply.headers
    assert (await registry.ask("GET", f"{MANIFESTS}/other")).status == 404


@pytest.mark.parametrize("row", ["MP7"])
async def test_one_bad_tag_of_several(registry: Served, row: str) -> None:
    """One tag that can't be refuses all."""
    reply = await registry.ask("PUT", f"{MANIFESTS}/{DIGEST}?tag=a&tag=.b", IMAGE, TYPED)
    assert reply.status == 400
    assert (await registry.ask("GET", f"{MANIFESTS}/{DIGEST}")).status == 404


@pytest.mark.parametrize("row", ["MP6-MD7"])
async def test_subjects(registry: Served, row: str) -> None:
    """A subject is named in the answer, there or not; its referrer leaves the list when deleted."""
    subject = descriptor(b"absent", OCI_MANIFEST)
    path = f"/v2/{REPOSITORY}/referrers/{subject['digest']}"
    for body in (image(LAYER, subject=subject), index(subject=subject)):
        digest = digest_of(body)
        reply = await registry.ask("PUT", f"{MANIFESTS}/{digest}", body)
        assert reply.headers["OCI-Subject"] == subject["digest"]
        assert [m["digest"] for m in (await registry.ask("GET", path)).json()["manifests"]] == [
            digest
        ]
        assert (await registry.ask("DELETE", f"{MANIFESTS}/{digest}")).status == 202
        assert (await registry.ask("GET", path)).json()["manifests"] == []


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        pytest.param({"Content-Type": f"{OCI_MANIFEST}; charset=utf-8"}, OCI_MANIFEST, id="MP8"),
        pytest.param({}, OCI_MANIFEST, id="no type [MP8]"),
        pytest.param({"Content-Type": OCI_MANIFEST.upper()}, OCI_MANIFEST, id="capitals"),
    ],
)
async def test_types(registry: Served, asked: dict[str, str], stored: str) -> None:
    """The type is what the header says, without parameters, else what the body is."""
    body = json.loads(IMAGE)
    del body["mediaType"]
    sent = json.dumps(body).encode()
    assert (await registry.ask("PUT", f"{MANIFESTS}/v1", sent, asked)).status == 201
    found = await registry.ask("GET", f"{MANIFESTS}/v1")
    assert (found.headers["Content-Type"], found.body) == (stored, sent)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(image(), id="no layers [MP15 V4]"),
        pytest.param(image(LAYER, more={"x": [1]}), id="members it doesn't know [MP15]"),
        pytest.param(index(), id="no manifests [MP15 V4]"),
        pytest.param(image(LAYER, artifactType="x/y"), id="unknown artifact type [MP15]"),
        pytest.param(
            json.dumps(
                {
                    **json.loads(IMAGE),
                    "layers": [{**descriptor(LAYER, "x/y"), "data": "!"}],
                }
            ).encode(),
            id="unknown layer type and data [MP15 V5]",
        ),
        pytest.param(
            json.dumps(
                {
                    **json.loads(IMAGE),
                    "layers": [
                        {
                            **descriptor(b"far away"),
                            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar",
                            "urls": ["https://vendor.example/layer"],
                        }
                    ],
                }
            ).encode(),
            id="layer that stays elsewhere [MP14 V8]",
        ),
        pytest.param(
            json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_INDEX,
                    "manifests": [descriptor(LAYER, OCI_LAYER)],
                }
            ).encode(),
            id="blob as a child [MP13]",
        ),
    ],
)
async def test_taken_as_they_are(registry: Served, body: bytes) -> None:
    """What clients may put into a manifest comes back byte for byte."""
    await registry.push_manifest(body, "v1")
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).body == body


@pytest.mark.parametrize("row", ["MP10-MP15-MD9"])
async def test_index(registry: Served, row: str) -> None:
    """An index needs its children, nests, and keeps them from being deleted."""
    inner = index(IMAGE)
    reply = await registry.ask("PUT", f"{MANIFESTS}/v1", inner)
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    await registry.push_manifest(IMAGE)
    await registry.push_manifest(inner)
    outer = json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [descriptor(inner, OCI_INDEX)]}
    ).encode()
    await registry.push_manifest(outer, "v1")
    reply = await registry.ask("DELETE", f"{MANIFESTS}/{DIGEST}")
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")
    assert digest_of(inner) in reply.json()["errors"][0]["message"]
    for body in (outer, inner, IMAGE):
        assert (await registry.ask("DELETE", f"{MANIFESTS}/{digest_of(body)}")).status == 202


@pytest.mark.parametrize("row", ["MD1-MD3-MD5"])
async def test_delete_a_tag(registry: Served, row: str) -> None:
    """A tag goes at once and alone; it can't go twice."""
    await registry.push_manifest(IMAGE, "v1")
    assert (await registry.ask("DELETE", f"{MANIFESTS}/v1")).status == 202
    for method in ("HEAD", "GET", "DELETE"):
        assert (await registry.ask(method, f"{MANIFESTS}/v1")).status == 404
    assert (await registry.ask("GET", f"{MANIFESTS}/{DIGEST}")).body == IMAGE


@pytest.mark.parametrize("row", ["MD2-MD3-TL8"])
async def test_delete_a_manifest(registry: Served, row: str) -> None:
    """A manifest goes at once with all of its tags, and can be pushed again."""
    for tag in ("v1", "v2"):
        await registry.push_manifest(IMAGE, tag)
    assert (await registry.ask("DELETE", f"{MANIFESTS}/{DIGEST}")).status == 202
    for reference in ("v1", "v2", DIGEST):
        assert (await registry.ask("HEAD", f"{MANIFESTS}/{reference}")).status == 404
    assert (await registry.ask("DELETE", f"{MANIFESTS}/{DIGEST}")).status == 404
    assert (await registry.ask("GET", "/v2/_catalog")).json() == {"repositories": []}
    await registry.push_manifest(IMAGE, "v1")
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).body == IMAGE


@pytest.mark.parametrize("reference", ["v1", DIGEST, ".x"])
@pytest.mark.parametrize("row", ["MD3"])
async def test_delete_what_is_not_there(registry: Served, row: str, reference: str) -> None:
    """Deleting in a repository that does not exist is 404."""
    reply = await registry.ask("DELETE", f"/v2/none/manifests/{reference}")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("row", ["MD4-B14"])
async def test_a_site_that_keeps_everything(row: str) -> None:
    """With deletes off, each is 405, and pushes go on."""
    async with served(Config(deletes=False)) as registry:
        await registry.push_image()
        for path in (
            f"{MANIFESTS}/v1",
            f"{MANIFESTS}/{DIGEST}",
            f"/v2/{REPOSITORY}/blobs/{digest_of(LAYER)}",
        ):
            reply = await registry.ask("DELETE", path)
            assert (reply.status, reply.code) == (405, "UNSUPPORTED")
            assert (await registry.ask("GET", path)).status == 200


@pytest.mark.parametrize("row", ["G15"])
async def test_a_read_only_site(row: str) -> None:
    """A read-only site refuses every write with 405, and answers reads."""
    async with served(Config(read_only=True)) as registry:
        uploads = f"/v2/{REPOSITORY}/blobs/uploads/"
        for method, path, body in (
            ("PUT", f"{MANIFESTS}/v1", IMAGE),
            ("DELETE", f"{MANIFESTS}/v1", None),
            ("POST", uploads, None),
            ("POST", f"{uploads}?mount={OTHER}&from=x", None),
            ("DELETE", f"/v2/{REPOSITORY}/blobs/{OTHER}", None),
            ("PATCH", f"{uploads}some-session", b"x"),
            ("PUT", f"{uploads}some-session?digest={OTHER}", None),
            ("DELETE", f"{uploads}some-session", None),
        ):
            reply = await registry.ask(method, path, body)
            assert (reply.status, reply.code) == (405, "UNSUPPORTED")
        assert (await registry.ask("GET", "/v2/_catalog")).status == 200


async def test_a_cut_body_stores_nothing(registry: Served) -> None:
    """A manifest of which only a part came is not stored (MP18)."""
    async with registry.connected() as (reader, writer):
        head = f"PUT {MANIFESTS}/v1 HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n"
        writer.write(head.encode() + IMAGE)
        writer.write_eof()
        answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.split()[1] == b"400"
    assert json.loads(body)["errors"][0]["code"] == "SIZE_INVALID"
    assert (await registry.ask("GET", f"{MANIFESTS}/v1")).status == 404


@pytest.mark.parametrize("row", ["P9"])
async def test_a_damaged_manifest_is_healed_by_a_push(row: str) -> None:
    """A manifest whose body was lost is 404 until it is pushed again."""
    async with served() as registry:
        for content in (CONFIG, LAYER):
            await registry.push_blob(content)
        await registry.push_manifest(IMAGE, "v1")
        [lost] = [copy for copy in registry.blobs.copies if str(copy[0]) == DIGEST]
        registry.blobs.lose(*lost)
        async with served(beside=registry) as other:
            for method in ("GET", "HEAD"):
                assert (await other.ask(method, f"{MANIFESTS}/v1")).status == 404
            await registry.push_manifest(IMAGE, "v1")
            assert (await other.ask("GET", f"{MANIFESTS}/v1")).body == IMAGE


@pytest.mark.parametrize("row", ["MD3"])
async def test_deleting_what_is_no_manifest_reads_nothing(
    registry: Served, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of any blob is no manifest: 404, without a look at its bytes."""
    digest = await registry.push_blob(b"a layer of many gigabytes")

    async def read(_self: Content, _digest: Digest) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(Content, "read", read)
    for name in (REPOSITORY, "never/seen"):
        reply = await registry.ask("DELETE", f"/v2/{name}/manifests/{digest}")
        assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
