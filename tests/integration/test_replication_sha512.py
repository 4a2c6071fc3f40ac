"""Content that is known by its sha512 is replicated like any other."""

from __future__ import annotations

from asyncio import gather
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.faults.stopped import check
from tests.registry import CONFIG, LAYER, Client
from tests.sha512 import IMAGE, INDEX, REFERRER, digest_of, push, push_blobs
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"


@pytest.fixture
async def registries(tmp_path: Path) -> AsyncIterator[tuple[Client, Client]]:
    """Two sites, the second of which follows the first; both are sound at the end."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    nyc.follow(fra)
    fra.follow(nyc, follow=False)
    with ended(fra, nyc):
        await gather(fra.start(), nyc.start())
        async with aiohttp.ClientSession() as client:
            yield Client(fra.port, client, REPOSITORY), Client(nyc.port, client, REPOSITORY)
        await gather(fra.stop_all(), nyc.stop_all())
        for site in (fra, nyc):
            site.show_logs()
            check(site)


async def test_replication_by_sha512(registries: tuple[Client, Client]) -> None:
    """Tags, manifests, blobs and referrers arrive under the digests they were pushed by."""
    fra, nyc = registries
    await push_blobs(fra)
    for body, tags in ((IMAGE, ["v1"]), (REFERRER, []), (INDEX, ["latest", "v2"])):
        await push(fra, body, *tags)

    async def all_tags() -> bool:
        reply = await nyc.ask("GET", nyc.path("tags/list"))
        return bool(reply.status == 200 and reply.json()["tags"] == ["latest", "v1", "v2"])

    await eventually(all_tags, 60, "all tags at the second site")
    for reference, body in (("v1", IMAGE), ("v2", INDEX), (digest_of(REFERRER), REFERRER)):
        reply = await nyc.ask("GET", nyc.path(f"manifests/{reference}"))
        assert (reply.body, reply.headers["Docker-Content-Digest"]) == (body, digest_of(body))
    for content in (CONFIG, LAYER):
        reply = await nyc.ask("GET", nyc.path(f"blobs/{digest_of(content)}"))
        assert (reply.status, reply.body) == (200, content)
    listed = await nyc.ask("GET", nyc.path(f"referrers/{digest_of(IMAGE)}"))
    assert [one["digest"] for one in listed.json()["manifests"]] == [digest_of(REFERRER)]
