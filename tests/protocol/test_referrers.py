"""Referrers: what is listed of the manifests that have a subject, row by row of PROTOCOL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

import pytest

from node.manifest import OCI_ARTIFACT, OCI_INDEX, OCI_MANIFEST
from tests.registry import (
    CONFIG,
    LAYER,
    OCI_CONFIG,
    Client,
    Reply,
    descriptor,
    digest_of,
    image,
    index,
)

IMAGE: Final = image(LAYER)
SUBJECT: Final = descriptor(IMAGE, OCI_MANIFEST)
LIST: Final = f"referrers/{SUBJECT['digest']}"
TYPE: Final = "application/vnd.example.bill.v1+json"
ODD: Final = "application/x.bundle; version=0.3+json"


def _digests(reply: Reply) -> list[str]:
    assert reply.status == 200
    return [listed["digest"] for listed in reply.json()["manifests"]]


def _sorted(bodies: Iterable[bytes]) -> list[str]:
    return sorted(map(digest_of, bodies))


@pytest.mark.parametrize("row", ["R1-R3-G4-H7"])
async def test_referrers(filled: Client, row: str) -> None:
    """The list is an index; each descriptor says of its manifest just what that says of itself."""
    annotations = {"org.example.key": "value", "empty": "", "\u00fc": "\u2603 \U0001f40b"}
    bill = image(LAYER, subject=SUBJECT, artifactType=TYPE, annotations=annotations)
    plain = image(subject=SUBJECT)
    inside = index(subject=SUBJECT)
    typed = index(subject=SUBJECT, artifactType=TYPE)
    for body in (bill, plain, inside, typed):
        await filled.push_manifest(body)
    await filled.push_manifest(image(LAYER, subject=descriptor(b"another", OCI_MANIFEST)))

    reply = await filled.ask("GET", filled.path(LIST))
    assert (reply.status, reply.headers["Content-Type"]) == (200, OCI_INDEX)
    assert "OCI-Filters-Applied" not in reply.headers
    assert "Link" not in reply.headers
    document = reply.json()
    listed = {one["digest"]: one for one in document.pop("manifests")}
    assert document == {"schemaVersion": 2, "mediaType": OCI_INDEX}
    assert listed == {
        digest_of(bill): {
            **descriptor(bill, OCI_MANIFEST),
            "artifactType": TYPE,
            "annotations": annotations,
        },
        digest_of(plain): {**descriptor(plain, OCI_MANIFEST), "artifactType": OCI_CONFIG},
        digest_of(inside): descriptor(inside, OCI_INDEX),
        digest_of(typed): {**descriptor(typed, OCI_INDEX), "artifactType": TYPE},
    }


@pytest.mark.parametrize("row", ["R2"])
@pytest.mark.parametrize("query", ["", f"?artifactType={TYPE}"])
async def test_no_referrers(registry: Client, row: str, query: str) -> None:
    """Of an unknown repository, an unknown subject, or one without, the list is empty: no 404."""
    for _ in range(2):
        reply = await registry.ask("GET", registry.path(LIST + query))
        assert (reply.status, reply.headers["Content-Type"]) == (200, OCI_INDEX)
        assert reply.json() == {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
        # Now the repository is known, and then the subject is.
        await registry.push_image()


@pytest.mark.parametrize("row", ["R4"])
@pytest.mark.parametrize("subject", ["v1", "sha256:0", f"sha256:{'A' * 64}", f"md5:{'a' * 32}"])
async def test_no_subject(registry: Client, row: str, subject: str) -> None:
    """What is no digest is refused, and so is a page behind none."""
    for rest in (subject, f"{SUBJECT['digest']}?last={subject}"):
        reply = await registry.ask("GET", registry.path(f"referrers/{rest}"))
        assert (reply.status, reply.code) == (400, "DIGEST_INVALID")


@pytest.mark.parametrize("row", ["R5-G20"])
async def test_referrers_of_a_type(filled: Client, row: str) -> None:
    """One type or any of several, escaped or not, and it is said that they were chosen."""
    bills, odd = [image(LAYER, subject=SUBJECT, artifactType=t) for t in (TYPE, ODD)]
    plain = image(subject=SUBJECT)
    for body in (bills, odd, plain):
        await filled.push_manifest(body)
    escaped = ODD.replace(";", "%3B").replace(" ", "%20").replace("+", "%2B")
    for query, chosen in (
        (f"artifactType={TYPE}", [bills]),
        (f"artifactType={TYPE.replace('+', '%2B').replace('/', '%2F')}", [bills]),
        (f"artifactType={OCI_CONFIG}", [plain]),
        (f"artifactType={TYPE}&artifactType={OCI_CONFIG}&artifactType=other", [bills, plain]),
        (f"artifactType={escaped}", [odd]),
        (f"artifactType={escaped.replace('%20', '+')}", [odd]),
        ("artifactType=other", []),
    ):
        reply = await filled.ask("GET", filled.path(f"{LIST}?{query}"))
        assert _digests(reply) == _sorted(chosen), query
        assert reply.headers["OCI-Filters-Applied"] == "artifactType"
    reply = await filled.ask("GET", filled.path(f"{LIST}?artifactType="))
    assert _digests(reply) == _sorted([bills, odd, plain])
    assert "OCI-Filters-Applied" not in reply.headers


@pytest.mark.parametrize(
    ("number", "size", "pages"),
    [
        pytest.param(250, 50, 1, id="more than are read at once [R6]"),
        pytest.param(250, 20_000, 2, id="many larger ones [R6]"),
        pytest.param(200, 60_000, 4, id="many by a filter [R6]"),
        pytest.param(4, 1_100_000, 2, id="few that are very large [R6]"),
    ],
)
async def test_referrers_by_pages(filled: Client, number: int, size: int, pages: int) -> None:
    """No page is larger than clients take, none is cut early, and the links leave none out."""
    filler = "x" * size
    pushed = {}
    for n in range(number):
        kind = TYPE if n % 2 else ODD
        annotations = {"n": str(n), "filler": filler}
        body = index(subject=SUBJECT, artifactType=kind, annotations=annotations)
        pushed[await filled.push_manifest(body)] = kind
    for query, wanted in (
        ("", sorted(pushed)),
        (f"?artifactType={TYPE}", sorted(d for d, kind in pushed.items() if kind == TYPE)),
    ):
        path, replies = filled.path(LIST + query), []
        while path:
            replies.append(await filled.ask("GET", path))
            path = replies[-1].headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert [digest for reply in replies for digest in _digests(reply)] == wanted
        assert all(len(reply.body) < 4 << 20 for reply in replies)
        assert all(("OCI-Filters-Applied" in r.headers) == bool(query) for r in replies)
        if not query:
            assert len(replies) == pages
        elif pages > 3:
            assert len(replies) > 1


@pytest.mark.parametrize("row", ["R7"])
async def test_referrers_beside_a_fallback_tag(filled: Client, row: str) -> None:
    """What a client lists under a tag, as it must where there is no such API, is listed here."""
    signature = image(LAYER, subject=SUBJECT, artifactType=TYPE)
    await filled.push_manifest(signature)
    tag = str(SUBJECT["digest"]).replace(":", "-")
    fallback = index(signature)
    await filled.push_manifest(fallback, tag)
    assert _digests(await filled.ask("GET", filled.path(LIST))) == [digest_of(signature)]
    assert (await filled.ask("GET", filled.path(f"manifests/{tag}"))).body == fallback


@pytest.mark.parametrize("row", ["R7"])
async def test_a_referrer_that_comes_before_its_subject(registry: Client, row: str) -> None:
    """Whichever of the two is pushed first, and under whatever tag, the referrer is listed."""
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    referrer = image(LAYER, subject=SUBJECT)
    await registry.push_manifest(referrer, "signature")
    for _ in range(2):
        assert _digests(await registry.ask("GET", registry.path(LIST))) == [digest_of(referrer)]
        await registry.push_manifest(IMAGE)


@pytest.mark.parametrize("row", ["R7-MD7"])
async def test_referrers_are_of_one_repository(filled: Client, row: str) -> None:
    """A referrer is listed where it is, until it is deleted; its subject's end changes nothing."""
    await filled.push_image(repository="room/of/others")
    referrer = image(LAYER, subject=SUBJECT)
    digest = await filled.push_manifest(referrer)
    elsewhere = filled.path(LIST, "room/of/others")
    assert _digests(await filled.ask("GET", elsewhere)) == []
    await filled.ask("DELETE", filled.path(f"manifests/{SUBJECT['digest']}"))
    assert _digests(await filled.ask("GET", filled.path(LIST))) == [digest]
    await filled.ask("DELETE", filled.path(f"manifests/{digest}"))
    assert _digests(await filled.ask("GET", filled.path(LIST))) == []


