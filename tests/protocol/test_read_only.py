"""A site that is read-only (row G15)."""

from __future__ import annotations

from pathlib import Path

import aiohttp
import pytest

from node.config import Config
from tests.protocol.exchanges import Exchange
from tests.registry import LAYER, Client, Served, digest_of, image, served
from tests.sites import Site, ended

BLOB = digest_of(LAYER)


async def _require_read_only(registry: Client) -> None:
    """See that what was pushed can be read, and that every write is 405."""
    uploads, refused = "blobs/uploads/", {"Allow": "GET, HEAD"}
    for place in ("manifests/v1", f"blobs/{BLOB}", "tags/list", "/v2/", "/v2/_catalog"):
        for method in ("GET", "HEAD"):
            await Exchange("read", method, place, 200).hold(registry)
    for method, place, body in (
        ("PUT", "manifests/v2", image(LAYER)),
        ("DELETE", "manifests/v1", None),
        ("DELETE", f"manifests/{digest_of(image(LAYER))}", None),
        ("DELETE", f"blobs/{BLOB}", None),
        ("POST", uploads, None),
        ("POST", f"{uploads}?digest={digest_of(b'x')}", b"x"),
        ("POST", f"{uploads}?mount={BLOB}&from={registry.repository}", None),
        ("PATCH", f"{uploads}some-session", b"x"),
        ("PUT", f"{uploads}some-session?digest={digest_of(b'x')}", b"x"),
        ("DELETE", f"{uploads}some-session", None),
    ):
        exchange = Exchange("write", method, place, 405, headers=refused, code="UNSUPPORTED")
        await exchange.hold(registry, body)
    for place in ("manifests/v1", f"blobs/{BLOB}"):
        await Exchange("read again", "GET", place, 200).hold(registry)


@pytest.mark.parametrize("row", ["G15"])
async def test_a_read_only_gateway(fakes: Served, row: str) -> None:
    """A read-only gateway refuses every write with 405, and goes on answering reads."""
    await fakes.push_image()
    async with served(Config(read_only=True), beside=fakes) as registry:
        await _require_read_only(registry)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["G15"])
async def test_a_site_becomes_read_only(tmp_path: Path, row: str) -> None:
    """A site that is started again as read-only still has what was pushed, and takes no more."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",))
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        registry = Client(site.port, client)
        with ended(site):
            await site.start()
            await registry.push_image()
            await site.stop_all()
            site.settings = {"read_only": True}
            await site.start()
            await _require_read_only(registry)
            await site.stop_all()
