"""Three real sites: bytes come from whoever has them, and no faster than a link may be used."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.faults.registry import Image, Registry, new_image
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

ARRIVES_S: Final = 120.0
REPOSITORY: Final = "team/app"
MIB: Final = 1 << 20
LIMIT: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Three:
    """`nyc` follows both others, and reaches `fra`'s blobs over `http`; `ams` follows `fra`."""

    nyc: Site
    http: WanLink
    at_fra: Registry
    at_ams: Registry
    at_nyc: Registry

    async def received(self, peer: str) -> float:
        """The bytes of blobs that nyc has had from a peer."""
        return await self.nyc.metric("replicator", "entrepot_received_bytes_total", peer=peer)


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[Three]:
    """The three sites."""
    fra, ams, nyc = (Site(name, tmp_path / name) for name in ("fra", "ams", "nyc"))
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, ams, nyc))
        http = await stack.enter_async_context(linked(fra.http, free_port()))
        fra.follow(ams, follow=False)
        fra.follow(nyc, follow=False)
        ams.follow(fra)
        ams.follow(nyc, follow=False)
        nyc.follow(fra, http=http.address, bandwidth=f"{LIMIT}B/s")
        nyc.follow(ams)
        await asyncio.gather(fra.start(), ams.start(), nyc.start())
        at = [await stack.enter_async_context(Registry.at(site.url)) for site in (fra, ams, nyc)]
        yield Three(nyc, http, *at)
        await asyncio.gather(fra.stop_all(), ams.stop_all(), nyc.stop_all())


async def _arrives(at: Registry, image: Image, reference: str) -> None:
    async def pulled() -> bool:
        return await at.pull(REPOSITORY, reference) == image.digest

    assert await eventually(pulled, ARRIVES_S, f"{reference} arrives whole")


async def test_another_peer_helps_out(three: Three) -> None:
    """A peer whose blobs can't be reached tells of an image, and another brings its bytes."""
    chance = random.Random(1)
    await three.http.cut()
    image = new_image(chance, (3 * MIB, 1000))
    await three.at_fra.push(REPOSITORY, image, "v1")
    await _arrives(three.at_ams, image, "v1")
    await _arrives(three.at_nyc, image, "v1")
    assert await three.received("fra") == 0
    assert await three.received("ams") >= 3 * MIB


async def test_a_link_is_used_no_more_than_it_may_be(three: Three) -> None:
    """With a limit of 4 MB a second 24 MiB take six seconds, and a blob is still whole."""
    chance = random.Random(2)
    image = new_image(chance, (12 * MIB, 12 * MIB))
    clock = asyncio.get_running_loop().time
    began = clock()
    await three.at_fra.push(REPOSITORY, image, "v2")
    await _arrives(three.at_nyc, image, "v2")
    by_fra = await three.received("fra")
    assert by_fra <= LIMIT * (clock() - began + 1)
    assert by_fra >= 24 * MIB
