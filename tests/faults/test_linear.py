"""F21, I3: several clients of several gateways, with faults on, see each tag as one register.

ENTREPOT_SEED replays a run's choices: what is asked, of which gateway, and what fails.  Histories
are kept beside the logs, one line of JSON for each operation.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Final, TypeAlias

import pytest

from tests.etcd import Etcd, keyspace
from tests.faults.linear import NotLinear, Outcome, check, write
from tests.faults.lossy import lossy
from tests.faults.registry import Registry
from tests.faults.taggers import Taggers
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

GATEWAYS: Final = 3
CLIENTS: Final = 4
OPERATIONS_PER_FAULT: Final = 50
LOST: Final = 0.1
SETTLED_S: Final = 240.0

# Something that fails from the moment it is entered, and is mended when it is left.
Fault: TypeAlias = Callable[[random.Random], AbstractAsyncContextManager[None]]


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.mark.timeout(600)
async def test_tags_over_an_etcd_are_registers(tmp_path: Path, seed: int, cluster: Etcd) -> None:
    """P2: while gateways and members of the etcd are killed, members hang, replies are lost."""
    await _over_etcd(tmp_path, random.Random(seed), cluster, histories=5, operations=100)


@pytest.mark.torture
async def test_tags_over_an_etcd_are_registers_for_long(
    tmp_path: Path, seed: int, cluster: Etcd
) -> None:
    """P2, twenty times as often, and twice as long each."""
    await _over_etcd(tmp_path, random.Random(seed), cluster, histories=100, operations=200)


@pytest.mark.timeout(600)
async def test_tags_over_a_file_are_registers(tmp_path: Path, seed: int) -> None:
    """P2: the same of gateways that share a file, while they are killed."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",), gateways=GATEWAYS)
    await _run(site, random.Random(seed), [partial(_gateway_killed, site)], histories=1)


async def _over_etcd(
    folder: Path, chance: random.Random, etcd: Etcd, *, histories: int, operations: int
) -> None:
    replies = _Replies(random.Random(chance.random()))
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(lossy(at, replies)) for at in etcd.endpoints]
        found = {"endpoints": [f"http://{at}" for at in proxies], "prefix": keyspace().decode()}
        settings = {"metadata": {"etcd": found}}
        site = Site("fra", folder / "fra", settings, programs=("gateway",), gateways=GATEWAYS)
        faults: list[Fault] = [
            partial(_gateway_killed, site),
            partial(_member_killed, etcd),
            partial(_member_hung, etcd),
            replies.lost,
        ]
        await _run(site, chance, faults, histories=histories, operations=operations)


async def _run(
    site: Site,
    chance: random.Random,
    faults: Sequence[Fault],
    *,
    histories: int,
    operations: int = 100,
) -> None:
    """Make histories one after the other, each of a repository of its own, and check them."""
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(site))
        await site.start()
        gateways = [await stack.enter_async_context(Registry.at(url)) for url in site.urls]
        turns = cycle(chance.sample(faults, len(faults)))
        for number in range(histories):
            taggers = Taggers(gateways, f"team/app{number}", random.Random(chance.random()))
            path = site.folder / f"history-{number}.jsonl"
            try:
                await _go_through(taggers, turns, operations, chance)
                check(taggers.history)
            except NotLinear as err:
                err.add_note(f"its history is {path}")
                raise
            finally:
                write(taggers.history, path)
                site.show_logs()
            known = [one for one in taggers.history if one.outcome is Outcome.OK]
            assert len(known) > operations // 2, "too little was answered to show anything"
        await site.stop_all()


async def _go_through(
    taggers: Taggers, faults: Iterator[Fault], operations: int, chance: random.Random
) -> None:
    """Do so many operations, through one fault after the other; then look at what is left."""
    await taggers.prepare()
    try:
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(taggers.run(f"c{number}")) for number in range(CLIENTS)]
            for _ in range(operations // OPERATIONS_PER_FAULT):
                half = OPERATIONS_PER_FAULT // 2
                taggers.permit(half)
                await _more(taggers, chance.randrange(half))
                async with next(faults)(chance):
                    taggers.permit(half)
                    await _more(taggers, half)
            await eventually(lambda: taggers.idle, SETTLED_S, "all operations have ended")
            for client in clients:
                client.cancel()
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    await taggers.look()


async def _more(taggers: Taggers, count: int) -> None:
    """Wait until so many more operations have ended."""
    goal = taggers.ended + count
    await eventually(lambda: taggers.ended >= goal, SETTLED_S, f"{count} more operations")


# --- what fails


@asynccontextmanager
async def _gateway_killed(site: Site, chance: random.Random) -> AsyncIterator[None]:
    program = chance.choice(site.programs)
    site.kill(program)
    yield
    site.spawn(program)
    await site.ready(program)


@asynccontextmanager
async def _member_killed(etcd: Etcd, chance: random.Random) -> AsyncIterator[None]:
    number = chance.randrange(etcd.size)
    etcd.kill(number)
    try:
        yield
    finally:
        etcd.spawn(number)
        await etcd.healthy()


@asynccontextmanager
async def _member_hung(etcd: Etcd, chance: random.Random) -> AsyncIterator[None]:
    number = chance.randrange(etcd.size)
    etcd.signal(number, signal.SIGSTOP)
    try:
        yield
    finally:
        etcd.signal(number, signal.SIGCONT)
        await etcd.healthy()


@dataclass(slots=True)
class _Replies:
    """Loses replies of the etcd, of any kind, while it is told to."""

    dice: random.Random
    rate: float = 0.0

    def __call__(self, _method: str) -> bool:
        """Whether to lose the next one."""
        return self.dice.random() < self.rate

    @asynccontextmanager
    async def lost(self, _: random.Random) -> AsyncIterator[None]:
        """Lose some."""
        self.rate = LOST
        yield
        self.rate = 0.0
