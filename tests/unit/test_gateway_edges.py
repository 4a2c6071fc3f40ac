"""The gateway's tables and its outermost edge: errors, routes, peers, bugs, the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.app import handlers
from gateway.auth import Peers
from gateway.errors import TABLE, Code, render
from gateway.headers import matches, parse_content_range, parse_page
from gateway.registry import BodyCache
from gateway.routes import TABLE as ROUTES
from gateway.routes import Endpoint, Resource, endpoint_of, parse_target
from node.config import Config
from node.config_models import Peer
from node.digest import Digest
from node.errors import (
    BlobUnknown,
    PageInvalid,
    RegistryError,
    Unauthenticated,
    Unavailable,
)
from tests.registry import LAYER, Served, digest_of, served

SECRET: Final = "a-secret-of-this-pair"


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry that holds an image."""
    async with served() as registry:
        await registry.push_image()
        yield registry


def _leaves(kind: type[RegistryError]) -> Iterator[type[RegistryError]]:
    children = kind.__subclasses__()
    if not children:
        yield kind
    for child in children:
        yield from _leaves(child)


# --- errors


def test_every_error_has_a_code_and_a_status() -> None:
    """A new error can't ship without deciding what clients see of it."""
    assert set(TABLE) == set(_leaves(RegistryError))


def test_weather_is_503_and_nothing_else_is() -> None:
    """What may pass is told apart from what never will; 500 is for bugs alone."""
    for error, row in TABLE.items():
        assert (row.status == 503) == issubclass(error, Unavailable)
        assert row.status != 500


def test_an_error_is_rendered_with_its_fields() -> None:
    """The answer is the specification's JSON, the error's fields in its detail."""
    answer = render(BlobUnknown("sha256:0"))
    assert answer.status == 404
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(answer.body) == {
        "errors": [
            {
                "code": Code.BLOB_UNKNOWN,
                "message": "blob unknown to repository",
                "detail": {"digest": "sha256:0"},
            }
        ]
    }


async def test_metadata_that_does_not_answer(registry: Served) -> None:
    """Without metadata every answer is 503 with a time to come back, but for the ping."""
    registry.kv.down = True
    reply = await registry.ask("GET", "/v2/team/app/manifests/v1")
    assert (reply.status, reply.code) == (503, "UNAVAILABLE")
    assert int(reply.headers["Retry-After"]) > 0
    assert (await registry.ask("GET", "/v2/")).status == 200