@pytest.mark.parametrize("row", ["R8-V1"])
async def test_the_artifact_manifest_of_the_drafts(filled: Client, row: str) -> None:
    """The artifact manifest, which has no schemaVersion, is kept as it is, and listed."""
    body = json.dumps(
        {
            "mediaType": OCI_ARTIFACT,
            "artifactType": TYPE,
            "blobs": [descriptor(LAYER)],
            "subject": SUBJECT,
            "annotations": {"k": "v"},
        }
    ).encode()
    digest = await filled.push_manifest(body)
    found = await filled.ask("GET", filled.path(f"manifests/{digest}"))
    assert (found.body, found.headers["Content-Type"]) == (body, OCI_ARTIFACT)
    said = {"artifactType": TYPE, "annotations": {"k": "v"}}
    listed = (await filled.ask("GET", filled.path(LIST))).json()["manifests"]
    assert listed == [{**descriptor(body, OCI_ARTIFACT), **said}]


@pytest.mark.parametrize("row", ["R8"])
async def test_referrers_by_head(filled: Client, row: str) -> None:
    """HEAD of a list has the headers of its GET."""
    await filled.push_manifest(image(LAYER, subject=SUBJECT))
    get = await filled.ask("GET", filled.path(LIST))
    head = await filled.ask("HEAD", filled.path(LIST))
    assert (head.status, head.body) == (200, b"")
    assert head.headers["Content-Length"] == str(len(get.body))
    assert head.headers["Content-Type"] == OCI_INDEX


@pytest.mark.parametrize("row", ["R3-R6"])
async def test_annotations_that_no_list_could_hold(filled: Client, row: str) -> None:
    """A manifest with a subject says no more of itself than its store takes; others may."""
    path, filler = filled.path("manifests/large"), {"filler": "x" * 1_300_000}
    reply = await filled.ask("PUT", path, index(subject=SUBJECT, annotations=filler))
    assert (reply.status, reply.code) == (400, "MANIFEST_INVALID")
    assert (await filled.ask("PUT", path, index(annotations=filler))).status == 201
