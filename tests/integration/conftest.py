"""Sites for the tests of this folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.kv import Range
from tests.etcd import Etcd, in_etcd, opened
from tests.faults.stopped import check
from tests.nodes import prefix_of
from tests.sites import Site, ended


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A site `fra` of one gateway process, ready; it has to end well."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",))
    with ended(site):
        await site.start()
        yield site
        await site.stop_all()


@pytest.fixture(params=["sqlite", "etcd"])
async def sites(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """Two sites that follow each other, over this store; sound when they are stopped."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None
    fra.follow(nyc)
    nyc.follow(fra)
    if etcd is not None:
        fra.settings, nyc.settings = in_etcd(etcd), in_etcd(etcd)
    with ended(fra, nyc):
        await asyncio.gather(fra.start(), nyc.start())
        yield fra, nyc
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        for site in (fra, nyc):
            site.show_logs()
            check(site, None if etcd is None else await _held(site, etcd))


async def _held(site: Site, etcd: Etcd) -> dict[bytes, bytes]:
    """Every key of a site in an etcd, with its value."""
    async with opened(*etcd.endpoints, at=prefix_of(site)) as kv:
        (found,) = (await kv.read([Range(b"\0", b"\xff")])).ranges
    return {entry.key: entry.value for entry in found}
