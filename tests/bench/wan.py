"""What a distance costs: between two sites 50 ms and 100 Mbit/s from each other."""

from __future__ import annotations

import asyncio
import time
from asyncio import to_thread
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench import client, replication
from tests.bench.connection import Connection
from tests.bench.content import Image, image, source
from tests.bench.replication import Delays, Pair
from tests.bench.servers import peak_bytes
from tests.bench.workloads import MIB, Sources
from tests.faults.wan import BYTES_PER_S, Distant, distant
from tests.sites import PROGRAMS

IMAGES: Final = 200
AT_A_TIME: Final = (1, 8)
SMALL: Final = 10
LARGE: Final = ((1, 1024), (4, 256))
CUTS: Final = 5

_AWAY_S: Final = 10.0
_ARRIVAL_S: Final = 600.0
_REPOSITORY: Final = "bench/cut"


@dataclass(frozen=True, slots=True)
class Large:
    """An image of some layers of so many MiB each."""

    layers: int
    mib: int
    seconds: float

    @property
    def share(self) -> float:
        """Of what the line could bring in that time, what was this image's."""
        return self.layers * self.mib * MIB / BYTES_PER_S / self.seconds


@dataclass(frozen=True, slots=True)
class Distance:
    """All that was measured; `small` are images of two blobs of 1 KiB, all pushed at once.

    `returns_s` are the seconds from the end of a cut to a pull of what was pushed during it.
    """

    delays: tuple[Delays, ...]
    small: Delays
    large: tuple[Large, ...]
    returns_s: tuple[float, ...]
    peaks: dict[str, int]


def measure(
    folder: Path, contents: Sources, *, quick: bool, advance: Callable[[str], None]
) -> Distance:
    """Measure everything, or a tenth of it; what comes next is said to `advance`.

    Raises:
        UnexpectedAnswerError: Something did not come in time, or a tag came before what it needs.
    """
    return asyncio.run(_measure(folder, contents, 10 if quick else 1, advance))


async def _measure(
    folder: Path, contents: Sources, part: int, advance: Callable[[str], None]
) -> Distance:
    async with distant(folder / "wan") as sites:
        delays = []
        for clients in AT_A_TIME:
            advance(f"1 MiB, {clients} at a time")
            new = contents.image_of_one
            delays.append(await _delays(sites, new, clients=clients, images=IMAGES // part))
        advance("small images at once")
        tiny = partial(image, contents.small, contents.small, 1)
        small = await _delays(sites, tiny, clients=SMALL, images=SMALL)
        large = []
        for layers, mib in LARGE:
            advance(f"{layers} x {mib // part} MiB")
            with source(mib // part * MIB) as layer:
                new = partial(image, contents.small, layer, layers)
                took = await _delays(sites, new, clients=1, images=1)
            large.append(Large(layers, mib // part, took.seconds[0]))
        advance("cuts")
        returns = [
            await _returns(sites, contents.image_of_one()) for _ in range(max(1, CUTS // part))
        ]
        peaks = {
            f"{program} of {site.name}": peak_bytes(site.pid(program))
            for site in (sites.fra, sites.nyc)
            for program in PROGRAMS
        }
    return Distance(tuple(delays), small, tuple(large), tuple(returns), peaks)


async def _delays(sites: Distant, new: Callable[[], Image], *, clients: int, images: int) -> Delays:
    return await to_thread(
        replication.measure,
        Pair(sites.fra.port, sites.nyc.port),
        new,
        clients=clients,
        images=images,
        advance=lambda: None,
        arrival_s=_ARRIVAL_S,
    )


async def _returns(sites: Distant, new: Image) -> float:
    """Cut the line for a while, push meanwhile, and see how soon it has arrived afterwards."""
    tag = f"t{new.digest[-12:]}"
    await sites.cut()
    await asyncio.gather(asyncio.sleep(_AWAY_S), to_thread(_push, sites.fra.port, tag, new))
    began = time.monotonic()
    await sites.heal()
    await to_thread(_pull, sites.nyc.port, tag, new)
    return time.monotonic() - began


def _push(port: int, tag: str, new: Image) -> None:
    with Connection(port) as connection:
        client.push_image(connection, _REPOSITORY, tag, new)


def _pull(port: int, tag: str, new: Image) -> None:
    with Connection(port) as connection:
        replication.wait_for(connection, _REPOSITORY, tag, new, _ARRIVAL_S)
