"""Two real sites that speak TLS only, and let nobody in without a certificate."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiohttp
import pytest
import pytest_asyncio

from node.config_models import Tls
from node.tls import calling
from tests.authority import Authority, Pair
from tests.faults.registry import TIMEOUT_S, Registry, new_image
from tests.faults.stopped import check
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARRIVES_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Sites:
    """Two sites that follow each other, and what whoever calls them needs."""

    fra: Site
    nyc: Site
    authority: Authority
    caller: Pair

    def registry(self, site: Site) -> Registry:
        """A client that has to be closed."""
        own = Tls(certificate=self.caller.certificate, key=self.caller.key)
        connector = aiohttp.TCPConnector(
            force_close=True, ssl=calling(self.authority.certificate, own)
        )
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        return Registry(site.url, aiohttp.ClientSession(timeout=timeout, connector=connector))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sites(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sites]:
    """Both sites; sound when they are stopped."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority.make(folder / "authority")
    ca = str(authority.certificate)
    made = []
    for name in ("fra", "nyc"):
        pair = authority.sign(name)
        tls = {"certificate": str(pair.certificate), "key": str(pair.key), "client_ca": ca}
        made.append(Site(name, folder / name, tls=tls))
    fra, nyc = made
    fra.follow(nyc, ca=ca)
    nyc.follow(fra, ca=ca)
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        await asyncio.gather(fra.start(), nyc.start())
        yield Sites(fra, nyc, authority, authority.sign("caller"))
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        check(fra)
        check(nyc)


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(sites: Sites) -> Iterator[None]:
    """Contexts are made of files here, and the sites are other processes; logs are shown."""
    yield
    sites.fra.show_logs()
    sites.nyc.show_logs()


async def test_an_image_goes_from_site_to_site_under_tls(sites: Sites) -> None:
    """Peers trust each other by `ca`, and show each other their own certificates."""
    image = new_image(random.Random(1), (1 << 10, 9 << 20))
    async with sites.registry(sites.fra) as fra, sites.registry(sites.nyc) as nyc:
        await fra.push("app", image, "v1")

        async def arrived() -> bool:
            return await nyc.pull("app", "v1") == image.digest

        await eventually(arrived, ARRIVES_S, "the image is at nyc")


@pytest.mark.parametrize("known", [True, False], ids=["with a certificate", "without"])
async def test_status_is_told_to_who_has_a_certificate(sites: Sites, known: bool) -> None:
    """`entrepot status` takes what TLS needs on its command line, and says what is missing."""
    options = ["--ca", str(sites.authority.certificate)]
    if known:
        options += ["--certificate", str(sites.caller.certificate), "--key", str(sites.caller.key)]

    async def asked() -> bool:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from node.cli import main; main()"),
            *("status", "--json", "--url", sites.fra.url, *options),
            cwd=Path(__file__).parents[2],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        if not known:
            return process.returncode == 1 and err.startswith(sites.fra.url.encode())
        assert process.returncode == 0, (out, err)
        return [peer["state"] for peer in json.loads(out)["peers"]] == ["following"]

    await eventually(asked, ARRIVES_S, "the status is told")
