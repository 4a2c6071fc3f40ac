"""Content by its sha512: blobs, mounts, manifests, tags, indexes, referrers."""

from __future__ import annotations

import json
from typing import Final

import pytest

from node.manifest import OCI_MANIFEST
from tests import registry as by_sha256
from tests.registry import CONFIG, LAYER, OCI_CONFIG, Client
from tests.sha512 import IMAGE, INDEX, REFERRER, descriptor, digest_of, push, push_blobs

DIGEST: Final = digest_of(IMAGE)
BLOB: Final = digest_of(LAYER)
SHA256: Final = by_sha256.digest_of(IMAGE)
UPLOADS: Final = "blobs/uploads/"
SOURCE: Final = "room/of/others"


@pytest.fixture
async def pushed(registry: Client) -> Client:
    """A registry whose repository holds an image of which all is known by sha512, as v1."""
    await push_blobs(registry)
    await push(registry, IMAGE, "v1")
    return registry


@pytest.mark.parametrize("row", ["U30-0.3-0.12"])
@pytest.mark.parametrize("hint", ["", "?digest-algorithm=sha512", "?digest-algorithm=sha256"])
@pytest.mark.parametrize("before", [0, 400, 1024])
async def test_an_upload(registry: Client, row: str, hint: str, before: int) -> None:
    """The digest may be sha512 at the end, whatever was hashed on the way or announced."""
    reply = await registry.ask("POST", registry.path(UPLOADS + hint))
    location = reply.headers["Location"]
    if before:
        await registry.ask("PATCH", location, LAYER[:before])
    reply = await registry.ask("PUT", f"{location}&digest={BLOB}", LAYER[before:])
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, BLOB)
    assert reply.headers["Location"] == registry.path(f"blobs/{BLOB}")
    reply = await registry.ask("GET", registry.path(f"blobs/{BLOB}"))
    assert (reply.body, reply.headers["ETag"]) == (LAYER, f'"{BLOB}"')
    assert reply.headers["Docker-Content-Digest"] == BLOB


@pytest.mark.parametrize("row", ["U29-U30-U4"])
async def test_an_upload_of_other_bytes(registry: Client, row: str) -> None:
    """A sha512 is verified like any other."""
    location = await registry.start_upload()
    await registry.ask("PATCH", location, LAYER)
    wrong = digest_of(b"something else")
    for method, path in (
        ("PUT", f"{location}&digest={wrong}"),
        ("POST", registry.path(f"{UPLOADS}?digest={wrong}")),
    ):
        reply = await registry.ask(method, path, b"" if method == "PUT" else LAYER)
        assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
        assert (await registry.ask("HEAD", registry.path(f"blobs/{wrong}"))).status == 404


@pytest.mark.parametrize("row", ["U30-B3"])
async def test_two_names_of_one_content(registry: Client, row: str) -> None:
    """The digests of one content are two blobs: pushed, seen and deleted one by one."""
    await registry.push_blob(LAYER)
    by_512, by_256 = (registry.path(f"blobs/{d}") for d in (BLOB, by_sha256.digest_of(LAYER)))
    assert (await registry.ask("HEAD", by_512)).status == 404
    await push_blobs(registry)
    assert (await registry.ask("DELETE", by_512)).status == 202
    assert (await registry.ask("HEAD", by_512)).status == 404
    assert (await registry.ask("GET", by_256)).body == LAYER


@pytest.mark.parametrize("row", ["U7-B4"])
async def test_a_mount(registry: Client, row: str) -> None:
    """A blob is mounted by its sha512, and read in ranges."""
    await push_blobs(registry, SOURCE)
    path = registry.path(f"{UPLOADS}?mount={BLOB}&from={SOURCE}")
    reply = await registry.ask("POST", path)
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, BLOB)
    asked = {"Range": "bytes=1000-"}
    reply = await registry.ask("GET", registry.path(f"blobs/{BLOB}"), None, asked)
    assert (reply.status, reply.body) == (206, LAYER[1000:])


@pytest.mark.parametrize("row", ["MP4-MG3-MG4-0.12"])
async def test_a_manifest(pushed: Client, row: str) -> None:
    """A manifest that was pushed by its sha512 is known by it, also under its tags."""
    for reference in (DIGEST, "v1"):
        for method in ("HEAD", "GET"):
            found = await pushed.ask(method, pushed.path(f"manifests/{reference}"))
            assert found.headers["Docker-Content-Digest"] == DIGEST
            assert found.headers["ETag"] == f'"{DIGEST}"'
            assert found.body == (IMAGE if method == "GET" else b"")
    assert (await pushed.ask("GET", pushed.path(f"manifests/{SHA256}"))).status == 404