async def test_a_bug_is_told_to_the_log_only(
    registry: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug answers 500 without its message, and the next request is served."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("the secret of the house")

    monkeypatch.setattr(type(registry.site.metadata), "tags", broken)
    reply = await registry.ask("GET", "/v2/team/app/tags/list")
    assert (reply.status, reply.code) == (500, "UNKNOWN")
    assert b"secret" not in reply.body
    assert reply.headers["X-Request-Id"]
    assert (await registry.ask("GET", "/v2/")).status == 200


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"hello\r\n\r\n", id="no HTTP"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", id="TLS"),
        pytest.param(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n", id="no header"),
        pytest.param(b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", id="too long a line"),
        pytest.param(
            b"PUT /v2/a/manifests/b HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            id="negative length",
        ),
    ],
)
async def test_what_is_no_request(registry: Served, sent: bytes) -> None:
    """What can't be read as a request is 400 in the registry's own form, and ends."""
    async with registry.connected() as (reader, writer):
        writer.write(sent)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.split()[1] == b"400"
        assert b"Docker-Distribution-API-Version: registry/2.0" in head
        assert json.loads(body)["errors"][0]["code"] == "UNKNOWN"


async def test_the_end_is_announced(registry: Served) -> None:
    """While the gateway drains, each answer tells its client to come back elsewhere."""
    assert "Connection" not in (await registry.ask("GET", "/v2/")).headers
    registry.stopping.set()
    reply = await registry.ask("GET", "/v2/")
    assert (reply.status, reply.headers["Connection"]) == (200, "close")


# --- routes


def test_every_endpoint_is_routed_and_handled() -> None:
    """No endpoint lacks a way to it."""
    assert {endpoint for methods in ROUTES.values() for endpoint in methods.values()} == set(
        Endpoint
    )
    assert set(ROUTES) == set(Resource)


async def test_every_endpoint_has_a_handler(registry: Served) -> None:
    """No endpoint lacks a handler."""
    assert set(handlers(Config(), registry.site, {}, registry.weather)) == set(Endpoint)


SPECIFIED: Final = {
    "end-1": ("GET", "/v2/", Endpoint.PING),
    "end-2": ("GET", "/v2/a/b/blobs/D", Endpoint.GET_BLOB),
    "end-2 by HEAD": ("HEAD", "/v2/a/b/blobs/D", Endpoint.GET_BLOB),
    "end-3": ("GET", "/v2/a/b/manifests/R", Endpoint.GET_MANIFEST),
    "end-3 by HEAD": ("HEAD", "/v2/a/b/manifests/R", Endpoint.GET_MANIFEST),
    "end-4a": ("POST", "/v2/a/b/blobs/uploads/", Endpoint.START_UPLOAD),
    "end-4b": ("POST", "/v2/a/b/blobs/uploads/?digest=D", Endpoint.START_UPLOAD),
    "end-5": ("PATCH", "/v2/a/b/blobs/uploads/U", Endpoint.APPEND_UPLOAD),
    "end-6": ("PUT", "/v2/a/b/blobs/uploads/U?digest=D", Endpoint.FINISH_UPLOAD),
    "end-7": ("PUT", "/v2/a/b/manifests/R", Endpoint.PUT_MANIFEST),
    "end-8a": ("GET", "/v2/a/b/tags/list", Endpoint.LIST_TAGS),
    "end-8b": ("GET", "/v2/a/b/tags/list?n=1&last=x", Endpoint.LIST_TAGS),
    "end-9": ("DELETE", "/v2/a/b/manifests/R", Endpoint.DELETE_MANIFEST),
    "end-10": ("DELETE", "/v2/a/b/blobs/D", Endpoint.DELETE_BLOB),
    "end-11": ("POST", "/v2/a/b/blobs/uploads/?mount=D&from=c", Endpoint.START_UPLOAD),
    "end-12a": ("GET", "/v2/a/b/referrers/D", Endpoint.LIST_REFERRERS),
    "end-12b": ("GET", "/v2/a/b/referrers/D?artifactType=x", Endpoint.LIST_REFERRERS),
    "end-13": ("GET", "/v2/a/b/blobs/uploads/U", Endpoint.GET_UPLOAD),
    "end-14": ("DELETE", "/v2/a/b/blobs/uploads/U", Endpoint.CANCEL_UPLOAD),
}


@pytest.mark.parametrize(("method", "path", "endpoint"), SPECIFIED.values(), ids=SPECIFIED)
def test_the_specification_s_endpoints(method: str, path: str, endpoint: Endpoint) -> None:
    """Each endpoint of distribution-spec's table is found, with the name and what is at its end."""
    for form in (path, f"http://hub.example{path}"):
        target = parse_target(form)
        assert endpoint_of(method, target) is endpoint
        assert target.name in {"a/b", ""}


@given(
    st.lists(st.sampled_from(["blobs", "manifests", "tags", "uploads", "list", "a"]), min_size=1),
    st.sampled_from(
        [
            ("blobs/D", Resource.BLOB),
            ("manifests/R", Resource.MANIFEST),
            ("tags/list", Resource.TAGS),
            ("blobs/uploads/", Resource.UPLOADS),
            ("blobs/uploads/U", Resource.UPLOAD),
            ("referrers/D", Resource.REFERRERS),
        ]
    ),
)
def test_names_of_the_api_s_own_words(parts: list[str], end: tuple[str, Resource]) -> None:
    """Whatever words a name is made of, the end of the path decides (N4)."""
    name = "/".join(parts)
    target = parse_target(f"/v2/{name}/{end[0]}")
    assert (target.name, target.resource) == (name, end[1])


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=60))
def test_no_path_is_a_bug(path: str) -> None:
    """Whatever a path holds, it is a target or an error of ours."""
    try:
        target = parse_target(f"/v2/{path}")
        _ = target.repository, target.parameter("n"), target.digest_parameter("digest")
    except RegistryError:
        pass


# --- headers


