"""Two real sites: what is pushed at one can be pulled from the other, whatever happens between."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.faults.registry import Image, Registry, index_of, new_image
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARRIVES_S = 120.0
REPOSITORY = "team/app"


class Counted:
    """Counts the bytes that come from the other end of a link."""

    def __init__(self) -> None:
        self.bytes = 0

    def __call__(self, content: bytes) -> bytes:
        self.bytes += len(content)
        return content


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sites that follow each other; nyc reaches fra over the links."""

    fra: Site
    nyc: Site
    http: WanLink
    grpc: WanLink
    at_fra: Registry
    at_nyc: Registry

    async def cut(self) -> None:
        """Break the way from nyc to fra."""
        await self.http.cut()
        await self.grpc.cut()

    async def heal(self) -> None:
        """Mend it."""
        await self.http.heal()
        await self.grpc.heal()


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Both sites, following each other."""
    folder = tmp_path_factory.mktemp("replication")
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        http = await stack.enter_async_context(linked(fra.http, free_port()))
        grpc = await stack.enter_async_context(linked(fra.grpc, free_port()))
        fra.follow(nyc)
        nyc.follow(fra, http=http.address, grpc=grpc.address)
        await fra.start()
        await nyc.start()
        at_fra = await stack.enter_async_context(Registry.at(fra.url))
        at_nyc = await stack.enter_async_context(Registry.at(nyc.url))
        yield Pair(fra, nyc, http, grpc, at_fra, at_nyc)
        await nyc.stop_all()
        await fra.stop_all()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Other images in each test, the same in each run."""
    return random.Random(request.node.name)


async def _arrives(
    at: Registry, image: Image, reference: str, repository: str = REPOSITORY
) -> None:
    async def pulled() -> bool:
        return await at.pull(repository, reference) == image.digest

    assert await eventually(pulled, ARRIVES_S, f"{reference} arrives whole")


async def _state(site: Site, peer: str, *states: str) -> None:
    async def reached() -> bool:
        status = await site.peer(peer)
        assert status["state"] in states, status
        return True

    assert await eventually(reached, ARRIVES_S, f"{site.name} sees {peer} as {states}")


async def test_an_image_goes_both_ways(pair: Pair, chance: random.Random) -> None:
    """What is pushed at either site is soon pulled from the other, byte for byte."""
    here, there = new_image(chance, (1 << 10, 1 << 20)), new_image(chance, (3 << 20,))
    await pair.at_fra.push(REPOSITORY, here, "here")
    await pair.at_nyc.push(REPOSITORY, there, "there")
    await _arrives(pair.at_nyc, here, "here")
    await _arrives(pair.at_fra, there, "there")


async def test_an_index_arrives_with_its_children(pair: Pair, chance: random.Random) -> None:
    """A multi-platform image is never visible before all of its platforms are."""
    index = index_of(new_image(chance), new_image(chance, (0,)))
    await pair.at_fra.push(REPOSITORY, index, "multi")
    await _arrives(pair.at_nyc, index, "multi")


async def test_a_delete_goes_too_and_stays(pair: Pair, chance: random.Random) -> None:
    """A tag that was deleted at one site goes from the other."""
    image = new_image(chance)
    await pair.at_fra.push(REPOSITORY, image, "doomed")
    await _arrives(pair.at_nyc, image, "doomed")
    await pair.at_nyc.delete(REPOSITORY, "doomed")

    async def gone() -> bool:
        return await pair.at_fra.shows(REPOSITORY, "doomed") is None

    assert await eventually(gone, ARRIVES_S, "the tag is gone at its origin")


async def test_what_was_pushed_during_a_cut_arrives_after_it(
    pair: Pair, chance: random.Random
) -> None:
    """Each site goes on alone; concurrent pushes to a tag end with both sites showing the same."""
    ours, theirs = new_image(chance), new_image(chance)
    await pair.cut()
    await _state(pair.nyc, "fra", "unreachable")
    await pair.at_fra.push(REPOSITORY, ours, "contested", "ours")
    await pair.at_nyc.push(REPOSITORY, theirs, "contested", "theirs")
    await pair.heal()
    await _arrives(pair.at_nyc, ours, "ours")
    await _arrives(pair.at_fra, theirs, "theirs")

    async def agree() -> bool:
        shown = await pair.at_fra.pull(REPOSITORY, "contested")
        return shown is not None and shown == await pair.at_nyc.pull(REPOSITORY, "contested")

    assert await eventually(agree, ARRIVES_S, "both sites show the same image")
    for image in (ours, theirs):
        assert await pair.at_nyc.pull(REPOSITORY, image.digest) == image.digest
    await _state(pair.nyc, "fra", "following")


