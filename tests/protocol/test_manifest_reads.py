"""GET and HEAD of manifests (rows MG)."""

from __future__ import annotations

import json
from typing import Final

import pytest

from node.digest import Algorithm, Digest
from node.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_ARTIFACT, OCI_INDEX, OCI_MANIFEST
from tests.protocol.exchanges import Exchange
from tests.registry import LAYER, Client, descriptor, digest_of, image

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
SHA512: Final = str(Digest.of(IMAGE, Algorithm.SHA512))
ABSENT: Final = digest_of(b"never pushed")
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1"
SHOWN: Final = {
    "Content-Type": OCI_MANIFEST,
    "Docker-Content-Digest": DIGEST,
    "Content-Length": str(len(IMAGE)),
    "ETag": f'"{DIGEST}"',
}
KNOWN: Final = {"ETag": f'"{DIGEST}"', "Docker-Content-Digest": DIGEST, "Content-Length": ""}

FOUND: Final = [
    Exchange("by tag [MG1]", "GET", "manifests/v1", 200, (), SHOWN, IMAGE),
    Exchange("by digest [MG1]", "GET", f"manifests/{DIGEST}", 200, (), SHOWN, IMAGE),
    Exchange("HEAD by tag [MG2 0.1]", "HEAD", "manifests/v1", 200, (), SHOWN, b""),
    Exchange("HEAD by digest [MG2 0.1]", "HEAD", f"manifests/{DIGEST}", 200, (), SHOWN, b""),
    Exchange("ns unknown [MG11 0.6]", "GET", "manifests/v1?ns=docker.example", 200, (), SHOWN),
    Exchange(
        "ns is no namespace [0.6]", "GET", "manifests/v1?ns=x", 200, (), {"OCI-Namespace": ""}
    ),
]

# Who asks: containerd, docker, curl and scripts; lines, lists, blanks, weights.
ACCEPTS: Final = {
    "none": [],
    "anything": [("Accept", "*/*")],
    "a page": [("Accept", "text/html")],
    "a list": [("Accept", f"{DOCKER_LIST} , {OCI_INDEX};q=0.9,*/*;q=0.1")],
    "lines": [("Accept", DOCKER_MANIFEST), ("Accept", DOCKER_LIST), ("Accept", "*/*")],
    "docker's own only": [("Accept", DOCKER_MANIFEST)],
}

TAGS: Final = [
    pytest.param({"If-None-Match": f'"{DIGEST}"'}, id="quoted [MG7]"),
    pytest.param({"If-None-Match": DIGEST}, id="bare [MG7]"),
    pytest.param({"If-None-Match": f'W/"{DIGEST}"'}, id="weak [MG7]"),
    pytest.param({"If-None-Match": f'"x", W/"{DIGEST}"'}, id="in a list [MG7]"),
    pytest.param({"If-None-Match": "*"}, id="anything [MG7]"),
    pytest.param(
        [("If-None-Match", '"x"'), ("If-None-Match", f'"{DIGEST}"')], id="in a second line [MG7 H8]"
    ),
]

