"""The fake is honest: driven by the same calls, it, SQLite and etcd answer the same."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from node.errors import MetadataUnavailable
from node.kv import (
    KV,
    Absent,
    Created,
    Delete,
    DeleteRange,
    Empty,
    Entry,
    Exists,
    Guard,
    Lease,
    Modified,
    Op,
    Put,
    Range,
)
from node.kv_etcd import Access, EtcdKV
from node.kv_sqlite import SqliteKV
from tests.etcd import Etcd, keyspace
from tests.fake_kv import MemoryKV
from tests.kv_calls import following, next_entries
from tests.kv_from_now import FromNow

T = TypeVar("T")

KEYS = st.sampled_from([b"a", b"a\0", b"a\0b", b"ab", b"b", b"b\xff", b"c", b"\xff"])
REVISIONS = st.integers(0, 30)
BOUNDS = st.tuples(KEYS, KEYS)
GUARDS: st.SearchStrategy[Guard] = st.one_of(
    st.builds(Absent, KEYS),
    st.builds(Exists, KEYS),
    st.builds(Created, KEYS, REVISIONS),
    st.builds(Modified, KEYS, REVISIONS),
    st.builds(Empty, KEYS, KEYS),
)
OPS: st.SearchStrategy[Op] = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=4), st.sampled_from([1, 2, 3, 2**70]).map(Lease)),
    st.builds(Put, KEYS, st.binary(max_size=4), st.none()),
    st.builds(Delete, KEYS),
    st.builds(DeleteRange, KEYS, KEYS),
)
LEASES = st.sampled_from([1, 2, 3, 2**70])
RANGES = st.builds(Range, KEYS, KEYS, st.integers(0, 3))


class Lockstep(RuleBasedStateMachine):
    """Every call goes to the fake and to a real store; what they answer or raise must agree."""

    leases_s = (1, 2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.memory = MemoryKV(clock=lambda: self.now)
        self.real: KV = self.run(self.opened())

    async def opened(self) -> KV:
        """The real store, as new."""
        raise NotImplementedError

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        """Await the call."""
        return self.runner.run(call)

    def agree(self, call: Callable[[KV], Awaitable[object]]) -> None:
        """The call ends alike on both."""

        async def end(kv: KV) -> object:
            try:
                return await call(kv)
            except (MetadataUnavailable, ValueError) as error:
                return type(error)

        assert self.run(end(self.real)) == self.run(end(self.memory))

    @initialize()
    def grant(self) -> None:
        """Have three leases of different lengths."""
        for ttl_s in self.leases_s:
            self.agree(partial(_grant, ttl_s=ttl_s))

    @rule(guards=st.lists(GUARDS, max_size=3), ops=st.lists(OPS, max_size=4))
    def txn(self, guards: list[Guard], ops: list[Op]) -> None:
        """Same outcome, same revision, same entries found."""
        self.agree(lambda kv: kv.txn(guards, ops))

    @rule(ops=st.lists(OPS, max_size=4))
    def write(self, ops: list[Op]) -> None:
        """The same without guards, so that something is stored."""
        self.agree(lambda kv: kv.txn([], ops))

    @rule(ranges=st.lists(RANGES, max_size=4))
    def read(self, ranges: list[Range]) -> None:
        """Same entries at the same revision."""
        self.agree(lambda kv: kv.read(ranges))

    @rule(lease=LEASES)
    def keep_alive(self, lease: int) -> None:
        """The lease is there for both or for none."""
        self.agree(lambda kv: kv.keep_alive(Lease(lease)))

    @rule(lease=LEASES)
    def revoke(self, lease: int) -> None:
        """Its keys go."""
        self.agree(lambda kv: kv.revoke(Lease(lease)))

    @rule(bounds=BOUNDS, after=st.integers(0, 10))
    def follow(self, bounds: tuple[bytes, bytes], after: int) -> None:
        """The first batch after a revision is the same, where there is one."""
        snapshot = self.run(self.memory.read([Range(*bounds)]))
        if any(entry.modified > after for entry in snapshot.ranges[0]):
            within = Range(*bounds)
            self.agree(lambda kv: _first(kv, within, after))

    def teardown(self) -> None:
        """Leave nothing behind."""
        self.run(self.real.close())
        self.runner.close()
        shutil.rmtree(self.folder)


async def _grant(kv: KV, ttl_s: float) -> Lease:
    return await kv.grant(ttl_s)


async def _first(kv: KV, within: Range, after: int) -> tuple[Entry, ...]:
    async with following(kv, within, after) as stream:
        return await next_entries(stream)


class SqliteLockstep(Lockstep):
    """The fake and SQLite, which share a clock."""

    async def opened(self) -> KV:
        """A file of its own for each run."""
        return await SqliteKV.open(self.folder / "kv.db", clock=lambda: self.now)

    @rule(seconds=st.floats(0, 1.5))
    def time_passes(self, seconds: float) -> None:
        """Both look at the clock when next they write: SQLite expires nothing while it reads."""
        self.now += seconds
        self.agree(lambda kv: kv.txn([], []))


class EtcdLockstep(Lockstep):
    """The fake and etcd, of which no time passes."""

    leases_s = (600, 700, 800)
    etcd: Etcd

    async def opened(self) -> KV:
        """A prefix of its own for each run."""
        kv = EtcdKV(Access(self.etcd.endpoints), keyspace())
        return FromNow(kv, (await kv.read([])).revision)


_SETTINGS = settings(max_examples=25, stateful_step_count=30, deadline=None)


def test_the_fake_and_sqlite_agree() -> None:
    """Whatever is asked of both, they answer the same."""
    run_state_machine_as_test(SqliteLockstep, settings=_SETTINGS)


@pytest.mark.slow
def test_the_fake_and_etcd_agree(etcd: Etcd) -> None:
    """Whatever is asked of both, they answer the same, but for leases that end by themselves."""
    EtcdLockstep.etcd = etcd
    run_state_machine_as_test(EtcdLockstep, settings=_SETTINGS)
