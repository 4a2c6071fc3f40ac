"""F8 over an etcd: a backlog whose revisions the etcd has forgotten when its peer is back."""

from __future__ import annotations

import random
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.etcd import Etcd, running
from tests.faults.lab import Lab, lab
from tests.faults.netns import Namespace, require
from tests.faults.pusher import Load
from tests.faults.stopped import check
from tests.faults.story import Story

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PUSHES = 100


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


async def test_a_compacted_backlog_comes_all_the_same(tmp_path: Path, seed: int) -> None:
    """F8, I12: what its etcd tells nobody any more, a site tells its peer."""
    require("etcdctl")
    async with lab(tmp_path, ("fra", "nyc")) as two:
        fra, nyc = two.sites.values()
        with running(place=fra.place) as etcd:
            fra.settings = {
                "metadata": {"etcd": {"endpoints": [f"http://{etcd.endpoints[0]}"]}},
                "blobs": {"files": {"root": str(fra.blobs)}},
            }
            two.join([("fra", "nyc")])
            await two.start()
            story = Story(two, "compacted", random.Random(seed), Load(shared=0))
            try:
                await _pushed_and_compacted(story, etcd)
            finally:
                story.write(tmp_path)
                two.show_logs()
            await two.stop()
            check(nyc)


async def _pushed_and_compacted(story: Story, etcd: Etcd) -> None:
    two: Lab = story.lab
    place = two.sites["fra"].place
    assert isinstance(place, Namespace)
    async with story.watched():
        await story.push(1)
        await story.converged()
        # A stream that stands would need no revision that is gone.
        await two.sites["nyc"].stop("replicator")
        await story.push_small("fra", PUSHES)
        revision = (await two.revisions())["fra"]
        ask = ("etcdctl", f"--endpoints={etcd.endpoints[0]}", "compact", "--physical")
        await to_thread(place.run, *ask, str(revision))
        await two.sites["nyc"].start()
        took_s = await story.converged()
        agreed_s = await story.agreed()
    await story.check()
    story.tell(
        f"{PUSHES} pushes, compacted: the same {took_s:.1f} s after the peer is back, "
        f"both say so {agreed_s:.1f} s later"
    )