# (what, place, status, code): not there, or not anywhere.
MISSING: Final = [
    ("tag [MG5]", "manifests/v2", 404, "MANIFEST_UNKNOWN"),
    ("digest [MG5]", f"manifests/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
    ("repository [MG5]", "/v2/no/one/manifests/v1", 404, "MANIFEST_UNKNOWN"),
    ("digest's repository [MG5]", f"/v2/no/one/manifests/{DIGEST}", 404, "MANIFEST_UNKNOWN"),
    ("malformed tag [MG6]", "manifests/.INVALID_MANIFEST_NAME", 404, "MANIFEST_UNKNOWN"),
    ("malformed digest [MG6]", "manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"),
    ("blob [MG5]", f"manifests/{digest_of(LAYER)}", 404, "MANIFEST_UNKNOWN"),
]


@pytest.mark.parametrize("exchange", FOUND, ids=lambda exchange: exchange.said)
async def test_found(filled: Client, exchange: Exchange) -> None:
    """A manifest is its bytes, their type, length and digest, by HEAD and by GET."""
    await exchange.hold(filled)


@pytest.mark.parametrize("row", ["MG2"])
async def test_head_is_get_without_a_body(filled: Client, row: str) -> None:
    """HEAD has every header that GET has."""
    by_get = await filled.ask("GET", filled.path("manifests/v1"))
    by_head = await filled.ask("HEAD", filled.path("manifests/v1"))
    assert {**by_head.headers, "Date": ""} == {**by_get.headers, "Date": ""}


@pytest.mark.parametrize(
    ("media_type", "members"),
    [
        (OCI_MANIFEST, json.loads(image(LAYER))),
        (DOCKER_MANIFEST, json.loads(image(LAYER))),
        (OCI_INDEX, {"manifests": []}),
        (DOCKER_LIST, {"manifests": []}),
        (OCI_ARTIFACT, {"blobs": [descriptor(LAYER)]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("inside", [True, False], ids=["type inside", "type outside only"])
@pytest.mark.parametrize("row", ["MG1-V1"])
async def test_types_are_kept(
    stocked: Client, media_type: str, members: dict[str, object], inside: bool, row: str
) -> None:
    """A manifest has the type that it was pushed with, whether its body says so or not."""
    document = {"schemaVersion": 2, **members, "mediaType": media_type}
    if not inside:
        del document["mediaType"]
    body = json.dumps(document, indent=3).encode()
    typed = {"Content-Type": media_type}
    path = stocked.path("manifests/v1")
    assert (await stocked.ask("PUT", path, body, typed)).status == 201
    for place in (path, stocked.path(f"manifests/{digest_of(body)}")):
        reply = await stocked.ask("GET", place)
        assert (reply.headers["Content-Type"], reply.body) == (media_type, body)


@pytest.mark.parametrize("missing", MISSING, ids=lambda missing: missing[0])
async def test_missing(filled: Client, missing: tuple[str, str, int, str]) -> None:
    """What is not there is 404 with its code, and what is no digest 400; HEAD has no body."""
    said, place, status, code = missing
    await Exchange(said, "GET", place, status, code=code).hold(filled)
    await Exchange(said, "HEAD", place, status, body=b"").hold(filled)


@pytest.mark.parametrize("row", ["MG13"])
async def test_head_of_what_is_absent_is_404(registry: Client, row: str) -> None:
    """HEAD is offered for all manifests, so what is absent is never 405 or 403."""
    for reference in ("v1", ABSENT, "latest", "sha256-0.sig"):
        assert (await registry.ask("HEAD", registry.path(f"manifests/{reference}"))).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("asked", TAGS)
async def test_known_already(
    filled: Client, asked: dict[str, str] | list[tuple[str, str]], method: str
) -> None:
    """Who has the manifest gets 304, its entity tag, and no body."""
    for reference in ("v1", DIGEST):
        path = f"manifests/{reference}"
        await Exchange("known", method, path, 304, asked, KNOWN, b"").hold(filled)


@pytest.mark.parametrize("row", ["MG7"])
async def test_not_known(filled: Client, row: str) -> None:
    """Who has another manifest gets this one."""
    for asked in ({"If-None-Match": f'"{ABSENT}"'}, {"If-None-Match": ""}):
        await Exchange("other", "GET", "manifests/v1", 200, asked, SHOWN, IMAGE).hold(filled)


@pytest.mark.parametrize("accept", ACCEPTS.values(), ids=ACCEPTS)
@pytest.mark.parametrize("row", ["MG8-H8"])
async def test_accept(filled: Client, accept: list[tuple[str, str]], row: str) -> None:
    """What is stored is answered, whatever Accept says and however it is written."""
    for method, body in (("GET", IMAGE), ("HEAD", b"")):
        await Exchange("any", method, "manifests/v1", 200, accept, SHOWN, body).hold(filled)


@pytest.mark.parametrize("form", ["+json", "+prettyjws"])
@pytest.mark.parametrize("row", ["MG10"])
async def test_schema_1_is_not_made(filled: Client, form: str, row: str) -> None:
    """Who understands schema 1 only gets what is stored, under its own type."""
    asked = {"Accept": SCHEMA1 + form}
    await Exchange("old", "GET", "manifests/v1", 200, asked, SHOWN, IMAGE).hold(filled)
