"""Locations of a site that has no public URL (rows G5 to G8)."""

from __future__ import annotations

from typing import Final

import pytest

from tests.registry import LAYER, Client, digest_of, image, index

# What proxies say, and some forget; containerd drops its credentials for another host (G7).
FORWARDED: Final = [
    pytest.param({"Host": "hub.example:5000"}, id="a host and a port [G6 G8]"),
    pytest.param({"Host": "hub.example"}, id="a host [G6]"),
    pytest.param({"Forwarded": "proto=https;host=hub.example"}, id="Forwarded [G5 G6 G7]"),
    pytest.param({"X-Forwarded-Proto": "https"}, id="X-Forwarded-Proto [G5 G6 G7]"),
    pytest.param({"X-Forwarded-Host": "a.example, b.example"}, id="X-Forwarded-Host [G5 G6 G7]"),
]


@pytest.mark.parametrize("forwarded", FORWARDED)
async def test_locations_are_paths(registry: Client, forwarded: dict[str, str]) -> None:
    """A location names no host, so it is the client's own, through whatever proxies."""
    uploads, blob = registry.path("blobs/uploads/"), digest_of(LAYER)
    session = (await registry.ask("POST", uploads, None, forwarded)).headers["Location"]
    assert session.startswith(uploads)
    moved = (await registry.ask("PATCH", session, LAYER, forwarded)).headers["Location"]
    assert moved.startswith(uploads)
    reply = await registry.ask("PUT", f"{moved}&digest={blob}", None, forwarded)
    assert reply.headers["Location"] == registry.path(f"blobs/{blob}")
    path = registry.path("manifests/v1")
    reply = await registry.ask("PUT", path, index(), forwarded)
    assert reply.headers["Location"] == registry.path(f"manifests/{digest_of(index())}")
    assert (await registry.ask("GET", "/v2", None, forwarded)).headers["Location"] == "/v2/"


@pytest.mark.parametrize("row", ["G6-G7"])
async def test_links_are_paths(filled: Client, row: str) -> None:
    """The link to a next page names no host either."""
    await filled.push_manifest(image(LAYER), "v2")
    headers = {"Host": "inside.example", "X-Forwarded-Host": "hub.example"}
    path = filled.path("tags/list")
    reply = await filled.ask("GET", f"{path}?n=1", headers=headers)
    assert reply.headers["Link"] == f'<{path}?last=v1&n=1>; rel="next"'


@pytest.mark.parametrize("row", ["G6-U22"])
async def test_an_absolute_target_is_not_repeated(registry: Client, row: str) -> None:
    """A location names no host, also where the client's request named one."""
    location = await registry.start_upload()
    async with registry.connected() as (reader, writer):
        head = f"PATCH http://evil.example{location} HTTP/1.1\r\nHost: x\r\n"
        rest = "Content-Range: 7-8\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab"
        writer.write((head + rest).encode())
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 416 ")
    assert b"evil.example" not in answer
