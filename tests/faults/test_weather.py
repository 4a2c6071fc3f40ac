"""A site of two gateways over an etcd of three members, of which a majority goes and comes back."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.etcd import Etcd
from tests.faults.registry import Image, Registry, new_image
from tests.nodes import health, metrics, nodes
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY: Final = "team/app"
WITHIN_S: Final = 120.0


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
async def two(tmp_path: Path, cluster: Etcd) -> AsyncIterator[list[Site]]:
    """Two gateways of one site; they have to end well, and all members are there at the end."""
    found = nodes("fra", tmp_path, cluster, programs=("gateway",))
    with ended(*found):
        for node in found:
            await node.start()
        try:
            yield found
        finally:
            for node in found:
                node.show_logs()
            await _mended(cluster)
        await asyncio.gather(*(node.stop_all() for node in found))


async def _mended(cluster: Etcd) -> None:
    for number in range(cluster.size):
        if number not in cluster.up:
            cluster.spawn(number)
    await cluster.healthy()


@asynccontextmanager
async def _registries(sites: list[Site]) -> AsyncIterator[list[Registry]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Registry.at(site.url)) for site in sites]


async def _refuses_writes(at: Registry, image: Image) -> None:
    """Whatever writes is refused, also where all of it comes at once."""
    manifest = image.manifest

    async def refused(method: str, path: str, body: bytes | None) -> None:
        headers = {"Content-Type": manifest.media_type} if "other" in path else {}
        answer = await at.call(method, f"/v2/{REPOSITORY}/{path}", data=body, headers=headers)
        assert answer.status == 503, (method, path, answer)
        assert answer.headers["Retry-After"] == "2"

    writes = (
        ("POST", "blobs/uploads/", None),
        ("POST", f"blobs/uploads/?digest={image.blobs[0].digest}", image.blobs[0].content),
        ("PUT", "manifests/other", manifest.content),
        ("DELETE", "manifests/v0", None),
        ("DELETE", f"manifests/{image.digest}", None),
        ("DELETE", f"blobs/{image.blobs[0].digest}", None),
    )
    await asyncio.gather(*(refused(*write) for write in writes))


async def _takes_writes(at: Registry, image: Image) -> None:
    """Push until it is taken; what is refused meanwhile is told so."""

    async def pushed() -> bool:
        opened = await at.call("POST", f"/v2/{REPOSITORY}/blobs/uploads/")
        assert opened.status == 202, opened
        return True

    await eventually(pushed, WITHIN_S, f"{at.url} takes writes")
    await at.push(REPOSITORY, image, "after")


async def _pulled(at: Registry, images: dict[str, Image], *, stale: bool) -> None:
    for tag, image in images.items():
        for method in ("GET", "HEAD"):
            for path in (
                f"manifests/{tag}",
                f"manifests/{image.digest}",
                *(f"blobs/{blob.digest}" for blob in image.blobs),
                "tags/list",
            ):
                answer = await at.call(method, f"/v2/{REPOSITORY}/{path}")
                assert answer.status == 200, (method, path, answer)
                assert ("Warning" in answer.headers) == stale, (method, path, answer)
        assert await at.pull(REPOSITORY, tag) == image.digest


async def _troubles(node: Site, *wanted: str) -> bool:
    """Whether a gateway is ready and says that just these are wrong."""
    said = await health(node)
    assert said["ready"], said
    found = [problem.partition(":")[0] for problem in said["status"]["store"]]
    assert found == list(wanted), said
    return True


async def test_without_a_majority_pulls_go_on_and_pushes_wait(
    two: list[Site], cluster: Etcd
) -> None:
    """Pulls are answered and marked, pushes get 503, and all is well again by itself."""
    chance = random.Random(3)
    images = {f"v{number}": new_image(chance) for number in range(2)}
    async with _registries(two) as registries:
        one, other = registries
        for tag, image in images.items():
            await one.push(REPOSITORY, image, tag)
        location = (await one.call("POST", f"/v2/{REPOSITORY}/blobs/uploads/")).headers["Location"]
        assert (await one.call("PATCH", location, data=b"first")).status == 202
        for number in (0, 1):
            cluster.kill(number)
        for at in registries:
            await _pulled(at, images, stale=True)
            await _refuses_writes(at, images["v0"])
        patched = await other.call("PATCH", location, data=b"second")
        assert (patched.status, patched.headers["Retry-After"]) == (503, "2")
        for node in two:

            async def says(node: Site = node) -> bool:
                return await _troubles(node, "leaderless", "member_down")

            await eventually(says, WITHIN_S, "what is wrong is said")
        assert 'entrepot_store_trouble{trouble="leaderless"} 1.0' in await metrics(two[0])
        status = await to_thread(_status, two[0])
        assert status.returncode == 1
        assert "store leaderless" in status.stdout
        await _a_gateway_starts(two[1], images)
        await _mended(cluster)
        await _takes_writes(one, new_image(chance))
        done = await one.call("PATCH", location, data=b"second", headers={"Content-Range": "5-10"})
        assert (done.status, done.headers["Range"]) == (202, "0-10")
        for at in registries:
            await _fresh(at, images)
        for node in two:
            await _well(node)


async def _fresh(at: Registry, images: dict[str, Image]) -> None:
    async def fresh() -> bool:
        await _pulled(at, images, stale=False)
        return True

    await eventually(fresh, WITHIN_S, "pulls are fresh")


async def _well(node: Site) -> None:
    async def is_well() -> bool:
        return await _troubles(node) and (await to_thread(_status, node)).returncode == 0

    await eventually(is_well, WITHIN_S, "nothing is wrong, and status says so")


async def _a_gateway_starts(node: Site, images: dict[str, Image]) -> None:
    """A gateway that is started without a majority serves pulls like those that ran."""
    node.kill("gateway")
    await node.start()
    async with Registry.at(node.url) as at:
        await _pulled(at, images, stale=True)


def _status(node: Site) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "entrepot"
    return subprocess.run(
        (program, "status", "--url", node.url), capture_output=True, text=True, check=False
    )


async def test_an_etcd_that_hangs_keeps_nobody_waiting(two: list[Site], cluster: Etcd) -> None:
    """While no member answers, every request gets 503; then all goes on by itself."""
    image = new_image(random.Random(4))
    one_node, _ = two
    async with _registries(two) as (one, other):
        await one.push(REPOSITORY, image, "v0")
        for number in range(cluster.size):
            cluster.signal(number, signal.SIGSTOP)
        try:
            await _refuses_writes(one, image)
            paths = ("manifests/v0", f"blobs/{image.blobs[0].digest}", "tags/list")
            reads = (other.call("GET", f"/v2/{REPOSITORY}/{path}") for path in paths)
            assert {answer.status for answer in await asyncio.gather(*reads)} == {503}

            async def is_told() -> bool:
                status = await to_thread(_status, one_node)
                assert (status.returncode, status.stderr) == (1, "")
                assert "store unavailable: " in status.stdout
                (down,) = (line for line in status.stdout.splitlines() if "member_down" in line)
                assert all(endpoint in down for endpoint in cluster.endpoints)
                return True

            await eventually(is_told, WITHIN_S, "status says who is down")
        finally:
            for number in range(cluster.size):
                cluster.signal(number, signal.SIGCONT)
        for at in (one, other):
            await _takes_writes(at, image)

        async def fresh() -> bool:
            await _pulled(other, {"v0": image}, stale=False)
            return True

        await eventually(fresh, WITHIN_S, "pulls are answered")
