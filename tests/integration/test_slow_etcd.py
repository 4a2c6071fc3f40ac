"""A site of two gateways over an etcd that has its leader, and takes its time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.etcd import Etcd
from tests.faults.lossy import lossy
from tests.faults.registry import Image, Registry, new_image
from tests.nodes import health, nodes
from tests.sites import ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

REPOSITORY: Final = "team/app"
WITHIN_S: Final = 120.0
SLOW_S: Final = 0.7
# More than a read may take.
TOO_SLOW_S: Final = 3.0
TOO_SLOW: Final = '299 - "metadata may be stale: the site\'s store did not answer in time"'


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


async def _said(at: Registry, image: Image) -> set[str | None]:
    """What is said of the staleness of a tag that shows an image, and of what is beside it."""
    said = set()
    for path in ("manifests/v1", "tags/list", f"blobs/{image.blobs[0].digest}"):
        answer = await at.call("GET", f"/v2/{REPOSITORY}/{path}")
        assert answer.status == 200, answer
        if path == "manifests/v1":
            assert answer.headers["Docker-Content-Digest"] == image.digest
        said.add(answer.headers.get("Warning"))
    return said


async def test_a_slow_etcd_is_waited_for(tmp_path: Path, cluster: Etcd) -> None:
    """While its answers take 0.7 s all goes on and nothing is stale; beyond 2 s it is said why."""
    late_s = [0.0, 0.0]
    chance = random.Random(7)
    first, second = (new_image(chance, (1 << 12,)) for _ in range(2))
    async with AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(
                lossy(one, lambda _: False, lambda led: late_s[1] if led else late_s[0])
            )
            for one in cluster.endpoints
        ]
        two = nodes("fra", tmp_path, cluster, programs=("gateway",), endpoints=tuple(slow))
        stack.enter_context(ended(*two))
        for node in two:
            await node.start()
            stack.callback(node.show_logs)
        here, there = [await stack.enter_async_context(Registry.at(node.url)) for node in two]
        await here.push(REPOSITORY, second)
        late_s = [SLOW_S, SLOW_S]
        await here.push(REPOSITORY, first, "v1")
        assert await there.pull(REPOSITORY, "v1") == first.digest
        await here.put_manifest(REPOSITORY, second.manifest, "v1")
        assert await _said(there, second) == {None}

        async def is_told() -> bool:
            troubles = (await health(two[1]))["status"]["store"]
            return [trouble.partition(":")[0] for trouble in troubles] == ["slow"]

        await eventually(is_told, WITHIN_S, "the site says that its store is slow")
        # Its members answer for themselves at once, and together they do not in time.
        late_s = [0.0, TOO_SLOW_S]
        assert await _said(there, second) == {TOO_SLOW}
        assert (await health(two[1]))["ready"]
        late_s = [0.0, 0.0]
        assert await _said(there, second) == {None}
        for node in two:
            await node.stop_all()
