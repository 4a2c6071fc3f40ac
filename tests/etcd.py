"""A real etcd: one member or several, as processes of their own on free ports, without a disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
import uuid
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Final

import pytest
from aetcd.rpc import rpc_pb2 as rpc

from node.kv import Lease
from node.kv_etcd import Access, EtcdKV
from node.kv_etcd_members import Members
from tests.ports import free_ports
from tests.sites import Place
from tests.waiting import eventually, eventually_sync

START_S: Final = 120.0
STOP_S: Final = 60.0

_HOST: Final = "127.0.0.1"
_BOUND: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_TAIL: Final = 4000
_LONG_S: Final = 60.0
# What etcd syncs is kept in memory: a test machine's disk may stall for seconds.
_MEMORY: Final = Path("/dev/shm")


def _require() -> None:
    for program in ("etcd", "setpriv"):
        if shutil.which(program) is None:
            reason = f"no program {program}"
            if os.environ.get("CI") == "true":
                pytest.fail(reason)
            pytest.skip(reason)


@dataclass(slots=True)
class Etcd:
    """The members of an etcd, in one place; `options` are etcd's own, for all of them."""

    folder: Path
    size: int = 1
    options: Sequence[str] = ()
    scheme: str = "http"
    place: Place = field(default_factory=Place)
    _port: int = 0
    _running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._port = free_ports(tuple(range(3 * self.size)))

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Where the members answer clients."""
        return tuple(f"{_HOST}:{self._port + 3 * number}" for number in range(self.size))

    def pid(self, number: int) -> int:
        """The process that runs as this member."""
        return self._running[number].pid

    @property
    def up(self) -> frozenset[int]:
        """The members that were started and not ended."""
        return frozenset(self._running)

    def spawn(self, *numbers: int) -> None:
        """Start these members (all, if none is named), and don't wait."""
        for number in numbers or range(self.size):
            with self._log(number).open("ab") as log:
                self._running[number] = subprocess.Popen(
                    (*self.place.prefix, *_BOUND, *self._command(number)),
                    env={"PATH": os.environ["PATH"]},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )

    async def healthy(self) -> None:
        """Wait until every member that was started has a leader."""
        for number in self._running:
            await eventually(partial(self._answers, number), START_S, f"etcd {number} is healthy")

    def kill(self, number: int) -> None:
        """End a member by SIGKILL; on return it has gone."""
        process = self._running.pop(number)
        process.kill()
        process.wait(STOP_S)

    def stop(self, number: int) -> None:
        """Ask a member to end; on return it has gone, and has left its leadership to another."""
        process = self._running.pop(number)
        process.terminate()
        process.wait(STOP_S)

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a member a signal."""
        self._running[number].send_signal(what)

    def end(self) -> None:
        """End every member at once."""
        for number in tuple(self._running):
            self.kill(number)

    def identity(self, number: int) -> tuple[str, ...]:
        """The options that say which member this is, of etcd and of `etcdctl snapshot restore`."""
        cluster = ",".join(f"m{n}={self._peer(n)}" for n in range(self.size))
        return (
            *(f"--name=m{number}", f"--data-dir={self.folder / f'm{number}'}"),
            f"--initial-advertise-peer-urls={self._peer(number)}",
            f"--initial-cluster={cluster}",
        )

    def _command(self, number: int) -> tuple[str, ...]:
        client = f"{self.scheme}://{self.endpoints[number]}"
        return (
            *("etcd", *self.identity(number)),
            *(f"--listen-client-urls={client}", f"--advertise-client-urls={client}"),
            f"--listen-peer-urls={self._peer(number)}",
            f"--listen-metrics-urls={self._metrics(number)}",
            *("--logger=zap", "--log-level=warn", *self.options),
        )

    def _peer(self, number: int) -> str:
        return f"http://{_HOST}:{self._port + 3 * number + 1}"

    def _metrics(self, number: int) -> str:
        return f"http://{_HOST}:{self._port + 3 * number + 2}"

    async def _answers(self, number: int) -> bool:
        ended = self._running[number].poll()
        if ended is not None:
            tail = (await to_thread(self._log(number).read_text, errors="replace"))[-_TAIL:]
            raise ChildProcessError(f"etcd ended with {ended}\n{tail}")
        return await self.place.call(_is_healthy, f"{self._metrics(number)}/health")

    def _log(self, number: int) -> Path:
        return self.folder / f"m{number}.log"


@contextmanager
def running(
    size: int = 1, *options: str, scheme: str = "http", place: Place | None = None
) -> Iterator[Etcd]:
    """An etcd that is healthy, and gone at the end with all that it stored."""
    _require()
    parent = _MEMORY if _MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="etcd-", dir=parent) as folder:
        etcd = Etcd(Path(folder), size, options, scheme, place or Place())
        try:
            etcd.spawn()
            eventually_sync(partial(_once, etcd), START_S, "etcd is healthy")
            yield etcd
        finally:
            etcd.end()


async def _once(etcd: Etcd) -> bool:
    await etcd.healthy()
    return True


def _is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as err:
        with err:
            raise AssertionError(err.read().decode(errors="replace")) from err
    except OSError as err:
        raise AssertionError(str(err)) from err


def keyspace() -> bytes:
    """A prefix that nobody else uses."""
    return f"/{uuid.uuid4()}/".encode()


def in_etcd(etcd: Etcd) -> dict[str, object]:
    """The settings of a site that keeps its metadata there, in a keyspace of its own."""
    urls = [f"http://{one}" for one in etcd.endpoints]
    found = {"endpoints": urls, "prefix": keyspace().decode()}
    return {"metadata": {"etcd": found}}


@asynccontextmanager
async def opened(
    *endpoints: str, at: bytes = b"", silence_s: float = 60.0
) -> AsyncIterator[EtcdKV]:
    """A client of some members, in a keyspace of its own if none is given."""
    kv = EtcdKV(Access(endpoints), at or keyspace(), silence_s=silence_s)
    try:
        yield kv
    finally:
        await kv.close()


# --- what an operator would do with etcdctl


async def compact(kv: EtcdKV) -> int:
    """Forget all revisions before the one that is, and say which that is."""
    revision = (await kv.read([])).revision
    request = rpc.CompactionRequest(revision=revision, physical=True)
    await _members(kv).ask(attrgetter("kv.Compact"), request, within_s=_LONG_S)
    return revision


async def defragment(kv: EtcdKV) -> None:
    """Give back what is free of the file of the first member."""
    method = attrgetter("maintenance.Defragment")
    await _members(kv).ask(method, rpc.DefragmentRequest(), within_s=_LONG_S)


async def end_leases(kv: EtcdKV) -> None:
    """End all leases that there are, whoever asked for them."""
    found = await _members(kv).ask(attrgetter("lease.LeaseLeases"), rpc.LeaseLeasesRequest())
    for one in found.leases:
        await kv.revoke(Lease(one.ID))


def _members(kv: EtcdKV) -> Members:
    return kv._members
