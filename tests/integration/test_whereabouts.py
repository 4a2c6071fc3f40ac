"""Two real sites: where an image is, while links break and blobs are lost.

What a peer lacks is counted in revisions, of which etcd has its own: that is asked over both.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import pytest_asyncio

from node.digest import Digest
from tests.etcd import in_etcd, running
from tests.faults.registry import Image, Registry, new_image
from tests.faults.wanlink import WanLink, linked
from tests.nodes import metrics
from tests.ports import free_port
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARRIVES_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sites that follow each other; nyc reaches fra over links."""

    fra: Site
    nyc: Site
    at_fra: Registry
    at_nyc: Registry
    links: tuple[WanLink, WanLink]

    async def cut(self) -> None:
        """Break the way from nyc to fra."""
        for link in self.links:
            await link.cut()

    async def heal(self) -> None:
        """Mend it."""
        for link in self.links:
            await link.heal()

    async def arrives(self, image: Image, reference: str) -> None:
        """Wait until nyc shows an image of the test's repository."""

        async def shown() -> bool:
            return await self.at_nyc.pull("team/app", reference) == image.digest

        await eventually(shown, ARRIVES_S, f"{reference} at nyc")


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite"])
async def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pair]:
    """Both sites, over SQLite unless a test names the store."""
    folder = tmp_path_factory.mktemp("whereabouts")
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    async with AsyncExitStack() as stack:
        if request.param == "etcd":
            etcd = stack.enter_context(running(1))
            for site in (fra, nyc):
                site.settings = in_etcd(etcd)
        stack.enter_context(ended(fra, nyc))
        http = await stack.enter_async_context(linked(fra.http, free_port()))
        grpc = await stack.enter_async_context(linked(fra.grpc, free_port()))
        fra.follow(nyc)
        nyc.follow(fra, http=http.address, grpc=grpc.address)
        await asyncio.gather(fra.start(), nyc.start())
        at_fra = await stack.enter_async_context(Registry.at(fra.url))
        at_nyc = await stack.enter_async_context(Registry.at(nyc.url))
        yield Pair(fra, nyc, at_fra, at_nyc, (http, grpc))
        await asyncio.gather(nyc.stop_all(), fra.stop_all())


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(pair: Pair) -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow.  Logs are shown."""
    yield
    pair.fra.show_logs()
    pair.nyc.show_logs()


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Other images in each test, the same in each run."""
    return random.Random(request.node.name)


