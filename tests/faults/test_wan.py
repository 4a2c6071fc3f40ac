"""F20: how soon a push can be pulled from a site 50 ms away, over 100 Mbit/s."""

from __future__ import annotations

import shutil
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.bench import replication
from tests.bench.content import image, source
from tests.bench.replication import Pair
from tests.bench.servers import peak_bytes
from tests.bench.workloads import MIB, sources
from tests.faults.wan import BYTES_PER_S, Distant, distant
from tests.sites import PROGRAMS

# F20's targets.  Sizes of `make test` are not held to them: others use the machine then.
MOSTLY_S: Final = 1.0
NEARLY_ALWAYS_S: Final = 3.0
SHARE: Final = 0.85

ARRIVES_S: Final = 120.0
LIMIT_BYTES: Final = 150 * MIB

CI: Final = pytest.mark.slow
LONG: Final = (pytest.mark.torture, pytest.mark.timeout(7200))


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Distant]:
    """Both sites; what went wrong with a test shows in their logs."""
    async with distant(tmp_path) as both:
        yield both
        both.fra.show_logs()
        both.nyc.show_logs()
    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


@pytest.fixture
def is_long(request: pytest.FixtureRequest) -> bool:
    """Whether the test is of a size that is held to the targets."""
    return request.node.get_closest_marker("torture") is not None


@pytest.mark.parametrize(
    "images", [pytest.param(30, marks=CI), pytest.param(5000, marks=LONG)], ids=str
)
async def test_an_image_of_1_mib_is_soon_there(sites: Distant, images: int, is_long: bool) -> None:
    """F20: every image is pulled whole the moment its tag is there, and that is within seconds."""
    with sources() as contents:
        delays = await to_thread(
            replication.measure,
            Pair(sites.fra.port, sites.nyc.port),
            contents.image_of_one,
            clients=1,
            images=images,
            advance=lambda: None,
            arrival_s=ARRIVES_S,
        )
    p50_s, p99_s = delays.percentile(50), delays.percentile(99)
    sys.stderr.write(
        f"{images} images of 1 MiB: p50 {p50_s:.2f} s (target: {MOSTLY_S:.0f} s), "
        f"p99 {p99_s:.2f} s (target: {NEARLY_ALWAYS_S:.0f} s)\n"
    )
    assert len(delays.seconds) == images
    if is_long:
        assert p50_s <= MOSTLY_S
        assert p99_s <= NEARLY_ALWAYS_S


@pytest.mark.parametrize(
    ("layers", "mib"),
    [
        pytest.param(1, 24, marks=CI),
        pytest.param(1, 1024, marks=LONG),
        pytest.param(4, 256, marks=LONG),
    ],
)
async def test_a_large_image_takes_the_line_for_itself(
    sites: Distant, layers: int, mib: int, is_long: bool
) -> None:
    """F20: it arrives as fast as the line is, and no process holds it in memory."""
    with source(1 << 10) as config, source(mib * MIB) as layer:
        delays = await to_thread(
            replication.measure,
            Pair(sites.fra.port, sites.nyc.port),
            partial(image, config, layer, layers),
            clients=1,
            images=1,
            advance=lambda: None,
            arrival_s=20 * ARRIVES_S,
        )
    share = layers * mib * MIB / BYTES_PER_S / delays.seconds[0]
    sys.stderr.write(
        f"{layers} x {mib} MiB: {delays.seconds[0]:.1f} s, {share:.0%} of the line "
        f"(target: {SHARE:.0%} for 1 GiB)\n"
    )
    assert share < 1.05, "the line was not what it should be"
    if is_long:
        assert share >= SHARE
    for site in (sites.fra, sites.nyc):
        for program in PROGRAMS:
            peak = peak_bytes(site.pid(program))
            assert peak < LIMIT_BYTES, f"{program} of {site.name}: {peak // MIB} MiB"
