"""Deletes of manifests and tags (rows MD)."""

from __future__ import annotations

from typing import Final

import pytest

from node.content import Content
from node.digest import Digest
from node.manifest import OCI_MANIFEST
from tests.registry import LAYER, Client, Served, descriptor, digest_of, image, index

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)


async def _statuses(registry: Client, method: str, *references: str) -> list[int]:
    paths = [registry.path(f"manifests/{reference}") for reference in references]
    return [(await registry.ask(method, path)).status for path in paths]


async def _referrers(registry: Client, subject: str) -> list[str]:
    reply = await registry.ask("GET", registry.path(f"referrers/{subject}"))
    return [entry["digest"] for entry in reply.json()["manifests"]]


@pytest.mark.parametrize("row", ["MD1-MD5-MD8"])
async def test_delete_a_tag(filled: Client, row: str) -> None:
    """A tag goes at once and alone; its manifest and the other tags stay."""
    await filled.push_manifest(IMAGE, "v2")
    assert await _statuses(filled, "DELETE", "v1") == [202]
    for method in ("HEAD", "GET"):
        assert await _statuses(filled, method, "v1", "v2", DIGEST) == [404, 200, 200]
    assert (await filled.ask("GET", filled.path("tags/list"))).json()["tags"] == ["v2"]


@pytest.mark.parametrize("row", ["MD1"])
async def test_delete_the_last_tag(filled: Client, row: str) -> None:
    """A manifest without a tag stays, and can be tagged again."""
    assert await _statuses(filled, "DELETE", "v1") == [202]
    assert await _statuses(filled, "GET", DIGEST) == [200]
    await filled.push_manifest(IMAGE, "v3")
    assert await _statuses(filled, "GET", "v1", "v3") == [404, 200]


@pytest.mark.parametrize("row", ["MD2-MD5"])
async def test_delete_a_manifest(filled: Client, row: str) -> None:
    """A manifest goes at once with all of its tags, and can be pushed again."""
    await filled.push_manifest(IMAGE, "v2")
    await filled.push_manifest(index(), "other")
    assert await _statuses(filled, "DELETE", DIGEST) == [202]
    for method in ("HEAD", "GET"):
        assert await _statuses(filled, method, "v1", "v2", DIGEST, "other") == [404, 404, 404, 200]
    assert (await filled.ask("GET", filled.path("tags/list"))).json()["tags"] == ["other"]
    await filled.push_manifest(IMAGE, "v1")
    assert (await filled.ask("GET", filled.path("manifests/v1"))).body == IMAGE


@pytest.mark.parametrize("reference", ["v1", DIGEST], ids=["tag", "digest"])
@pytest.mark.parametrize("row", ["MD3"])
async def test_delete_twice(filled: Client, reference: str, row: str) -> None:
    """What was deleted is unknown to the next delete."""
    path = filled.path(f"manifests/{reference}")
    assert (await filled.ask("DELETE", path)).status == 202
    reply = await filled.ask("DELETE", path)
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("reference", ["v1", DIGEST, ".x"], ids=["tag", "digest", "no tag"])
@pytest.mark.parametrize("row", ["MD3"])
async def test_delete_in_no_repository(registry: Client, reference: str, row: str) -> None:
    """Deleting in a repository that does not exist is 404."""
    reply = await registry.ask("DELETE", registry.path(f"manifests/{reference}"))
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("row", ["MD3-TL8"])
async def test_a_repository_ends_with_its_last_manifest(fakes: Served, row: str) -> None:
    """The catalog leaves out a repository that holds no manifest any more."""
    digest = await fakes.push_image()
    assert (await fakes.ask("GET", "/v2/_catalog")).json() == {"repositories": [fakes.repository]}
    assert await _statuses(fakes, "DELETE", digest) == [202]
    assert (await fakes.ask("GET", "/v2/_catalog")).json() == {"repositories": []}


@pytest.mark.parametrize("row", ["MD3"])
async def test_deleting_what_is_no_manifest_reads_nothing(
    fakes: Served, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A digest of any blob is no manifest: 404, without a look at its bytes."""
    digest = await fakes.push_blob(b"a layer of many gigabytes")

    async def read(_self: Content, _digest: Digest) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(Content, "read", read)
    for name in (fakes.repository, "never/seen"):
        reply = await fakes.ask("DELETE", fakes.path(f"manifests/{digest}", name))
        assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")


@pytest.mark.parametrize("row", ["MD7"])
async def test_a_deleted_referrer_leaves_the_list(filled: Client, row: str) -> None:
    """A referrer is listed until it is deleted, and the others go on being listed."""
    subject = descriptor(IMAGE, OCI_MANIFEST)
    bodies = [image(LAYER, subject=subject), index(subject=subject)]
    digests = [await filled.push_manifest(body) for body in bodies]
    assert sorted(await _referrers(filled, DIGEST)) == sorted(digests)
    for n, digest in enumerate(digests, 1):
        assert await _statuses(filled, "DELETE", digest) == [202]
        assert await _referrers(filled, DIGEST) == digests[n:]


@pytest.mark.parametrize("row", ["MD7"])
async def test_a_deleted_subject_keeps_its_referrers(filled: Client, row: str) -> None:
    """What refers to a manifest is listed and can be pulled when that has gone."""
    body = image(LAYER, subject=descriptor(IMAGE, OCI_MANIFEST))
    digest = await filled.push_manifest(body)
    assert await _statuses(filled, "DELETE", DIGEST) == [202]
    assert await _referrers(filled, DIGEST) == [digest]
    assert (await filled.ask("GET", filled.path(f"manifests/{digest}"))).body == body


@pytest.mark.parametrize("row", ["MD9"])
async def test_an_index_keeps_its_children(filled: Client, row: str) -> None:
    """A manifest that an index needs is 405, which names the index; that has to go first."""
    outer = index(IMAGE)
    await filled.push_manifest(outer)
    reply = await filled.ask("DELETE", filled.path(f"manifests/{DIGEST}"))
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")
    assert digest_of(outer) in reply.json()["errors"][0]["message"]
    assert await _statuses(filled, "GET", "v1", DIGEST) == [200, 200]
    assert await _statuses(filled, "DELETE", digest_of(outer), DIGEST) == [202, 202]
    assert await _statuses(filled, "GET", "v1") == [404]
