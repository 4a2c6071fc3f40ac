"""Lists that take more than one exchange: pages of tags, referrers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from node.manifest import OCI_INDEX, OCI_MANIFEST
from tests.registry import LAYER, REPOSITORY, Served, descriptor, digest_of, image, index, served

IMAGE: Final = image(LAYER)
MANIFEST: Final = digest_of(IMAGE)


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry that holds an image under three tags."""
    async with served() as registry:
        for tag in ("v1", "V1", "blue"):
            await registry.push_image(tag)
        yield registry


@pytest.mark.parametrize("row", ["R1-R3-R5-G4"])
async def test_referrers(registry: Served, row: str) -> None:
    """Referrers are an index of descriptors with type and annotations, filtered on demand."""
    subject = descriptor(IMAGE, OCI_MANIFEST)
    bill = image(LAYER, subject=subject, artifactType="a/x+json", annotations={"k": "v"})
    plain = image(subject=subject)
    inside = index(subject=subject)
    for body in (bill, plain, inside):
        await registry.push_manifest(body)
    path = f"/v2/team/app/referrers/{MANIFEST}"

    reply = await registry.ask("GET", path)
    assert reply.headers["Content-Type"] == OCI_INDEX
    listed = {one["digest"]: one for one in reply.json()["manifests"]}
    assert listed == {
        digest_of(bill): {
            **descriptor(bill, OCI_MANIFEST),
            "artifactType": "a/x+json",
            "annotations": {"k": "v"},
        },
        digest_of(plain): {
            **descriptor(plain, OCI_MANIFEST),
            "artifactType": "application/vnd.oci.image.config.v1+json",
        },
        digest_of(inside): descriptor(inside, OCI_INDEX),
    }
    assert "OCI-Filters-Applied" not in reply.headers

    for query in ("artifactType=a/x+json", "artifactType=a%2Fx%2Bjson&artifactType=other"):
        reply = await registry.ask("GET", f"{path}?{query}")
        assert [one["digest"] for one in reply.json()["manifests"]] == [digest_of(bill)]
        assert reply.headers["OCI-Filters-Applied"] == "artifactType"
    reply = await registry.ask("GET", f"{path}?artifactType=")
    assert len(reply.json()["manifests"]) == 3


@pytest.mark.parametrize("row", ["R6"])
async def test_referrers_by_pages(registry: Served, row: str) -> None:
    """More referrers than a client takes at once come by pages that leave none out."""
    subject = descriptor(IMAGE, OCI_MANIFEST)
    long = "x" * 1_100_000
    pushed = {
        await registry.push_manifest(
            image(LAYER, subject=subject, artifactType="a/b", annotations={"k": long, "n": str(n)})
        )
        for n in range(4)
    }
    found: list[str] = []
    path = f"/v2/team/app/referrers/{MANIFEST}?artifactType=a/b"
    for _ in range(4):
        reply = await registry.ask("GET", path)
        assert len(reply.body) < 4 << 20
        found += [one["digest"] for one in reply.json()["manifests"]]
        link = reply.headers.get("Link")
        if link is None:
            break
        path = link[1 : link.index(">")]
        assert "artifactType=a%2Fb" in path
    assert sorted(found) == sorted(pushed)
    assert len(found) == len(pushed)


@pytest.mark.parametrize("row", ["TL5"])
async def test_pages_lead_through_all_tags(registry: Served, row: str) -> None:
    """Following the links shows every tag once."""
    found: list[str] = []
    path = "/v2/team/app/tags/list?n=1"
    while path:
        reply = await registry.ask("GET", path)
        found += reply.json()["tags"]
        link = reply.headers.get("Link", "")
        path = link[1 : link.index(">")] if link else ""
    assert found == ["V1", "blue", "v1"]


@pytest.mark.parametrize("row", ["TL8-G9"])
async def test_the_catalogs_page_is_a_hundred(registry: Served, row: str) -> None:
    """Without a number a page of the catalog has 100 names, and leads to the next."""
    for n in range(100):
        await registry.push_manifest(index(), repository=f"many/{n:03}")
    reply = await registry.ask("GET", "/v2/_catalog")
    assert len(reply.json()["repositories"]) == 100
    assert reply.headers["Link"] == '</v2/_catalog?last=many%2F099&n=100>; rel="next"'
    reply = await registry.ask("GET", "/v2/_catalog?last=many%2F099&n=100")
    assert reply.json() == {"repositories": [REPOSITORY]}


@pytest.mark.parametrize("row", ["TL7-G9"])
async def test_a_link_can_be_followed_however_the_name_was_written(
    registry: Served, row: str
) -> None:
    """The next page's path is written plainly, also if this one's was escaped."""
    reply = await registry.ask("GET", "/v2/%74eam/app/tags/list?n=1")
    assert reply.headers["Link"] == '</v2/team/app/tags/list?last=V1&n=1>; rel="next"'
