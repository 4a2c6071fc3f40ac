"""F11: a large blob whose transfer is cut again and again arrives, and little of it twice."""

from __future__ import annotations

import math
import shutil
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.bench import client
from tests.bench.connection import Connection
from tests.bench.content import Image, image, source
from tests.bench.workloads import MIB
from tests.faults.wan import Distant, distant
from tests.faults.wanlink import WanLink
from tests.sites import Site
from tests.waiting import eventually

REPOSITORY: Final = "cut/app"
TAG: Final = "large"
RESENT_BYTES: Final = 8 * MIB
# For each cut: a lease has to end before another leads, or a peer is asked again after a pause.
GOES_ON_S: Final = 120.0

CI: Final = pytest.mark.slow
LONG: Final = (pytest.mark.torture, pytest.mark.timeout(3600))


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Distant]:
    """Both sites, near to each other; what went wrong with a test shows in their logs."""
    async with distant(tmp_path, delay_s=0, bytes_per_s=math.inf) as both:
        yield both
        both.fra.show_logs()
        both.nyc.show_logs()
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


@pytest.mark.parametrize(
    ("trouble", "mib", "times"),
    [
        pytest.param("cut", 256, 2, marks=CI),
        pytest.param("cut", 1024, 50, marks=LONG),
        pytest.param("kill", 1024, 10, marks=LONG),
    ],
)
async def test_a_cut_costs_few_bytes(sites: Distant, trouble: str, mib: int, times: int) -> None:
    """F11: at most 8 MiB are sent again for each cut, or kill -9, and every byte is right."""
    size, link = mib * MIB, sites.http
    if times > 2:
        link.line.bytes_per_s = 64 * MIB  # else half of it would be here before the last cut
    with source(1 << 10) as config, source(size) as layer:
        new = image(config, layer, 1)
        await to_thread(_push, sites.fra, new)
        for number in range(times):
            await _passes(link, (number + 1) * size // (2 * times))
            assert link.passed_bytes < size, "it was too fast to be interrupted"
            await (_cut(sites) if trouble == "cut" else _kill(sites))
        await eventually(lambda: _is_whole(sites.nyc, new), 2 * GOES_ON_S, "it has arrived")
    resent = (link.passed_bytes - size) / times
    sys.stderr.write(f"{mib} MiB, {trouble} x {times}: {resent / MIB:.2f} MiB resent for each\n")
    assert resent <= RESENT_BYTES


async def _passes(link: WanLink, count: int) -> None:
    await eventually(lambda: link.passed_bytes > count, GOES_ON_S, f"{count} bytes have come")


async def _cut(sites: Distant) -> None:
    await sites.cut()
    await sites.heal()


async def _kill(sites: Distant) -> None:
    sites.nyc.kill("replicator")
    await sites.nyc.start()


def _push(site: Site, new: Image) -> None:
    with Connection(site.port) as connection:
        client.push_image(connection, REPOSITORY, TAG, new)


async def _is_whole(site: Site, new: Image) -> bool:
    return await to_thread(_pulled, site, new)


def _pulled(site: Site, new: Image) -> bool:
    with Connection(site.port) as connection:
        target = f"/v2/{REPOSITORY}/manifests/{TAG}"
        shown = connection.exchange("GET", target, expect=None, headers=client.ACCEPT)
        if shown.status == 200:
            client.verify_image(connection, REPOSITORY, TAG, new)
        return shown.status == 200
