"""Rows that show at a site with other settings.

It has small pages, does not delete, adds headers of its own, and has a public URL.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import pytest

from node.config import Config
from tests.etcd import Etcd
from tests.nodes import nodes
from tests.protocol.exchanges import Exchange
from tests.registry import CONFIG, LAYER, Client, digest_of, image, index
from tests.sites import Site, running

SETTINGS: Final[Mapping[str, object]] = {"deletes": False, "limits": {"page": 3}}
# The port is one that clients leave out if nobody keeps it (G8).
PUBLIC: Final = "https://hub.example:443"
EXPOSED: Final = "Access-Control-Expose-Headers"
OF_OPERATOR: Final = {
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
    EXPOSED: "Docker-Content-Digest",
}
HTTP: Final = {"public_url": PUBLIC, "headers": OF_OPERATOR}
# What proxies add, and what must not get into a location.
FORWARDED: Final = {
    "Host": "inside.example:5000",
    "Forwarded": "proto=http;host=forwarded.example",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Host": "proxy.example, other.example",
}
IMAGE: Final = image(LAYER)
BLOB: Final = digest_of(LAYER)

EXCHANGES: Final = [
    Exchange("ping", "GET", "/v2/", 200),
    Exchange("small blob", "GET", f"blobs/{BLOB}", 200),
    Exchange("large blob", "GET", f"blobs/{digest_of(bytes(200_000))}", 200),
    Exchange("range", "GET", f"blobs/{BLOB}", 206, {"Range": "bytes=1-2"}),
    Exchange("known", "GET", "manifests/v1", 304, {"If-None-Match": "*"}),
    Exchange("no digest", "GET", "manifests/sha256:0", 400),
    Exchange("no peer", "GET", "/v2/", 401, {"Entrepot-Site": "oslo"}),
    Exchange("absent", "HEAD", "manifests/v2", 404),
    Exchange("no endpoint", "GET", "/v2/nothing", 404),
    Exchange("wrong method", "PATCH", "manifests/v1", 405),
]


@pytest.fixture
def config() -> Config:
    """The configuration of the registry in this process."""
    return Config.model_validate({**SETTINGS, "http": HTTP})


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Site]]:
    """A gateway process of that configuration; it has to end well."""
    site = Site("nyc", tmp_path_factory.mktemp("settings") / "nyc", programs=("gateway",))
    with _configured(site):
        yield [site]


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory, cluster: Etcd) -> Iterator[list[Site]]:
    """Two gateway processes of that configuration over an etcd; they have to end well."""
    folder = tmp_path_factory.mktemp("settings-etcd")
    found = nodes("nyc", folder, cluster, programs=("gateway",))
    with _configured(*found):
        yield found


@contextmanager
def _configured(*sites: Site) -> Iterator[None]:
    for site in sites:
        site.settings = {**site.settings, **SETTINGS, "http": {"listen": [site.http], **HTTP}}
    with running(*sites):
        yield


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: f"{exchange.said} [G10]")
async def test_headers_of_the_operator(filled: Client, exchange: Exchange) -> None:
    """Configured headers are on every answer: small, large, partial, and every error."""
    await filled.push_blob(bytes(200_000))
    reply = await exchange.hold(filled)
    assert {name: reply.headers.get(name) for name in OF_OPERATOR} == OF_OPERATOR


@pytest.mark.parametrize("row", ["G10"])
async def test_headers_of_the_operator_to_what_is_no_request(registry: Client, row: str) -> None:
    """Configured headers are also on the answer to what can't be read."""
    async with registry.connected() as (reader, writer):
        writer.write(b"?\r\n\r\n")
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in await reader.read()


def _inside(location: str) -> str:
    """The path of a location, which has to be of the public URL."""
    assert location.startswith(f"{PUBLIC}/v2/")
    return location.removeprefix(PUBLIC)


