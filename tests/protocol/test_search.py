"""The v1 search over HTTP, as docker and podman ask it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from node.config import Config
from node.config_models import Limits
from tests.registry import JSON, Served, index, served


async def push(registry: Served, repository: str, **annotations: str) -> str:
    """Push an index of nothing, and return its digest."""
    said = {f"org.opencontainers.image.{name}": text for name, text in annotations.items()}
    return await registry.push_manifest(index(annotations=said), "v1", repository)


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry with some repositories, at most 3 names on a page."""
    async with served(Config(limits=Limits(page=3))) as registry:
        await push(registry, "team/app", title="Shop", description="Sells things")
        await push(registry, "app")
        await push(registry, "base/apparel")
        await push(registry, "other", description="Another app")
        yield registry


async def search(registry: Served, query: str) -> list[str]:
    """The names of one page of results."""
    reply = await registry.ask("GET", f"/v1/search?{query}")
    assert reply.status == 200, reply
    return [one["name"] for one in reply.json()["results"]]


@pytest.mark.parametrize("row", ["TL11"])
async def test_the_ping_of_v1(registry: Served, row: str) -> None:
    """docker learns that this registry searches by itself."""
    reply = await registry.ask("GET", "/v1/_ping")
    assert (reply.status, reply.headers["X-Docker-Registry-Standalone"]) == (200, "true")
    assert reply.json() == {"standalone": True}


@pytest.mark.parametrize("row", ["TL10-TL11"])
async def test_an_answer_has_all_that_clients_read(registry: Served, row: str) -> None:
    """Every member that docker and podman decode, with what the image said of itself."""
    reply = await registry.ask("GET", "/v1/search?q=SHOP&n=2")
    assert reply.headers["Content-Type"] == JSON
    assert reply.json() == {
        "query": "SHOP",
        "num_results": 1,
        "num_pages": 1,
        "page": 1,
        "page_size": 2,
        "results": [
            {
                "name": "team/app",
                "description": "Sells things",
                "star_count": 0,
                "is_official": False,
                "is_automated": False,
            }
        ],
    }


@pytest.mark.parametrize("row", ["TL10-TL11"])
async def test_pages_of_results(registry: Served, row: str) -> None:
    """`n` is clamped and never too large, pages follow each other, and one behind is empty."""
    assert await search(registry, "q=app&n=100000") == ["app", "base/apparel", "team/app"]
    assert await search(registry, "q=app&page=2") == ["other"]
    assert await search(registry, "q=app&n=1&page=2") == ["base/apparel"]
    assert await search(registry, "q=app&page=0&n=1") == ["app"]
    assert await search(registry, "q=app&page=99999999999999999999") == []
    assert await search(registry, "q=app&n=0") == []
    assert await search(registry, "q=team%2Fapp") == ["team/app"]
    assert await search(registry, "n=3") == ["app", "base/apparel", "other"]
    answer = (await registry.ask("GET", "/v1/search?n=3")).json()
    assert (answer["num_results"], answer["num_pages"]) == (4, 2)


@pytest.mark.parametrize("query", ["n=x", "n=-1", "page=x", "page=-1"])
async def test_what_is_no_number_is_refused(registry: Served, query: str) -> None:
    """TL6: the answer is that of the other lists."""
    reply = await registry.ask("GET", f"/v1/search?q=app&{query}")
    assert (reply.status, reply.code) == (400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        pytest.param("GET", "/v1/repositories/app/images", 404, id="[TL12] the rest of v1"),
        pytest.param("GET", "/v1/", 404, id="[TL12] its root"),
        pytest.param("PUT", "/v1/search", 405, id="[G] a method that it does not have"),
    ],
)
async def test_no_more_of_v1(registry: Served, method: str, path: str, status: int) -> None:
    """An old client is told plainly that there is nothing else."""
    assert (await registry.ask(method, path)).status == status


@pytest.mark.parametrize("row", ["TL8"])
async def test_a_repository_comes_and_goes(registry: Served, row: str) -> None:
    """As soon as the last manifest is deleted its repository is not found; a push brings it."""
    digest = await push(registry, "fresh")
    assert await search(registry, "q=fresh") == ["fresh"]
    for _ in range(2):
        reply = await registry.ask("DELETE", f"/v2/fresh/manifests/{digest}")
        assert reply.status == 202
        assert await search(registry, "q=fresh") == []
        digest = await push(registry, "fresh", title="Again")
        assert await search(registry, "q=again") == ["fresh"]


async def test_the_metadata_is_away(registry: Served) -> None:
    """503 with Retry-After, as for every read; the next search works."""
    registry.kv.down = True
    reply = await registry.ask("GET", "/v1/search?q=app")
    assert (reply.status, "Retry-After" in reply.headers) == (503, True)
    registry.kv.down = False
    assert await search(registry, "q=team") == ["team/app"]


async def test_searches_are_counted(registry: Served) -> None:
    """Metrics tell searches from other requests."""
    await search(registry, "q=app")
    labels = {"endpoint": "search", "status": "200"}
    total = registry.metrics.get_sample_value("entrepot_http_requests_total", labels)
    assert total == 1
