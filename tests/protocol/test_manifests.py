"""Pushes of manifests (rows MP)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

import pytest

from node.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.protocol.exchanges import require_form
from tests.registry import (
    CONFIG,
    LAYER,
    Client,
    Served,
    chunked,
    descriptor,
    digest_of,
    image,
    index,
    served,
)

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
OTHER: Final = digest_of(b"something else")
TYPED: Final = {"Content-Type": OCI_MANIFEST}
# What podman, containerd and oras take at the most is 4 MiB or a little more (MG12).
LIMIT_BYTES: Final = 4 << 20


def _padded(length: int) -> bytes:
    """An image manifest of this many bytes."""
    bare = image(LAYER, annotations={"k": ""})
    return image(LAYER, annotations={"k": "x" * (length - len(bare))})


@pytest.mark.parametrize("row", ["MP1-MP2-MP11"])
@pytest.mark.parametrize("reference", ["v1", DIGEST], ids=["by tag", "by digest"])
async def test_put(stocked: Client, reference: str, row: str) -> None:
    """A manifest is there when the 201 is, where the answer says, again and again."""
    path, place = stocked.path(f"manifests/{reference}"), stocked.path(f"manifests/{DIGEST}")
    for _ in range(2):
        reply = await stocked.ask("PUT", path, IMAGE, TYPED)
        assert (reply.status, reply.headers["Location"]) == (201, place)
        assert reply.headers["Docker-Content-Digest"] == DIGEST
        assert reply.headers["Content-Length"] == "0"
        for asked in (path, reply.headers["Location"]):
            found = await stocked.ask("GET", asked)
            assert (found.body, found.headers["Content-Type"]) == (IMAGE, OCI_MANIFEST)


@pytest.mark.parametrize("row", ["MP11"])
async def test_a_tag_moves(stocked: Client, row: str) -> None:
    """A tag shows what was pushed last, and what it showed stays under its digest."""
    other = image(LAYER, annotations={"n": "2"})
    await stocked.push_manifest(IMAGE, "v1")
    await stocked.push_manifest(other, "v1")
    assert (await stocked.ask("GET", stocked.path("manifests/v1"))).body == other
    assert (await stocked.ask("GET", stocked.path(f"manifests/{DIGEST}"))).body == IMAGE


@pytest.mark.parametrize("row", ["MP11"])
async def test_a_tag_is_there_while_it_moves(stocked: Client, row: str) -> None:
    """Whoever reads a tag that moves gets one manifest or the other, whole."""
    bodies = [image(LAYER, annotations={"n": str(n)}) for n in range(8)]
    await stocked.push_manifest(bodies[0], "v1")

    async def read() -> bytes:
        return (await stocked.ask("GET", stocked.path("manifests/v1"))).body

    async with asyncio.TaskGroup() as group:
        for body in bodies:
            group.create_task(stocked.push_manifest(body, "v1"))
        reads = [group.create_task(read()) for _ in range(16)]
    assert {task.result() for task in reads} <= set(bodies)


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        pytest.param(OTHER, "DIGEST_INVALID", id="other digest [MP3]"),
        pytest.param(f"sha512:{'0' * 128}", "DIGEST_INVALID", id="other sha512 [MP3]"),
        pytest.param("sha256:0", "DIGEST_INVALID", id="no digest [MP3 0.5]"),
        pytest.param("md5:abc", "DIGEST_INVALID", id="unknown algorithm [MP3 0.5]"),
        pytest.param("x" * 129, "NAME_INVALID", id="long tag [MP16]"),
        pytest.param(".v1", "NAME_INVALID", id="bad tag [MP16]"),
    ],
)
@pytest.mark.parametrize("name", ["", "never/pushed/to"], ids=["here", "in a new repository"])
async def test_references_that_are_refused(
    stocked: Client, reference: str, code: str, name: str
) -> None:
    """What can't be the reference of these bytes is 400, never 404, and nothing is stored."""
    path = stocked.path(f"manifests/{reference}", name)
    reply = await stocked.ask("PUT", path, index(), {"Content-Type": OCI_INDEX})
    assert (reply.status, reply.code) == (400, code)
    path = stocked.path(f"manifests/{digest_of(index())}", name)
    assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("length", [3_900_000, LIMIT_BYTES], ids=["3.9 MB", "4 MiB"])
@pytest.mark.parametrize("row", ["MP5-MG12-H1-0.12"])
async def test_a_large_manifest(stocked: Client, length: int, framing: str, row: str) -> None:
    """What clients take at the most is taken, with a length or without."""
    body = _padded(length)
    assert len(body) == length
    sent = body if framing == "length" else chunked(body[:100], body[100:])
    path = stocked.path("manifests/v1")
    assert (await stocked.ask("PUT", path, sent, TYPED)).status == 201
    assert (await stocked.ask("GET", path)).body == body


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("row", ["MP5-MG12"])
async def test_too_large_a_manifest(stocked: Client, framing: str, row: str) -> None:
    """What most clients could not pull is 413, with a length or without, and not stored."""
    body = _padded(LIMIT_BYTES + 1)
    sent = body if framing == "length" else chunked(body[:100], body[100:])
    path = stocked.path("manifests/v1")
    reply = await stocked.ask("PUT", path, sent, TYPED)
    assert (reply.status, reply.code) == (413, "SIZE_INVALID")
    require_form(reply)
    assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("row", ["MP6"])
