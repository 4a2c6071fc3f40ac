"""Three gateways of one site: a client may speak to any, at any moment, and sees one site.

Over SQLite they share a file, over etcd they know of each other by it alone.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

import pytest
import pytest_asyncio

from tests.etcd import in_etcd
from tests.faults.registry import OCI_MANIFEST, Blob, Image, Registry, digest_of, new_image
from tests.sites import Site, ended

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

REPOSITORY: Final = "team/app"
MANIFESTS: Final = f"/v2/{REPOSITORY}/manifests"
BLOBS: Final = f"/v2/{REPOSITORY}/blobs"
KIB: Final = 1 << 10


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sqlite", "etcd"])
async def gateways(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Registry]]:
    """A client of each of the gateways of a site; they have to end well."""
    folder = tmp_path_factory.mktemp("gateways") / "fra"
    site = Site("fra", folder, programs=("gateway",), gateways=3)
    if request.param == "etcd":
        site.settings = in_etcd(request.getfixturevalue("etcd"))
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(site))
        await site.start()
        clients = [await stack.enter_async_context(Registry.at(url)) for url in site.urls]
        yield clients
        await site.stop_all()


async def _begin(at: Registry) -> str:
    answer = await at.call("POST", f"{BLOBS}/uploads/")
    answer.require(202, "begin an upload")
    return answer.headers["Location"]


# --- uploads


async def test_an_upload_wanders_from_gateway_to_gateway(gateways: list[Registry]) -> None:
    """Begun at one, continued at the next and finished at the third, it is a blob at each."""
    chance = random.Random(1)
    parts = [chance.randbytes(200 * KIB) for _ in range(5)]
    content = b"".join(parts)
    url = await _begin(gateways[0])
    turns = cycle(gateways[1:] + gateways[:1])
    end = 0
    for part, at in zip(parts, turns, strict=False):
        answer = await at.call("PATCH", url, data=part)
        answer.require(202, "continue")
        end += len(part)
        assert answer.headers["Range"] == f"0-{end - 1}"
        found = await next(turns).call("GET", url)
        assert (found.status, found.headers["Range"]) == (204, f"0-{end - 1}")
    done = await gateways[2].call("PUT", f"{url}?digest={digest_of(content)}")
    done.require(201, "finish")
    for at in gateways:
        await at.pull_blob(REPOSITORY, digest_of(content), len(content))
        assert (await at.call("GET", url)).status == 404


async def test_what_one_gateway_hashed_another_does_not_take_for_all(
    gateways: list[Registry],
) -> None:
    """A gateway that saw only the first and the last of three pieces still verifies the whole."""
    chance = random.Random(2)
    parts = [chance.randbytes(64 * KIB) for _ in range(3)]
    for digest, status in (
        (digest_of(parts[0] + parts[2]), 400),
        (digest_of(b"".join(parts)), 201),
    ):
        url = await _begin(gateways[0])
        for part, at in zip(parts, (gateways[0], gateways[1], gateways[0]), strict=True):
            (await at.call("PATCH", url, data=part)).require(202, "continue")
        assert (await gateways[0].call("PUT", f"{url}?digest={digest}")).status == status


async def test_all_gateways_at_one_upload_at_once(gateways: list[Registry]) -> None:
    """Of pieces for one place, sent side by side, one is taken and the others get 416."""
    chance = random.Random(3)
    content = b""
    url = await _begin(gateways[0])
    for _ in range(8):
        parts = [chance.randbytes(64 * KIB) for _ in gateways]
        together = asyncio.Barrier(len(gateways))
        headers = {
            "Content-Range": f"{len(content)}-{len(content) + len(parts[0]) - 1}",
            "Content-Length": str(len(parts[0])),
        }
        answers = await asyncio.gather(
            *(
                at.call("PATCH", url, data=_in_step(part, together), headers=headers)
                for at, part in zip(gateways, parts, strict=True)
            )
        )
        statuses = [answer.status for answer in answers]
        assert sorted(statuses) == [202, 416, 416]
        content += parts[statuses.index(202)]
        assert {answer.headers["Range"] for answer in answers} == {f"0-{len(content) - 1}"}
    done = await gateways[1].call("PUT", f"{url}?digest={digest_of(content)}")
    done.require(201, "finish")
    await gateways[2].pull_blob(REPOSITORY, digest_of(content), len(content))


async def _in_step(content: bytes, together: asyncio.Barrier) -> AsyncIterator[bytes]:
    """A body whose second half is sent when the first half of the others was."""
    half = len(content) // 2
    yield content[:half]
    await together.wait()
    yield content[half:]


async def test_all_gateways_finish_one_upload_at_once(gateways: list[Registry]) -> None:
    """One request finishes it, or several; none that says so is wrong, and the blob is whole."""
    chance = random.Random(4)
    for _ in range(5):
        content = chance.randbytes(64 * KIB)
        url = await _begin(gateways[0])
        (await gateways[1].call("PATCH", url, data=content)).require(202, "continue")
        end = f"{url}?digest={digest_of(content)}"
        answers = await asyncio.gather(*(at.call("PUT", end) for at in gateways))
        statuses = {answer.status for answer in answers}
        assert 201 in statuses
        assert statuses <= {201, 404, 416}
        for at in gateways:
            await at.pull_blob(REPOSITORY, digest_of(content), len(content))


# --- tags


def _manifest(number: int) -> Blob:
    """A manifest that knows its number, over a config `{}`."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(b"{}"),
            "size": 2,
        },
        "layers": [],
        "annotations": {"number": str(number)},
    }
    return Blob(OCI_MANIFEST, json.dumps(document).encode())