@pytest.mark.parametrize("trouble", ["kill", "cut", "stop"])
async def test_a_blob_that_was_half_fetched_is_gone_on_with(
    pair: Pair, chance: random.Random, trouble: str
) -> None:
    """Neither kill -9, nor a cut, nor a proper stop costs the bytes that had come."""
    size = 24 << 20
    image = new_image(chance, (size,))
    counted = Counted()
    pair.http.change, pair.http.line.bytes_per_s = counted, 12e6
    await pair.at_fra.push(REPOSITORY, image, trouble)
    await eventually(lambda: counted.bytes > size // 2, ARRIVES_S, "half of it has come")
    match trouble:
        case "kill":
            pair.nyc.kill("replicator")
        case "stop":
            assert await pair.nyc.stop("replicator") == 0
        case _:
            await pair.cut()
    assert counted.bytes < size, "it was too fast to be interrupted"
    pair.http.line.bytes_per_s = math.inf
    await pair.heal()
    await pair.nyc.start()
    await _arrives(pair.at_nyc, image, trouble)
    assert counted.bytes < size + (10 << 20), "much was sent twice"


async def test_sites_that_have_nothing_to_tell_write_nothing(pair: Pair) -> None:
    """Cursors and acks settle: two idle sites don't keep each other busy."""
    clock = asyncio.get_running_loop().time
    last, since = (0, 0), clock()

    async def settled() -> bool:
        nonlocal last, since
        now = (await _revision(pair.fra), await _revision(pair.nyc))
        if now != last:
            last, since = now, clock()
        # They say each 20 s that they are still there.
        return clock() - since >= 4

    await eventually(settled, ARRIVES_S, "both stores stand still", each_s=0.1)


async def _revision(site: Site) -> int:
    def read() -> int:
        with sqlite3.connect(site.metadata) as store:
            (revision,) = store.execute("SELECT revision FROM state").fetchone()
            return int(revision)

    return await to_thread(read)


# --- one site, and a peer that is not there, or not what it should be


@pytest_asyncio.fixture(loop_scope="module")
async def sites(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """Two sites that were not started."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    with ended(fra, nyc):
        yield fra, nyc


async def test_a_peer_that_comes_late_is_followed(
    sites: tuple[Site, Site], chance: random.Random
) -> None:
    """A peer that is down at the start is unreachable, and followed as soon as it is up."""
    fra, nyc = sites
    fra.follow(nyc)
    nyc.follow(fra)
    await nyc.start()
    await _state(nyc, "fra", "unreachable")
    image = new_image(chance)
    async with Registry.at(nyc.url) as registry:
        await registry.push(REPOSITORY, image, "early")
    await fra.start()
    async with Registry.at(fra.url) as registry:
        await _arrives(registry, image, "early")
    await _state(nyc, "fra", "following")


async def test_a_wrong_secret_is_refused(
    sites: tuple[Site, Site], tmp_path: Path, chance: random.Random
) -> None:
    """Without the secret of the pair nothing is told; both sides say what is wrong."""
    fra, nyc = sites
    for name, secret in (("right", "0123456789abcdef"), ("wrong", "fedcba9876543210")):
        (tmp_path / name).write_text(secret)
    fra.follow(nyc, secret_file=str(tmp_path / "right"))
    nyc.follow(fra, secret_file=str(tmp_path / "wrong"))
    await fra.start()
    await nyc.start()
    async with Registry.at(fra.url) as registry:
        await registry.push(REPOSITORY, new_image(chance), "secret")
    await _state(nyc, "fra", "refused")
    await _state(fra, "nyc", "refused")
    async with Registry.at(nyc.url) as registry:
        assert await registry.shows(REPOSITORY, "secret") is None
