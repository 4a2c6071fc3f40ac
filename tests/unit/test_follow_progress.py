"""What is said of a peer while much is fetched from it."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from node import keys
from node.acked import applied
from node.change import Change
from node.manifest import Manifest
from node.wire import codec
from replicator import follow as follow_module
from replicator import lanes as lanes_module
from replicator import waiting as waiting_module
from replicator.apply import Result
from tests.following import Here, There
from tests.model import OTHER, REPOSITORY
from tests.waiting import eventually

DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def _saves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between saves is too long for tests."""
    monkeypatch.setattr(follow_module, "_SAVE_S", 0.01)


async def test_bytes_are_said_as_they_come() -> None:
    """Within a blob, though nothing is applied meanwhile."""
    here, there = Here(), There()
    async with there.up(), here.following(there.peer) as follow:

        async def to_go(expected: int) -> bool:
            return (await here.status(there.peer)).bytes_to_go == expected

        with follow._progress.fetching(5_000) as blob:
            await there.model.image("v1")
            await eventually(partial(to_go, 5_000), DEADLINE_S, "all of it is to go")
            blob.got(2_000)
            await eventually(partial(to_go, 3_000), DEADLINE_S, "less is")


async def test_waiting_for_bytes_keeps_nobody_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing comes nothing is looked at, but for once in a while."""
    here, there, looks = Here(), There(), 0
    async with there.up(), here.following(there.peer) as follow:
        await eventually(here.passed, DEADLINE_S, "the empty state is taken")
        show = follow._measures.show

        def looked(*told: object) -> None:
            nonlocal looks
            looks += 1
            show(*told)  # type: ignore[arg-type]  # it only passes on what it is given

        with follow._progress.fetching(5_000):
            monkeypatch.setattr(follow._measures, "show", looked)
            await there.model.image("v1")
            await eventually(lambda: looks > 1, DEADLINE_S, "it is looked at")
            monkeypatch.setattr(follow_module, "_SAVE_S", 2 * DEADLINE_S)
            await eventually(lambda: not follow._news.is_set(), DEADLINE_S, "all is said")
            looks = 0
            for _ in range(200):
                await asyncio.sleep(0)
    assert looks < 5


async def test_a_scan_is_not_over_while_large_images_are_at_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They hold back no cursor, and their progress is told, over a restart too."""
    monkeypatch.setattr(lanes_module, "OVERDUE_S", 0.01)
    here, there = Here(most=4), There()
    await there.model.image(*(f"v{n}" for n in range(9)))

    async def scanning(done: int, items: int) -> bool:
        status = await here.status(there.peer)
        assert status.progress is not None, status
        assert (status.state, status.parked, status.last_error) == ("scanning", 1, None), status
        assert (status.progress.items_done, status.progress.items) == (done, items), status
        return True

    async def over() -> bool:
        status = await here.status(there.peer)
        return (status.state, status.parked, status.progress) == ("following", 0, None)

    async with there.up():
        async with here.following(there.peer):
            await eventually(partial(scanning, 4, 10), DEADLINE_S, "some of it is at work")
            assert here.passed()
        async with here.following(there.peer):
            await eventually(partial(scanning, 0, 6), DEADLINE_S, "it still is")
            here.go_on.set()
            await eventually(over, DEADLINE_S, "the scan is over")
    assert set(here.tags) == {f"v{n}" for n in range(9)}


async def test_a_scan_is_over_where_the_rest_has_failed() -> None:
    """That is another state, with its reason."""
    here, there = Here(failing="no blob"), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):

        async def parked() -> bool:
            status = await here.status(there.peer)
            assert (status.state, status.last_error) == ("parked", "no blob"), status
            return status.progress is None

        await eventually(parked, DEADLINE_S, "it is parked")


class _Slow(Here):
    """A site at which one repository is at work for long."""

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """See Applying."""
        if change.name.repository == OTHER:
            await self.go_on.wait()
        return await super().apply(change, body)


async def test_what_is_behind_a_large_image_is_told_long_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody waits for it at the source; of the large one it is told that it is not there."""
    monkeypatch.setattr(waiting_module, "PATIENCE_S", 0.01)
    monkeypatch.setattr(lanes_module, "OVERDUE_S", 10 * DEADLINE_S)
    here, there = _Slow(), There()

    def said(large: int, small: int) -> bool:
        ack = codec.decode_ack(there.model.kv.entries()[keys.ack("nyc")])
        assert applied(ack.report, OTHER) < large, ack
        return applied(ack.report, REPOSITORY) >= small

    async with there.up(), here.following(there.peer):
        await eventually(here.passed, DEADLINE_S, "the empty state is taken")
        await there.model.image("large", repository=OTHER)
        large = await there.revision()
        await there.model.image("small")
        small = await there.revision()
        await eventually(partial(said, large, small), DEADLINE_S, "the small one is told")
        assert here.reached < large
        here.go_on.set()
        await eventually(lambda: there.acked() >= small, DEADLINE_S, "both are")