@pytest.mark.parametrize("body", [image, index])
async def test_subjects(stocked: Client, body: Callable[..., bytes], row: str) -> None:
    """An image's or an index's subject is named in the answer, be it there or not."""
    there = await stocked.push_manifest(IMAGE)
    for subject in (descriptor(b"absent", OCI_MANIFEST), descriptor(IMAGE, OCI_MANIFEST)):
        sent = body(subject=subject)
        path = stocked.path(f"manifests/{digest_of(sent)}")
        reply = await stocked.ask("PUT", path, sent)
        assert (reply.status, reply.headers["OCI-Subject"]) == (201, subject["digest"])
    assert subject["digest"] == there
    assert (
        "OCI-Subject" not in (await stocked.ask("PUT", stocked.path("manifests/v1"), IMAGE)).headers
    )


@pytest.mark.parametrize(
    ("members", "asked", "stored"),
    [
        pytest.param(
            {}, f"{OCI_MANIFEST}; charset=utf-8", OCI_MANIFEST, id="parameters [MP8 G4 H7]"
        ),
        pytest.param({}, OCI_MANIFEST.upper(), OCI_MANIFEST, id="capitals [MP8]"),
        pytest.param({}, "", OCI_MANIFEST, id="an image of no type [MP8]"),
        pytest.param({"mediaType": DOCKER_MANIFEST}, "", DOCKER_MANIFEST, id="type inside [MP8]"),
        pytest.param({"manifests": []}, "", OCI_INDEX, id="an index of no type [MP8]"),
        pytest.param(
            {"manifests": [], "mediaType": DOCKER_LIST}, "", DOCKER_LIST, id="list inside [MP8]"
        ),
    ],
)
async def test_types(stocked: Client, members: dict[str, object], asked: str, stored: str) -> None:
    """The type is what the header says, without parameters, else what the body is."""
    content = json.loads(index() if "manifests" in members else IMAGE)
    del content["mediaType"]
    sent = json.dumps({**content, **members}).encode()
    path = stocked.path("manifests/v1")
    headers = {"Content-Type": asked} if asked else {}
    assert (await stocked.ask("PUT", path, sent, headers)).status == 201
    found = await stocked.ask("GET", path)
    assert (found.headers["Content-Type"], found.body) == (stored, sent)


@pytest.mark.parametrize("row", ["MP10"])
async def test_an_index_comes_after_its_children(registry: Client, row: str) -> None:
    """Blobs, then images by digest, then their index by tag make a repository that was none."""
    bodies = [image(LAYER, annotations={"n": str(n)}) for n in range(2)]
    path = registry.path("manifests/v1")
    assert (await registry.ask("GET", registry.path("tags/list"))).status == 404
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    reply = await registry.ask("PUT", path, index(*bodies))
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    for body in bodies:
        await registry.push_manifest(body)
    await registry.push_manifest(index(*bodies), "v1")
    assert (await registry.ask("GET", path)).body == index(*bodies)
    assert (await registry.ask("GET", registry.path("tags/list"))).json()["tags"] == ["v1"]


@pytest.mark.parametrize("row", ["MP12"])
async def test_missing_blobs(stocked: Client, row: str) -> None:
    """Each blob that is missing is named once, and nothing becomes visible."""
    body = image(LAYER, b"one", b"two", b"one")
    reply = await stocked.ask("PUT", stocked.path("manifests/v1"), body, TYPED)
    assert reply.status == 400
    require_form(reply)
    errors = reply.json()["errors"]
    assert {error["code"] for error in errors} == {"MANIFEST_BLOB_UNKNOWN"}
    assert [error["detail"]["digest"] for error in errors] == [digest_of(b"one"), digest_of(b"two")]
    for reference in ("v1", digest_of(body)):
        path = stocked.path(f"manifests/{reference}")
        assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("row", ["MP12"])
async def test_a_refused_manifest_leaves_no_bytes(fakes: Served, row: str) -> None:
    """Of a manifest that was refused no copy is left in the store."""
    for content in (CONFIG, LAYER):
        await fakes.push_blob(content)
    before = set(fakes.blobs.copies)
    reply = await fakes.ask("PUT", fakes.path("manifests/v1"), image(b"one"), TYPED)
    assert reply.status == 400
    assert set(fakes.blobs.copies) == before


@pytest.mark.parametrize("row", ["MP18"])
async def test_a_cut_body_stores_nothing(stocked: Client, row: str) -> None:
    """Of a manifest only a part of which came nothing is stored, though the part is one."""
    path = stocked.path("manifests/v1")
    async with stocked.connected() as (reader, writer):
        writer.write(f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".encode())
        writer.write(IMAGE)
        writer.write_eof()
        answer, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert answer.split()[1] == b"400"
    assert json.loads(body)["errors"][0]["code"] == "SIZE_INVALID"
    for reference in ("v1", DIGEST):
        path = stocked.path(f"manifests/{reference}")
        assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("row", ["P9"])
async def test_a_damaged_manifest_is_healed_by_a_push(fakes: Served, row: str) -> None:
    """A manifest whose body was lost is 404 until it is pushed again."""
    digest = await fakes.push_image()
    [lost] = [copy for copy in fakes.blobs.copies if str(copy[0]) == digest]
    fakes.blobs.lose(*lost)
    async with served(beside=fakes) as other:
        path = other.path("manifests/v1")
        for method in ("GET", "HEAD"):
            assert (await other.ask(method, path)).status == 404
        await fakes.push_manifest(IMAGE, "v1")
        assert (await other.ask("GET", path)).body == IMAGE