@pytest.mark.parametrize(
    ("text", "chunk"),
    [
        ("0-9", (0, 9)),
        ("bytes 0-9/*", (0, 9)),
        ("bytes 0-9/100", (0, 9)),
        ("9-0", None),
        ("bytes=0-9", None),
        ("-9", None),
        ("", None),
        ("0-" + "9" * 40, None),
    ],
)
def test_content_range(text: str, chunk: tuple[int, int] | None) -> None:
    """A chunk's range is read with a unit or without; what is none is told apart."""
    assert parse_content_range(text) == chunk


def test_none_match_of_nothing() -> None:
    """Without the header nothing is known."""
    assert not matches((), Digest.of(b""))
    assert not matches([""], Digest.of(b""))


@pytest.mark.parametrize("text", ["-1", "1.0", "x", " 1", "\u0663"])
def test_numbers_that_are_none(text: str) -> None:
    """Only digits are a number of results."""
    with pytest.raises(PageInvalid):
        parse_page(text, 10)


# --- bodies in memory


def test_the_cache_is_bounded() -> None:
    """The cache forgets what was used least recently, and takes nothing larger than itself."""
    cache = BodyCache(10)
    a, b, c = (Digest.of(text) for text in (b"a", b"b", b"c"))
    cache.put(a, b"aaaa")
    cache.put(b, b"bbbb")
    assert cache.get(a) == b"aaaa"
    cache.put(c, b"cccc")
    assert (cache.get(a), cache.get(b), cache.get(c)) == (b"aaaa", None, b"cccc")
    cache.put(b, bytes(11))
    assert cache.get(b) is None


# --- peers


def _peer(site: str, secret_file: Path | None) -> Peer:
    return Peer.model_validate(
        {
            "site": site,
            "http": "http://127.0.0.1:1",
            "grpc": "127.0.0.1:2",
            "secret_file": secret_file,
        }
    )


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    """One peer with a secret, and one of this machine without."""
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return Peers([_peer("nyc", file), _peer("lab", None)])


@pytest.mark.parametrize(
    ("headers", "site"),
    [
        ({}, None),
        ({"Authorization": "Bearer of something else"}, None),
        ({"Entrepot-Site": "nyc", "Authorization": f"Bearer {SECRET}"}, "nyc"),
        ({"Entrepot-Site": "nyc", "Authorization": f"bearer {SECRET}"}, "nyc"),
        ({"Entrepot-Site": "lab"}, "lab"),
    ],
)
def test_peers_are_known(peers: Peers, headers: dict[str, str], site: str | None) -> None:
    """A peer that knows the secret is one; who says nothing is nobody's peer."""
    assert peers.verify(headers) == site


@pytest.mark.parametrize(
    "headers",
    [
        {"Entrepot-Site": "nyc"},
        {"Entrepot-Site": "nyc", "Authorization": "Bearer "},
        {"Entrepot-Site": "nyc", "Authorization": f"Basic {SECRET}"},
        {"Entrepot-Site": "nyc", "Authorization": f"Bearer {SECRET}x"},
        {"Entrepot-Site": "nyc", "Authorization": "Bearer \u00fc\udcff"},
        {"Entrepot-Site": "oslo", "Authorization": f"Bearer {SECRET}"},
    ],
)
def test_others_are_refused(peers: Peers, headers: dict[str, str]) -> None:
    """Who claims to be a peer and is not, or can't prove it, is refused."""
    with pytest.raises(Unauthenticated):
        peers.verify(headers)


async def test_requests_are_counted(registry: Served) -> None:
    """Each answer is counted by endpoint and status, with the bytes in and out."""
    await registry.ask("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}")
    await registry.ask("GET", "/v2/team/app/manifests/none")
    value = registry.metrics.get_sample_value
    assert value("entrepot_http_requests_total", {"endpoint": "get-blob", "status": "200"}) == 1
    assert value("entrepot_http_requests_total", {"endpoint": "get-manifest", "status": "404"}) == 1
    assert value("entrepot_http_request_seconds_count", {"endpoint": "put-manifest"}) == 1
    assert (value("entrepot_http_received_bytes_total") or 0) > len(LAYER)
    assert (value("entrepot_http_sent_bytes_total") or 0) > len(LAYER)
