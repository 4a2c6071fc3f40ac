"""A gateway's memory does not grow with what passes through it."""

from __future__ import annotations

import shutil
from asyncio import to_thread
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from typing import Final, TypeAlias

import pytest

from tests.bench.client import push_blob, push_blob_at_once, verify_blob
from tests.bench.connection import Connection
from tests.bench.content import Blob, source
from tests.bench.servers import peak_bytes
from tests.sites import Site

MIB: Final = 1 << 20
LIMIT_BYTES: Final = 150 * MIB
# What a site keeps free by itself (5 %), and as much again.
_RESERVE: Final = 0.10
_REPOSITORY: Final = "bench/large"

Step: TypeAlias = Callable[[Connection, str, Blob], None]

SMALL: Final = pytest.param(
    4, 256 * MIB, id="four of 256 MiB [U38]", marks=[pytest.mark.slow, pytest.mark.timeout(400)]
)
LARGE: Final = pytest.param(
    8, 1024 * MIB, id="eight of 1 GiB [U38]", marks=[pytest.mark.torture, pytest.mark.timeout(3000)]
)


@pytest.mark.parametrize(("number", "size"), [SMALL, LARGE])
async def test_memory_stays_small_while_large_blobs_come_and_go(
    site: Site, number: int, size: int
) -> None:
    """Large blobs pushed and pulled at once leave the gateway under 150 MiB, every byte right."""
    free, needed = shutil.disk_usage(site.folder), (2 * number + 1) * size
    if free.free < needed + _RESERVE * free.total:
        pytest.skip(f"needs {needed // MIB} MiB beside a tenth of the disk")
    try:
        await to_thread(_push_and_pull, site.port, number, size)
    finally:
        # pytest keeps the folders of its last runs.
        await to_thread(shutil.rmtree, site.blobs / "sha256")
    peak = peak_bytes(site.pid("gateway"))
    assert peak < LIMIT_BYTES, f"{peak // MIB} MiB"


def _push_and_pull(port: int, number: int, size: int) -> None:
    """Push some blobs at once; then pull them while as many others are pushed."""

    def run(step: Step, blob: Blob) -> None:
        with Connection(port) as connection:
            step(connection, _REPOSITORY, blob)

    with source(size) as new, ThreadPoolExecutor(2 * number) as threads:
        first, second = ([new.take() for _ in range(number)] for _ in range(2))
        # By turns as docker and as containerd push.
        pushes = list(islice(cycle([push_blob, push_blob_at_once]), number))
        _ = list(threads.map(run, pushes, first))
        _ = list(threads.map(run, [*pushes, *[verify_blob] * number], [*second, *first]))