def _number(body: bytes) -> int:
    return int(json.loads(body)["annotations"]["number"])


@dataclass(frozen=True, slots=True)
class _Operation:
    """A read or a write of a tag, which took effect at one moment of its time."""

    began_at: float
    ended_at: float
    number: int
    writes: bool = False


async def test_a_tag_is_one_register_at_all_gateways(gateways: list[Registry]) -> None:
    """P2: whoever asks, wherever, sees no older push than any answer before has told of."""
    clock = asyncio.get_running_loop().time
    history: list[_Operation] = []
    await gateways[0].push_blob(REPOSITORY, b"{}")
    await gateways[0].put_manifest(REPOSITORY, _manifest(0), "v")

    async def write() -> None:
        for number, at in zip(range(1, 61), cycle(gateways), strict=False):
            began_at = clock()
            await at.put_manifest(REPOSITORY, _manifest(number), "v")
            history.append(_Operation(began_at, clock(), number, writes=True))

    async def read(at: Registry) -> None:
        while True:
            began_at = clock()
            answer = await at.call("GET", f"{MANIFESTS}/v")
            history.append(_Operation(began_at, clock(), _number(answer.body)))

    async with asyncio.TaskGroup() as group:
        reads = [group.create_task(read(at)) for at in gateways for _ in range(2)]
        await write()
        for task in reads:
            task.cancel()
    _check_order(history)
    assert len({one.number for one in history if not one.writes}) > 10, "few pushes were seen"


def _check_order(history: list[_Operation]) -> None:
    """With one writer of growing numbers, a register is linearizable iff numbers never fall."""
    begun = {one.number: one.began_at for one in history if one.writes}
    newest, told = 0, sorted(history, key=lambda one: one.ended_at)
    for one in sorted(history, key=lambda one: one.began_at):
        while told[0].ended_at < one.began_at:
            newest = max(newest, told.pop(0).number)
        assert one.number >= newest, (one, newest)
        assert begun.get(one.number, 0) <= one.ended_at, (one, "was read before it was pushed")


async def test_conditions_count_at_all_gateways(gateways: list[Registry]) -> None:
    """If-Match is a compare-and-swap over gateways: no two clients replace the same push."""
    each = 15
    await gateways[0].push_blob(REPOSITORY, b"{}")
    await gateways[0].put_manifest(REPOSITORY, _manifest(0), "n")
    put: list[int] = []

    async def count(ways: Iterator[Registry]) -> None:
        done = 0
        while done < each:
            found = await next(ways).call("GET", f"{MANIFESTS}/n")
            mine = _manifest(_number(found.body) + 1)
            headers = {"Content-Type": OCI_MANIFEST, "If-Match": found.headers["ETag"]}
            answer = await next(ways).call(
                "PUT", f"{MANIFESTS}/n", data=mine.content, headers=headers
            )
            if answer.status != 412:
                answer.require(201, "count")
                put.append(_number(mine.content))
                done += 1

    await asyncio.gather(*(count(cycle(gateways[n:] + gateways[:n])) for n in range(3)))
    assert sorted(put) == list(range(1, 3 * each + 1))


# --- deletes


async def _statuses(gateways: list[Registry], path: str) -> set[int]:
    """What each gateway answers to GET and to HEAD."""
    calls = [at.call(method, path) for at in gateways for method in ("GET", "HEAD")]
    return {answer.status for answer in await asyncio.gather(*calls)}


async def test_what_one_gateway_deletes_is_gone_at_all(gateways: list[Registry]) -> None:
    """Blobs, tags and manifests that all have just served are 404 at all; a re-push heals each."""
    chance = random.Random(5)
    for first, second in zip(gateways, gateways[1:] + gateways[:1], strict=True):
        image = new_image(chance, (KIB,))
        await second.push(REPOSITORY, image, "v1", "v2")
        blobs = [f"{BLOBS}/{blob.digest}" for blob in image.blobs]
        manifests = [f"{MANIFESTS}/{at}" for at in ("v1", "v2", image.digest)]
        for path in (*blobs, *manifests):
            assert await _statuses(gateways, path) == {200}
        await first.delete(REPOSITORY, "v1")
        assert [await _statuses(gateways, path) for path in manifests] == [{404}, {200}, {200}]
        await second.delete(REPOSITORY, image.digest)
        assert [await _statuses(gateways, path) for path in manifests] == [{404}] * 3
        for path in blobs:
            (await first.call("DELETE", path)).require(202, "delete a blob")
            assert await _statuses(gateways, path) == {404}
        await _lacks_its_blobs(gateways, image)
        await first.push(REPOSITORY, image, "v1")
        for at in gateways:
            assert await at.pull(REPOSITORY, "v1") == image.digest


async def _lacks_its_blobs(gateways: list[Registry], image: Image) -> None:
    """See that no gateway takes a manifest whose blobs were deleted at another."""
    options: dict[str, Any] = {"headers": {"Content-Type": OCI_MANIFEST}}
    for at in gateways:
        answer = await at.call("PUT", f"{MANIFESTS}/v3", data=image.manifest.content, **options)
        assert (answer.status, b"MANIFEST_BLOB_UNKNOWN" in answer.body) == (400, True)
