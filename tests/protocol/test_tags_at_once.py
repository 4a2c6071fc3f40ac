"""A push by digest that names its tags: how many at once, and all or none of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from node.kv import Guard, Op
from node.tag_transactions import MAX_TAGS
from node.transaction import CHUNK
from tests.registry import LAYER, Client, Served, digest_of, image, index

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
TYPED: Final = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}


def _path(registry: Client, *tags: str) -> str:
    query = "&".join(f"tag={tag}" for tag in tags)
    return registry.path(f"manifests/{DIGEST}?{query}")


async def _tags(registry: Client) -> list[str]:
    reply = await registry.ask("GET", registry.path("tags/list"))
    return list(reply.json()["tags"]) if reply.status == 200 else []


@pytest.mark.parametrize("row", ["0.2-MP7-0.12"])
@pytest.mark.parametrize("number", [1, MAX_TAGS])
async def test_tags_at_once(stocked: Client, row: str, number: int) -> None:
    """Ten tags at the least are taken, each named in the answer, and there with it."""
    # Each as long as a tag may be.
    tags = sorted(f"v{n:02}".ljust(128, "x") for n in range(number))
    reply = await stocked.ask("PUT", _path(stocked, *tags), IMAGE, TYPED)
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, DIGEST)
    assert reply.headers["Location"] == stocked.path(f"manifests/{DIGEST}")
    named = [tag.strip() for line in reply.headers.getall("OCI-Tag") for tag in line.split(",")]
    assert named == tags
    assert await _tags(stocked) == tags
    for tag in tags:
        found = await stocked.ask("GET", stocked.path(f"manifests/{tag}"))
        assert (found.body, found.headers["Docker-Content-Digest"]) == (IMAGE, DIGEST)


@pytest.mark.parametrize("row", ["0.2"])
async def test_too_many_tags(stocked: Client, row: str) -> None:
    """More than ten are 414 and none is taken; one that is said twice is one."""
    assert MAX_TAGS == 10
    tags = [f"v{n}" for n in range(MAX_TAGS + 1)]
    reply = await stocked.ask("PUT", _path(stocked, *tags), IMAGE, TYPED)
    assert (reply.status, reply.code) == (414, "SIZE_INVALID")
    assert await _tags(stocked) == []
    assert (await stocked.ask("HEAD", stocked.path(f"manifests/{DIGEST}"))).status == 404
    reply = await stocked.ask("PUT", _path(stocked, *tags[1:], *tags[1:]), IMAGE, TYPED)
    assert (reply.status, reply.headers["OCI-Tag"]) == (201, ", ".join(tags[1:]))


@pytest.mark.parametrize("row", ["0.2-G2"])
async def test_a_query_that_is_longer_than_any(stocked: Client, row: str) -> None:
    """A request line that is too long is refused in the registry's own form, with 400."""
    reply = await stocked.ask("PUT", _path(stocked, *["v1"] * 20_000), IMAGE, TYPED)
    assert (reply.status, reply.code) == (400, "UNKNOWN")
    assert await _tags(stocked) == []


@pytest.mark.parametrize("row", ["0.2-MP7"])
@pytest.mark.parametrize("bad", [".v2", "", "v%202", "x" * 129, "sha256:abc"])
async def test_one_bad_tag(stocked: Client, row: str, bad: str) -> None:
    """One tag that can't be refuses all, and the manifest."""
    reply = await stocked.ask("PUT", _path(stocked, "v1", bad, "v3"), IMAGE, TYPED)
    assert (reply.status, reply.code) == (400, "NAME_INVALID")
    assert await _tags(stocked) == []
    assert (await stocked.ask("HEAD", stocked.path(f"manifests/{DIGEST}"))).status == 404


@pytest.mark.parametrize("row", ["0.2-MP7"])
async def test_a_manifest_that_is_refused_takes_no_tag(registry: Client, row: str) -> None:
    """Tags of a manifest whose blobs are missing are not taken."""
    reply = await registry.ask("PUT", _path(registry, "v1", "v2"), IMAGE, TYPED)
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert await _tags(registry) == []


@pytest.mark.parametrize("row", ["0.2-MP11"])
async def test_tags_that_show_something_else(stocked: Client, row: str) -> None:
    """As many tags as are taken at once move at once from what they showed."""
    tags = [f"v{n:02}" for n in range(MAX_TAGS)]
    other = index()
    for tag in tags:
        await stocked.push_manifest(other, tag)
    assert (await stocked.ask("PUT", _path(stocked, *tags), IMAGE, TYPED)).status == 201
    for tag in tags:
        assert (await stocked.ask("GET", stocked.path(f"manifests/{tag}"))).body == IMAGE
    assert (await stocked.ask("GET", stocked.path(f"manifests/{digest_of(other)}"))).body == other


@pytest.mark.parametrize("row", ["0.2"])
async def test_all_tags_fit_in_one_transaction(fakes: Served, row: str) -> None:
    """A push that moves as many tags as are taken stays within what a KV does at once."""
    tags = [f"v{n:02}" for n in range(MAX_TAGS)]
    await fakes.push_image()
    for tag in tags:
        await fakes.push_manifest(index(), tag)
    sizes = []

    def count(guards: Sequence[Guard], ops: Sequence[Op]) -> None:
        sizes.append(max(len(guards), len(ops)))

    fakes.kv.faults = count
    assert (await fakes.ask("PUT", _path(fakes, *tags), IMAGE, TYPED)).status == 201
    assert MAX_TAGS * 5 < max(sizes) <= CHUNK


@pytest.mark.parametrize("row", ["0.2-MP7"])
async def test_tags_beside_a_tag(stocked: Client, row: str) -> None:
    """Next to a tag other tags mean nothing, however many and whatever they are."""
    query = "&".join(f"tag=.{n}" for n in range(MAX_TAGS + 1))
    path = stocked.path(f"manifests/v1?{query}")
    reply = await stocked.ask("PUT", path, IMAGE, TYPED)
    assert reply.status == 201
    assert "OCI-Tag" not in reply.headers
    assert await _tags(stocked) == ["v1"]