@pytest.mark.parametrize("forwarded", [{}, FORWARDED], ids=["direct", "by proxies"])
@pytest.mark.parametrize("row", ["G5-G6-G7-G8"])
async def test_locations(registry: Client, forwarded: dict[str, str], row: str) -> None:
    """Every location is the public URL's, port and all, whatever the request says; and works."""
    uploads = registry.path("blobs/uploads/")
    location = (await registry.ask("POST", uploads, None, forwarded)).headers["Location"]
    location = (await registry.ask("PATCH", _inside(location), LAYER, forwarded)).headers[
        "Location"
    ]
    location = (await registry.ask("GET", _inside(location), None, forwarded)).headers["Location"]
    wrong = {**forwarded, "Content-Range": "9-9"}
    reply = await registry.ask("PATCH", _inside(location), b"x", wrong)
    assert reply.status == 416
    finish = f"{_inside(reply.headers['Location'])}&digest={BLOB}"
    made = [
        await registry.ask("PUT", finish, None, forwarded),
        await registry.ask("POST", f"{uploads}?digest={digest_of(b'{}')}", b"{}", forwarded),
        await registry.ask("PUT", registry.path("manifests/v1"), IMAGE, forwarded),
    ]
    for reply, body in zip(made, (LAYER, b"{}", IMAGE), strict=True):
        assert reply.status == 201
        assert (await registry.ask("GET", _inside(reply.headers["Location"]))).body == body


async def _pages(registry: Client, path: str, name: str) -> list[list[str]]:
    """The pages that a client sees who follows the links."""
    pages = []
    while path:
        reply = await registry.ask("GET", path)
        assert reply.status == 200
        pages.append(reply.json()[name])
        path = reply.headers.get("Link", "").partition(">")[0].removeprefix("<")
    return pages


@pytest.mark.parametrize("row", ["TL5-TL7"])
async def test_more_tags_than_a_page_has(registry: Client, row: str) -> None:
    """A page has no more tags than the operator allows; who asks for more is led on."""
    for n in range(7):
        await registry.push_manifest(index(), f"v{n}")
    pages = [["v0", "v1", "v2"], ["v3", "v4", "v5"], ["v6"]]
    for query in ("", "?n=4", "?n=10000"):
        assert await _pages(registry, registry.path(f"tags/list{query}"), "tags") == pages
    link = (await registry.ask("GET", registry.path("tags/list?n=4"))).headers["Link"]
    assert link == f'<{registry.path("tags/list")}?last=v2&n=3>; rel="next"'


@pytest.mark.parametrize("row", ["TL9"])
async def test_more_repositories_than_a_page_has(registry: Client, row: str) -> None:
    """A page of the catalog is bounded in the same way, whatever is asked for."""
    names = [f"{registry.repository}/{n}" for n in range(4)]
    for name in names:
        await registry.push_manifest(index(), repository=name)
    for query in ("", "&n=4", "&n=100000"):
        path = f"/v2/_catalog?last={registry.repository}{query}"
        pages = await _pages(registry, path, "repositories")
        assert all(len(page) <= 3 for page in pages)
        assert [name for page in pages for name in page][:4] == names


@pytest.mark.parametrize("row", ["B14-MD4"])
async def test_a_site_that_keeps_everything(registry: Client, row: str) -> None:
    """With deletes off, a delete of anything is 405 and says what is allowed; pushes go on."""
    digest = await registry.push_image("v1")
    unused = await registry.push_blob(b"nothing refers to this")
    for rest in ("manifests/v1", f"manifests/{digest}", f"blobs/{BLOB}", f"blobs/{unused}"):
        path = registry.path(rest)
        reply = await registry.ask("DELETE", path)
        assert (reply.status, reply.code) == (405, "UNSUPPORTED")
        assert reply.headers["Allow"] == "GET, HEAD"
        assert (await registry.ask("GET", path)).status == 200
    await registry.push_image("v1")


@pytest.mark.parametrize("row", ["U33-U8"])
async def test_cancelling_is_no_delete(registry: Client, row: str) -> None:
    """An upload can be cancelled where nothing can be deleted."""
    location = (await registry.start_upload()).removeprefix(PUBLIC)
    await registry.ask("PATCH", location, CONFIG)
    assert (await registry.ask("DELETE", location)).status == 204
    assert (await registry.ask("GET", location)).status == 404
