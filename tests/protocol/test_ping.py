"""The ping, and what else is asked of a registry before anything is (rows PI, G13, G14)."""

from __future__ import annotations

from typing import Final

import pytest

from tests.protocol.exchanges import Exchange, require_form
from tests.registry import CONFIG, JSON, LAYER, Client, image, served

# Whatever clients send before they know whether they are asked for it.
CREDENTIALS: Final = {
    "none": {},
    "a user": {"Authorization": "Basic dXNlcjpwYXNz"},
    "the empty user": {"Authorization": "Basic Og=="},
    "a token": {"Authorization": "Bearer abc"},
}

EXCHANGES: Final = [
    Exchange("ping [PI1]", "GET", "/v2/", 200, headers={"Content-Type": JSON}, body=b"{}"),
    Exchange("ping with a query [PI1]", "GET", "/v2/?x=1", 200, body=b"{}"),
    Exchange("no repositories of version 1 [PI8 TL12]", "GET", "/v1/repositories/x/tags", 404),
    Exchange("no images of version 1 [PI8 TL12]", "GET", "/v1/images/x/json", 404),
    Exchange(
        "root [G13]",
        "GET",
        "/",
        200,
        headers={"Cache-Control": "no-cache", "Content-Length": "0"},
        body=b"",
    ),
    Exchange("/v2 leads to the ping [G14]", "GET", "/v2", 301, headers={"Location": "/v2/"}),
]


@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange.said)
async def test_before_anything(registry: Client, exchange: Exchange) -> None:
    """What clients ask first is answered so that they go on with version 2."""
    await exchange.hold(registry)


@pytest.mark.parametrize("row", ["PI7"])
async def test_ping_by_head(registry: Client, row: str) -> None:
    """HEAD has the headers of GET, and no body."""
    by_get = await registry.ask("GET", "/v2/")
    by_head = await registry.ask("HEAD", "/v2/")
    assert (by_head.status, by_head.body) == (200, b"")
    assert {**by_head.headers, "Date": ""} == {**by_get.headers, "Date": ""}
    assert by_head.headers["Content-Length"] == "2"


@pytest.mark.parametrize("credentials", CREDENTIALS.values(), ids=CREDENTIALS)
@pytest.mark.parametrize("row", ["PI2-PI3-PI4"])
async def test_nobody_is_asked_for_credentials(
    registry: Client, credentials: dict[str, str], row: str
) -> None:
    """The ping challenges nobody, so nothing after it does: push, pull and delete are open."""
    assert (await registry.ask("GET", "/v2/", headers=credentials)).status == 200
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    path = registry.path("manifests/v1")
    for method, body, status in (("PUT", image(LAYER), 201), ("GET", None, 200)):
        assert (await registry.ask(method, path, body, credentials)).status == status
    assert (await registry.ask("DELETE", path, headers=credentials)).status == 202


@pytest.mark.parametrize("row", ["PI4-G1"])
async def test_ping_of_who_is_not_the_peer_it_says(registry: Client, row: str) -> None:
    """Credentials are checked where they are needed, as a peer's are: 401, and a challenge."""
    claims = {"Entrepot-Site": "oslo", "Authorization": "Bearer wrong"}
    reply = await registry.ask("GET", "/v2/", headers=claims)
    assert (reply.status, reply.code) == (401, "UNAUTHORIZED")
    assert reply.headers["WWW-Authenticate"]
    require_form(reply)


@pytest.mark.parametrize("row", ["PI5"])
async def test_ping_in_bad_weather(row: str) -> None:
    """The ping needs no metadata, and is 200 until checks have failed (G19), also at the end."""
    async with served() as fakes:
        fakes.kv.down = True
        assert (await fakes.ask("GET", fakes.path("tags/list"))).status == 503
        assert (await fakes.ask("GET", "/v2/")).status == 200
        fakes.stopping.set()
        assert (await fakes.ask("GET", "/v2/")).status == 200
