"""Every KV adapter in turn, each with a second way in and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from node import kv_sqlite_threads
from node.kv import KV
from node.kv_sqlite import SqliteKV
from tests.etcd import Etcd, end_leases, keyspace, opened
from tests.fake_kv import MemoryKV


class Stand(NamedTuple):
    """An empty store: as one process holds it, as another does, and how time passes in it."""

    kv: KV
    another: KV
    pass_time: Callable[[float], Awaitable[None]]


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    async def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(params=["memory", "sqlite", pytest.param("etcd", marks=pytest.mark.slow)])
async def stand(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stand]:
    """Every adapter in turn, empty."""
    if request.param == "etcd":
        async with _etcd_stand(request.getfixturevalue("etcd")) as stand:
            yield stand
        return
    clock = _Clock()
    if request.param == "memory":
        memory = MemoryKV(clock=clock)
        yield Stand(memory, memory, clock.advance)
        return
    # The disk of a test machine may stall for seconds, which is no matter of the contract.
    monkeypatch.setattr(kv_sqlite_threads, "LOCK_S", 60.0)
    path = tmp_path / "metadata.db"
    kv = await SqliteKV.open(path, clock=clock)
    another = await SqliteKV.open(path, clock=clock)
    yield Stand(kv, another, clock.advance)
    await asyncio.gather(kv.close(), another.close())


@asynccontextmanager
async def _etcd_stand(etcd: Etcd) -> AsyncIterator[Stand]:
    at = keyspace()
    async with opened(*etcd.endpoints, at=at) as kv, opened(*etcd.endpoints, at=at) as another:
        # The time of its leases is etcd's own.
        yield Stand(kv, another, asyncio.sleep)
    # Else they would end, and make revisions, while the next test looks.
    async with opened(*etcd.endpoints) as cleaner:
        await end_leases(cleaner)


@pytest.fixture
def kv(stand: Stand) -> KV:
    """The store as one process holds it."""
    return stand.kv


@pytest.fixture
def another(stand: Stand) -> KV:
    """The same store as another process holds it."""
    return stand.another
