"""What the SQLite KV promises to processes that share the file, and to those that are killed."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from node.kv import Ok, Put, only
from node.kv_sqlite import SqliteKV
from node.kv_sqlite_file import LOCK_S
from tests.kv_calls import must_get

ROOT = Path(__file__).parents[2]


async def _start(what: str, path: Path, key: str) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kv_child", what, str(path), key,
        stdin=PIPE, stdout=PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def _line(child: Process) -> str:
    assert child.stdout is not None
    async with asyncio.timeout(120):
        return (await child.stdout.readline()).decode().strip()


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: how long a writer waits is not the disk's say."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else tmp_path) as folder:
        yield Path(folder)


async def test_two_processes_count_and_lose_nothing(quick: Path) -> None:
    """1,000 compare-and-swap increments from two processes add up; no call waits for long."""
    path = quick / "kv.db"
    kv = await SqliteKV.open(path)
    children = [await _start("count", path, "counter") for _ in range(2)]
    waits = [float(await _line(child)) for child in children]
    assert [await child.wait() for child in children] == [0, 0]
    assert (await must_get(kv, b"counter")).value == b"1000"
    assert max(waits) < LOCK_S  # most wait for some milliseconds
    await kv.close()


@pytest.mark.parametrize("lines", [1, 40, 150])
async def test_what_a_killed_process_acknowledged_is_there(tmp_path: Path, lines: int) -> None:
    """kill -9 in the middle of commits: all that was `Ok` is found, each transaction whole."""
    path = tmp_path / "kv.db"
    child = await _start("fill", path, "n/")
    said = [await _line(child) for _ in range(lines)]
    child.kill()
    assert child.stdout is not None
    # The last line may be cut; a whole one was an acknowledgement.
    *rest, _ = (await child.stdout.read()).decode().split("\n")
    await child.wait()
    kv = await SqliteKV.open(path)
    for number in [*said, *rest]:
        entry = await must_get(kv, f"n/{number}".encode())
        assert entry.value == b"v" * 500
    same = await must_get(kv, b"same")
    assert (await must_get(kv, same.value)).modified == same.modified
    await kv.close()


async def test_another_process_reads_a_write_at_once(tmp_path: Path) -> None:
    """A read that begins after `Ok` sees the write, from another process too."""
    path = tmp_path / "kv.db"
    kv = await SqliteKV.open(path)
    child = await _start("tell", path, "a")
    assert child.stdin is not None
    assert await _line(child) == "ready"
    for number in range(50):
        assert isinstance(await kv.txn([], [Put(b"a", b"%d" % number)]), Ok)
        child.stdin.write(b"?\n")
        assert await _line(child) == str(number)
    child.stdin.close()
    assert await child.wait() == 0
    assert (await kv.read([only(b"a")])).ranges[0][0].value == b"49"
    await kv.close()
