"""Two real sites whose links can be cut and can lie: what is visible is whole all the time."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from typing import Final

import pytest
import pytest_asyncio

from node import keys
from tests.faults.registry import Image, Registry, image_of, index_of, new_image
from tests.faults.stopped import check
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port
from tests.sites import PROGRAMS, Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

ARRIVES_S: Final = 120.0
TRUTH: Final = b"the truth "
LIE: Final = b"all a lie "


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sites that follow each other, each over links of its own."""

    fra: Site
    nyc: Site
    at_fra: Registry
    at_nyc: Registry
    links: tuple[WanLink, ...]
    bytes_of_fra: WanLink

    @property
    def registries(self) -> tuple[Registry, Registry]:
        """Both, fra's first."""
        return self.at_fra, self.at_nyc

    async def cut(self) -> None:
        """Let nothing through in either direction; what was under way is over."""
        for link in self.links:
            await link.cut()

    async def heal(self) -> None:
        """Let everything through again."""
        for link in self.links:
            await link.heal()

    async def arrives(self, repository: str, image: Image, reference: str) -> None:
        """Wait until a reference shows an image at both sites, and pull all of it from both."""
        for registry in self.registries:

            async def pulled(at: Registry = registry) -> bool:
                return await at.pull(repository, reference) == image.digest

            await eventually(pulled, ARRIVES_S, f"{repository}:{reference} at {registry.url}")

    async def goes(self, repository: str, reference: str) -> None:
        """Wait until a reference shows nothing at either site."""
        for registry in self.registries:

            async def gone(at: Registry = registry) -> bool:
                return await at.shows(repository, reference) is None

            await eventually(gone, ARRIVES_S, f"{repository}:{reference} goes at {registry.url}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Both sites, with a link for HTTP and one for gRPC each way; sound when they are stopped."""
    folder = tmp_path_factory.mktemp("two-sites")
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        links = [
            await stack.enter_async_context(linked(address, free_port()))
            for address in (fra.http, fra.grpc, nyc.http, nyc.grpc)
        ]
        nyc.follow(fra, http=links[0].address, grpc=links[1].address)
        fra.follow(nyc, http=links[2].address, grpc=links[3].address)
        await asyncio.gather(fra.start(), nyc.start())
        at_fra = await stack.enter_async_context(Registry.at(fra.url))
        at_nyc = await stack.enter_async_context(Registry.at(nyc.url))
        yield Pair(fra, nyc, at_fra, at_nyc, tuple(links), links[0])
        await asyncio.gather(nyc.stop_all(), fra.stop_all())
        for site in (fra, nyc):
            check(site)


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


async def test_a_tag_is_never_there_before_what_it_needs(pair: Pair, chance: random.Random) -> None:
    """P3: whoever pulls a tag the moment it appears at the other site gets all of it."""
    images = [new_image(chance, (1 << 10, chance.choice((1 << 12, 1 << 18)))) for _ in range(12)]
    images += [index_of(new_image(chance), new_image(chance, (1 << 16,))) for _ in range(4)]

    async def push(at: Registry, repository: str) -> None:
        for number, image in enumerate(images):
            await at.push(repository, image, f"v{number}", "latest")

    async def watch(at: Registry, repository: str, reference: str, last: Image) -> None:
        while await at.pull(repository, reference) != last.digest:
            pass  # no pause: the first moment is the one that counts

    async with asyncio.timeout(ARRIVES_S), asyncio.TaskGroup() as tasks:
        for here, there, repository in (
            (pair.at_fra, pair.at_nyc, "from/fra"),
            (pair.at_nyc, pair.at_fra, "from/nyc"),
        ):
            tasks.create_task(push(here, repository))
            tasks.create_task(watch(there, repository, "latest", images[-1]))
            tasks.create_task(_in_turn(there, repository, images))


async def _in_turn(at: Registry, repository: str, images: list[Image]) -> None:
    for number, image in enumerate(images):
        while (found := await at.pull(repository, f"v{number}")) is None:
            pass
        assert found == image.digest


async def test_odd_images_arrive_whole(pair: Pair, chance: random.Random) -> None:
    """No layers, an empty blob, one layer twice, an index of indexes: all of them are images."""
    layer = chance.randbytes(5000)
    twice = image_of(chance.randbytes(20), layer, layer)
    odd = {
        "no-layers": new_image(chance, ()),
        "empty-blob": image_of(chance.randbytes(20), b"", layer),
        "same-layer-twice": twice,
        "index": index_of(twice, new_image(chance)),
        "empty-index": index_of(),
        "nested": index_of(index_of(new_image(chance)), new_image(chance)),
    }
    for number, (tag, image) in enumerate(odd.items()):
        await pair.registries[number % 2].push("odd/images", image, tag)
    for tag, image in odd.items():
        await pair.arrives("odd/images", image, tag)


async def test_concurrent_pushes_to_a_tag_lose_nothing(pair: Pair, chance: random.Random) -> None:
    """P5: both sites then show the same image and a conflict; the other is pullable by digest."""
    ours, theirs, resolved = new_image(chance), new_image(chance), new_image(chance)
    await pair.at_fra.push("contested", new_image(chance), "before")
    await pair.cut()
    await pair.at_fra.push("contested", ours, "tag")
    await pair.at_nyc.push("contested", theirs, "tag")
    assert await pair.at_fra.pull("contested", "tag") == ours.digest
    assert await pair.at_nyc.pull("contested", "tag") == theirs.digest
    await pair.heal()
    for image in (ours, theirs):
        await pair.arrives("contested", image, image.digest)

    async def agree() -> bool:
        answers = [await at.call("GET", "/v2/contested/manifests/tag") for at in pair.registries]
        shown = {answer.headers["Docker-Content-Digest"] for answer in answers}
        conflicts = [answer.headers.get("Entrepot-Conflict") for answer in answers]
        assert conflicts == ["2", "2"], conflicts
        return len(shown) == 1 and shown <= {ours.digest, theirs.digest}

    await eventually(agree, ARRIVES_S, "both sites show one image, in conflict")
    await pair.at_nyc.push("contested", resolved, "tag")
    await pair.arrives("contested", resolved, "tag")
    for registry in pair.registries:
        answer = await registry.call("GET", "/v2/contested/manifests/tag")
        assert "Entrepot-Conflict" not in answer.headers


async def test_a_conflict_is_resolved_at_all_sites(pair: Pair, chance: random.Random) -> None:
    """Both sites list it alike; what is chosen at one is shown at both, and nothing is hidden."""
    ours, theirs = new_image(chance), new_image(chance)
    await _contest(pair, "chosen", ours, theirs)
    listed = [await _conflicts(at, "chosen") for at in pair.registries]
    assert listed[0] == listed[1]
    ((etag, siblings),) = listed[0]
    assert siblings == {ours.digest: "fra", theirs.digest: "nyc"}
    shown = await pair.at_fra.shows("chosen", "tag")
    hidden = theirs if shown == ours.digest else ours
    choice = {"repository": "chosen", "tag": "tag", "digest": hidden.digest}
    path, seen = "/api/v1/conflicts/resolve", {"If-Match": f'"{etag}"'}
    answer = await pair.at_fra.call("POST", path, json=choice, headers=seen)
    answer.require(200, "resolve")
    await pair.arrives("chosen", hidden, "tag")
    for registry in pair.registries:
        assert await _conflicts(registry, "chosen") == []
        head = await registry.call("HEAD", "/v2/chosen/manifests/tag")
        assert "Entrepot-Conflict" not in head.headers
    for image in (ours, theirs):
        await pair.arrives("chosen", image, image.digest)
    answer = await pair.at_nyc.call("POST", path, json=choice, headers=seen)
    assert answer.status == 412


async def test_a_deleted_sibling_leaves_the_other(pair: Pair, chance: random.Random) -> None:
    """A delete by digest at one site ends the conflict at both, and takes no other push along."""
    ours, theirs = new_image(chance), new_image(chance)
    await _contest(pair, "halved", ours, theirs)
    await pair.at_nyc.delete("halved", ours.digest)
    await pair.goes("halved", ours.digest)
    await pair.arrives("halved", theirs, "tag")
    for registry in pair.registries:
        assert await _conflicts(registry, "halved") == []


async def _contest(pair: Pair, repository: str, ours: Image, theirs: Image) -> None:
    """Push to one tag at both sites while they can't tell each other, then let them."""
    await pair.cut()
    await pair.at_fra.push(repository, ours, "tag")
    await pair.at_nyc.push(repository, theirs, "tag")
    await pair.heal()
    for registry in pair.registries:

        async def knows(at: Registry = registry) -> bool:
            return len(await _conflicts(at, repository)) == 1

        await eventually(knows, ARRIVES_S, f"{registry.url} lists the conflict")


async def _conflicts(at: Registry, repository: str) -> list[tuple[str, dict[str, str]]]:
    """What a site lists: of each tag what was seen, and who pushed what."""
    answer = await at.call("GET", f"/api/v1/conflicts?repository={repository}")
    return [
        (conflict["etag"], {one["digest"]: one["site"] for one in conflict["siblings"]})
        for conflict in json.loads(answer.body)["conflicts"]
    ]


async def test_deletes_do_not_come_back(pair: Pair, chance: random.Random) -> None:
    """P6: not after a cut, not when a site forgets how far it was and takes everything again."""
    images = {name: new_image(chance) for name in ("tag-only", "manifest", "kept")}
    for name, image in images.items():
        await pair.at_fra.push("doomed", image, name)
    for name, image in images.items():
        await pair.arrives("doomed", image, name)
    await pair.cut()
    await pair.at_nyc.delete("doomed", "tag-only")
    await pair.at_nyc.delete("doomed", images["manifest"].digest)
    assert await pair.at_fra.shows("doomed", "manifest") == images["manifest"].digest
    await pair.heal()
    await pair.goes("doomed", "tag-only")
    await pair.goes("doomed", "manifest")
    await pair.goes("doomed", images["manifest"].digest)
    for site in (pair.fra, pair.nyc):
        await site.stop("replicator")
    for site, other in ((pair.fra, "nyc"), (pair.nyc, "fra")):
        _forget_cursor(site, other)
    await asyncio.gather(pair.fra.start(), pair.nyc.start())
    for registry in pair.registries:
        image = new_image(chance)
        await registry.push("doomed", image, "after")
        await pair.arrives("doomed", image, "after")
    await pair.arrives("doomed", images["kept"], "kept")
    await pair.arrives("doomed", images["tag-only"], images["tag-only"].digest)
    for registry in pair.registries:
        for reference in ("tag-only", "manifest", images["manifest"].digest):
            assert await registry.shows("doomed", reference) is None


def _forget_cursor(site: Site, peer: str) -> None:
    with closing(sqlite3.connect(site.metadata)) as connection, connection:
        cursor = connection.execute("DELETE FROM rows WHERE key = ?", (keys.cursor(peer),))
        assert cursor.rowcount == 1


async def test_a_lie_parks_its_repository_and_nothing_of_it_is_visible(
    pair: Pair, chance: random.Random
) -> None:
    """Bytes that are not what they should be are dropped and said; all arrives once they are."""
    image = image_of(chance.randbytes(20), TRUTH * 3000)
    honest = new_image(chance)
    layer = image.blobs[1].digest
    pair.bytes_of_fra.change = lambda content: content.replace(TRUTH, LIE)
    await pair.at_fra.push("believed", image, "tag")

    async def parked() -> bool:
        status = await pair.nyc.peer("fra")
        assert status["state"] == "parked", status
        assert status["parked"] == 1, status
        assert layer in status["last_error"], status
        return True

    await eventually(parked, ARRIVES_S, "nyc says what is wrong")
    await pair.at_fra.push("elsewhere", honest, "tag")
    await pair.arrives("elsewhere", honest, "tag")
    for reference in ("tag", image.digest):
        assert await pair.at_nyc.shows("believed", reference) is None
    assert (await pair.at_nyc.call("GET", f"/v2/believed/blobs/{layer}")).status == 404
    pair.bytes_of_fra.change = bytes
    await pair.arrives("believed", image, "tag")

    async def well() -> bool:
        status = await pair.nyc.peer("fra")
        assert (status["state"], status["parked"]) == ("following", 0), status
        return True

    await eventually(well, ARRIVES_S, "nyc says that nothing is wrong any more")


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("where", ["fra", "nyc"])
async def test_a_killed_process_goes_on_where_it_was(
    pair: Pair, chance: random.Random, where: str, program: str
) -> None:
    """P1: whichever process is killed and started again, all that was pushed arrives."""
    site = pair.fra if where == "fra" else pair.nyc
    images = [new_image(chance, (1 << 10, 1 << 20)) for _ in range(4)]
    repository = f"killed/{where}-{program}"
    for number, image in enumerate(images):
        await pair.at_fra.push(repository, image, f"v{number}")
    site.kill(program)
    await site.start()
    for number, image in enumerate(images):
        await pair.arrives(repository, image, f"v{number}")