@pytest.mark.parametrize("row", ["MP4-MG4"])
async def test_a_tag_moves_between_algorithms(pushed: Client, row: str) -> None:
    """A push by tag is known by its sha256, and a tag may go from one algorithm to the other."""
    path = pushed.path("manifests/v1")
    assert (await pushed.ask("PUT", path, IMAGE)).status == 201
    found = await pushed.ask("GET", path)
    assert found.headers["Docker-Content-Digest"] == SHA256
    await push(pushed, IMAGE, "v1")
    assert (await pushed.ask("HEAD", path)).headers["Docker-Content-Digest"] == DIGEST
    for digest in (DIGEST, SHA256):
        assert (await pushed.ask("GET", pushed.path(f"manifests/{digest}"))).body == IMAGE


@pytest.mark.parametrize("row", ["MP3-MP4"])
@pytest.mark.parametrize("wrong", [digest_of(b"something else"), "sha512:0", DIGEST.upper()])
async def test_a_manifest_under_a_wrong_digest(registry: Client, row: str, wrong: str) -> None:
    """A sha512 that is not the manifest's, or is none, stores nothing."""
    await push_blobs(registry)
    reply = await registry.ask("PUT", registry.path(f"manifests/{wrong}?tag=v1"), IMAGE)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    for reference in ("v1", DIGEST):
        assert (await registry.ask("GET", registry.path(f"manifests/{reference}"))).status == 404


@pytest.mark.parametrize("row", ["MP12-V5"])
async def test_a_manifest_needs_just_the_names_it_uses(registry: Client, row: str) -> None:
    """Blobs under their sha256 are not those that a manifest means by their sha512."""
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    reply = await registry.ask("PUT", registry.path(f"manifests/{DIGEST}"), IMAGE)
    assert reply.status == 400
    missing = [error["detail"]["digest"] for error in reply.json()["errors"]]
    assert missing == [digest_of(CONFIG), BLOB]


@pytest.mark.parametrize("row", ["MP10-MD2-MD9-B15"])
async def test_an_index(pushed: Client, row: str) -> None:
    """An index keeps a child by its sha512, and all of it can be deleted in its order."""
    await push(pushed, INDEX, "v1", "latest")
    for path in (f"manifests/{DIGEST}", f"blobs/{BLOB}"):
        assert (await pushed.ask("DELETE", pushed.path(path))).status == 405
    assert (await pushed.ask("DELETE", pushed.path(f"manifests/{digest_of(INDEX)}"))).status == 202
    listed = await pushed.ask("GET", pushed.path("tags/list"))
    assert listed.json()["tags"] == []
    for path in (f"manifests/{DIGEST}", f"blobs/{BLOB}"):
        assert (await pushed.ask("DELETE", pushed.path(path))).status == 202
        assert (await pushed.ask("HEAD", pushed.path(path))).status == 404


@pytest.mark.parametrize("row", ["R1-R3-MP6-MD7"])
async def test_referrers(pushed: Client, row: str) -> None:
    """A subject is known by the digest its referrer names, and so is a referrer."""
    digest = digest_of(REFERRER)
    reply = await pushed.ask("PUT", pushed.path(f"manifests/{digest}"), REFERRER)
    assert (reply.status, reply.headers["OCI-Subject"]) == (201, DIGEST)
    path = pushed.path(f"referrers/{DIGEST}")
    listed = (await pushed.ask("GET", path)).json()["manifests"]
    assert listed == [{**descriptor(REFERRER, OCI_MANIFEST), "artifactType": OCI_CONFIG}]
    other = pushed.path(f"referrers/{SHA256}")
    assert (await pushed.ask("GET", other)).json()["manifests"] == []
    assert (await pushed.ask("DELETE", pushed.path(f"manifests/{digest}"))).status == 202
    assert (await pushed.ask("GET", path)).json()["manifests"] == []


@pytest.mark.parametrize("row", ["R6"])
async def test_pages_of_both_algorithms(pushed: Client, row: str) -> None:
    """Referrers by either algorithm are pages of one list."""
    pushed_digests = set()
    for n in range(6):
        filler = {"n": str(n), "filler": "x" * 1_100_000}
        body = json.dumps({**json.loads(REFERRER), "annotations": filler}).encode()
        digest = await push(pushed, body) if n % 2 else await pushed.push_manifest(body)
        pushed_digests.add(digest)
    path, found = pushed.path(f"referrers/{DIGEST}"), []
    while path:
        reply = await pushed.ask("GET", path)
        found += [one["digest"] for one in reply.json()["manifests"]]
        path = reply.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert len(found) == 6
    assert set(found) == pushed_digests
