"""Duties: each is done by one worker, and by another when that one is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from node.election import Elections, Leadership
from node.errors import MetadataUnavailable
from node.telemetry import Metrics
from replicator import duties as duties_module
from replicator.duties import Duties, Duty
from tests.fake_kv import MemoryKV
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second after each failure is too long for tests."""
    monkeypatch.setattr(duties_module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(duties_module, "_LONGEST_PAUSE_S", 0.02)


@dataclass
class _Work:
    """What is being done, and what goes wrong with it."""

    doing: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    begun: int = 0

    def duty(self, name: str) -> Duty:
        """A duty that lasts until it is cancelled."""

        async def work(leadership: Leadership) -> None:
            assert leadership.duty == name
            assert name not in self.doing, "two at once"
            self.begun += 1
            self.doing.append(name)
            try:
                if self.errors:
                    raise self.errors.pop(0)
                await asyncio.Event().wait()
            finally:
                self.doing.remove(name)

        return Duty(name, work)


async def _instantly(_: float) -> None:
    await asyncio.sleep(0)


@asynccontextmanager
async def _worker(kv: MemoryKV, name: str, *duties: Duty) -> AsyncIterator[Duties]:
    # Sleeps of elections are no time at all: a lease in memory lasts until it is revoked.
    elections = Elections(kv, name, sleep=_instantly)
    worker = Duties(elections, duties, Metrics("replicator"))
    async with asyncio.TaskGroup() as group:
        running = group.create_task(worker.run())
        yield worker
        running.cancel()


async def test_every_duty_is_done_once() -> None:
    """Two workers, and no duty is in two hands; when one goes the other has all."""
    kv, work = MemoryKV(), _Work()
    duties = [work.duty(f"follow/{n}") for n in range(3)]
    async with _worker(kv, "a", *duties) as first:
        async with _worker(kv, "b", *duties) as second:
            await eventually(lambda: len(work.doing) == 3, 60, "all are done")
            assert sorted(first.held + second.held) == sorted(work.doing)
        await eventually(lambda: len(first.held) == 3, 60, "the first has all")
        assert second.held == ()
    assert work.doing == []
    assert kv.entries() == {}, "all are resigned"


@pytest.mark.parametrize(
    "error", [MetadataUnavailable("away"), ZeroDivisionError("a bug")], ids=["weather", "a bug"]
)
async def test_a_duty_that_fails_is_begun_again(error: Exception) -> None:
    """And touches no other."""
    kv, work, other = MemoryKV(), _Work(errors=[error, error]), _Work()
    async with _worker(kv, "a", work.duty("fails"), other.duty("works")):
        await eventually(lambda: work.begun == 3 and work.doing, 60, "it is done at last")
        await eventually(lambda: other.doing, 60, "so is the other")
        assert other.begun == 1


async def test_a_worker_without_duties_runs_on() -> None:
    """A site without peers has a replicator all the same."""
    async with asyncio.TaskGroup() as group:
        running = group.create_task(
            Duties(Elections(MemoryKV(), "a"), [], Metrics("replicator")).run()
        )
        await running
