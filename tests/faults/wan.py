"""Two sites far from each other: real processes, and between them long lines of 100 Mbit/s."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.faults.line import Line
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port
from tests.sites import Site, ended

DELAY_S: Final = 0.025
BYTES_PER_S: Final = 100e6 / 8


@dataclass(frozen=True, slots=True)
class Distant:
    """Two sites that follow each other, each over a line of its own for HTTP and gRPC together.

    `http` and `grpc` are the links over which nyc reaches fra; `links` are those of both.
    """

    fra: Site
    nyc: Site
    http: WanLink
    grpc: WanLink
    links: tuple[WanLink, ...]

    async def cut(self) -> None:
        """Let nothing through in either direction; what was under way is lost."""
        for link in self.links:
            await link.cut()

    async def heal(self) -> None:
        """Let everything through again."""
        for link in self.links:
            await link.heal()


@asynccontextmanager
async def distant(
    folder: Path, *, delay_s: float = DELAY_S, bytes_per_s: float = BYTES_PER_S
) -> AsyncIterator[Distant]:
    """Both sites, ready and following each other; they are ended with the block."""
    fra, nyc = Site("fra", folder / "fra"), Site("nyc", folder / "nyc")
    async with AsyncExitStack() as stack:
        stack.enter_context(ended(fra, nyc))
        links: list[WanLink] = []
        for here, there in ((nyc, fra), (fra, nyc)):
            line = Line(delay_s=delay_s, bytes_per_s=bytes_per_s)
            http, grpc = [
                await stack.enter_async_context(linked(address, free_port(), line))
                for address in (there.http, there.grpc)
            ]
            here.follow(there, http=http.address, grpc=grpc.address)
            links += [http, grpc]
        # All at once: a site is ready whether its peers are there or not.
        await asyncio.gather(fra.start(), nyc.start())
        yield Distant(fra, nyc, links[0], links[1], tuple(links))