async def _entrepot(site: Site, *arguments: str) -> tuple[int, str, str]:
    """Run the command on a site: its status, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", "from node.cli import main; main()"),
        *(*arguments, "--url", site.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def _place(pair: Pair, reference: str) -> Any:
    """What fra knows of an image at nyc; asked for over HTTP, since each command takes a second."""
    path = f"/api/v1/images?repository=team/app&reference={reference}"
    answer = await pair.at_fra.call("GET", path)
    answer.require(200, path)
    return next(one for one in json.loads(answer.body)["sites"] if one["site"] == "nyc")


async def _level(pair: Pair) -> None:
    """Wait until nyc follows fra and lacks nothing, as both of them say."""

    async def level() -> bool:
        here, there = await pair.fra.peer("nyc"), await pair.nyc.peer("fra")
        assert (there["state"], there["lag_keys"], there["lag_s"]) == ("following", 0, 0.0), there
        assert here["behind"] == 0, here
        return True

    await eventually(level, ARRIVES_S, "nyc is level")


async def test_wait_returns_when_the_image_is_pullable_there(
    pair: Pair, chance: random.Random
) -> None:
    """Status 0 is the truth at that moment, for tag after tag and by digest."""
    image = new_image(chance, (1 << 10, 1 << 20))
    for number in range(5):
        tag = f"wait-{number}"
        await pair.at_fra.push("team/app", image, tag)
        name = f"{pair.fra.http}/team/app:{tag}"
        status, output, errors = await _entrepot(pair.fra, "wait", name, "--site", "nyc")
        assert (status, output) == (0, f"nyc has team/app:{tag}\n"), errors
        assert await pair.at_nyc.pull("team/app", tag) == image.digest
        image = new_image(chance, (1 << 10, 1 << 20))
    await pair.at_nyc.push("team/app", image, "back")
    name = f"team/app@{image.digest}"
    status, _, errors = await _entrepot(pair.nyc, "wait", name, "--site", "fra")
    assert status == 0, errors
    assert await pair.at_fra.pull("team/app", image.digest) == image.digest
    status, _, errors = await _entrepot(pair.fra, "wait", name, "--site", "nyc")
    assert status == 0, errors
    await _level(pair)


async def test_a_blob_that_is_gone_at_its_source_is_named(
    pair: Pair, chance: random.Random
) -> None:
    """Asked at either site, `why` says which link, what is missing, and when it is tried next."""
    image = new_image(chance, (1 << 10, 300_000))
    await pair.cut()
    await pair.at_fra.push("team/app", image, "gone")
    layer = image.blobs[-1].digest
    _lose(pair.fra.blobs, layer)
    await pair.heal()

    async def parked() -> bool:
        place = await _place(pair, "gone")
        assert place["state"] == "parked", place
        return True

    await eventually(parked, ARRIVES_S, "fra knows what nyc has parked")
    why = ("why", "team/app:gone", "--site", "nyc", "--json")
    status, output, _ = await _entrepot(pair.fra, *why)
    place = json.loads(output)["place"]
    assert (status, place["state"]) == (1, "parked"), place
    assert layer in place["error"]
    assert place["attempts"] >= 1
    assert place["next_ms"] > place["since_ms"] > 0
    assert place["address"] == pair.nyc.url
    for site, where in ((pair.fra, "nyc"), (pair.nyc, "nyc")):
        status, output, _ = await _entrepot(site, "why", "team/app:gone", "--site", where)
        assert status == 1
        assert layer in output
        assert "next" in output
    status, _, errors = await _entrepot(
        pair.fra, *("wait", "team/app:gone", "--site", "nyc", "--timeout", "0")
    )
    assert status == 1
    assert layer in errors
    await pair.at_fra.push("team/app", image, "gone")
    status, _, errors = await _entrepot(pair.fra, "wait", "team/app:gone", "--site", "nyc")
    assert status == 0, errors
    assert await pair.at_nyc.pull("team/app", "gone") == image.digest


def _lose(blobs: Path, digest: str) -> None:
    found = list(blobs.rglob(f"{Digest.parse(digest).hex}.*"))
    assert found
    for path in found:
        path.unlink()


async def test_a_cut_link_is_said_with_its_time(pair: Pair, chance: random.Random) -> None:
    """`wait` ends in time, says since when nyc was not heard; the lag of a silent peer grows."""
    await _level(pair)
    image = new_image(chance)
    await pair.cut()
    began_ms = time.time() * 1000
    await pair.at_fra.push("team/app", image, "cut")

    async def silent() -> bool:
        place = await _place(pair, "cut")
        assert place["state"] == "on its way", place
        assert "not connected" in (place["error"] or ""), place
        return True

    await eventually(silent, ARRIVES_S, "fra knows that nyc is away")
    _, output, _ = await _entrepot(pair.fra, "why", "team/app:cut", "--site", "nyc", "--json")
    place = json.loads(output)["place"]
    assert (place["state"], "not connected" in place["error"]) == ("on its way", True), place
    assert abs(place["heard_ms"] - began_ms) < 30_000
    assert place["behind"] == 2
    status, _, errors = await _entrepot(
        pair.fra, *("wait", "team/app:cut", "--site", "nyc", "--timeout", "1")
    )
    assert status == 1
    assert "not connected" in errors
    assert "heard" in errors

    async def lags() -> bool:
        status = await pair.nyc.peer("fra")
        assert status["state"] == "unreachable", status
        assert status["lag_s"] >= 2.0, status
        return True

    await eventually(lags, ARRIVES_S, "nyc says that it may be behind")
    await pair.heal()
    status, _, errors = await _entrepot(pair.fra, "wait", "team/app:cut", "--site", "nyc")
    assert status == 0, errors
    assert await pair.at_nyc.pull("team/app", "cut") == image.digest
    await _level(pair)


@pytest.mark.parametrize("pair", ["sqlite", "etcd"], indirect=True)
async def test_a_peer_that_does_much_for_itself_is_not_behind(
    pair: Pair, chance: random.Random
) -> None:
    """Uploads of blobs are writes of a site that concern nobody else: no lag is said of them."""
    await _level(pair)
    for _ in range(5):
        await pair.at_fra.push_blob("team/other", chance.randbytes(1000))
    await _level(pair)
    await pair.at_fra.push("team/app", new_image(chance), "level")
    await _level(pair)


@pytest.mark.parametrize("pair", ["sqlite", "etcd"], indirect=True)
async def test_the_lag_of_changes_is_a_metric(pair: Pair, chance: random.Random) -> None:
    """Each that was followed is counted, and what is said of the peer is said there too."""
    image = new_image(chance)
    await pair.at_fra.push("team/app", image, "metric")
    await pair.arrives(image, "metric")

    async def counted() -> bool:
        text = await metrics(pair.nyc, "replicator")
        said = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(said['entrepot_replication_lag_seconds_count{peer="fra"}']) > 0
        assert float(said['entrepot_peer_state{peer="fra",state="following"}']) == 1
        assert float(said['entrepot_lag_keys{peer="fra"}']) == 0
        assert abs(float(said['entrepot_clock_offset_seconds{peer="fra"}'])) < 5
        return True

    await eventually(counted, ARRIVES_S, "the metrics say so")
