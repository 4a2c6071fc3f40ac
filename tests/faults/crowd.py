"""Clients of a site of several gateways: they go from one to the next, and wait for no single one.

What a client retries is retried: a connection that is refused or breaks, and 503.  How long a
pusher did not get through is measured; any other answer than the right one is `Broken`, and so is
none within a minute.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain, pairwise
from typing import Final, TypeVar

import aiohttp

from tests.faults.registry import Broken, Image, Refused, Registry, new_image
from tests.waiting import POLL_S

T = TypeVar("T")

REPOSITORY: Final = "team/app"
# Between two pushes of one client: who is started anew needs some of the two cores.
_PAUSE_S: Final = 0.1


class Crowd:
    """Pushes and pulls at gateways of one site, for as long as `running`.

    `pushed` are the images that were acknowledged, by tag; `acknowledged_at` when, by pusher and
    the monotonic clock.  `refused_pushes` and `refused_pulls` are the answers 503; `unreachable`
    counts connections that were not made, `broken` those that broke; `pulls` what was answered.
    """

    def __init__(self, gateways: Sequence[Registry], chance: random.Random) -> None:
        self.pushed: dict[str, Image] = {}
        self.acknowledged_at: defaultdict[str, list[float]] = defaultdict(list)
        self.refused_pushes: list[str] = []
        self.refused_pulls: list[str] = []
        self.unreachable = self.broken = self.pulls = 0
        self._gateways = gateways
        self._chance = chance

    @asynccontextmanager
    async def running(self, pushers: int = 2, pullers: int = 1) -> AsyncIterator[None]:
        """Load the gateways; at the end every push that began has ended."""
        going = asyncio.Event()
        going.set()
        async with asyncio.TaskGroup() as group:
            for number in range(pushers):
                group.create_task(self._push_on(f"p{number}", going))
            for _ in range(pullers):
                group.create_task(self._pull_on(going))
            try:
                yield
            finally:
                going.clear()

    async def _push_on(self, name: str, going: asyncio.Event) -> None:
        number = 0
        while going.is_set():
            number += 1
            await self._push(f"{name}-{number}", new_image(self._chance))
            self.acknowledged_at[name].append(time.monotonic())
            await asyncio.sleep(_PAUSE_S)

    async def _push(self, tag: str, image: Image) -> None:
        for blob in image.blobs:
            await self._push_blob(blob.content)
        await self._through(lambda at: at.put_manifest(REPOSITORY, image.manifest, tag))
        self.pushed[tag] = image

    async def _push_blob(self, content: bytes) -> None:
        await self._through(lambda at: at.push_blob(REPOSITORY, content))

    async def _through(self, request: Callable[[Registry], Awaitable[T]]) -> T:
        """Do a step of a push at any gateway, again and again until it is done."""
        while True:
            with self._excused(self.refused_pushes):
                return await request(self._chance.choice(self._gateways))
            await asyncio.sleep(POLL_S)

    @contextmanager
    def _excused(self, refused: list[str]) -> Iterator[None]:
        """Count what a client tries again.

        Raises:
            Broken: It is nothing that a client tries again.
        """
        try:
            yield
        except Refused as err:
            if err.status != 503:
                raise Broken(f"a good request was refused: {err}") from err
            refused.append(str(err))
        except TimeoutError as err:
            raise Broken("a request was not answered") from err
        except aiohttp.ClientConnectorError:
            self.unreachable += 1
        except (aiohttp.ClientError, ConnectionError):
            self.broken += 1

    async def _pull_on(self, going: asyncio.Event) -> None:
        while going.is_set():
            await asyncio.sleep(POLL_S)
            if self.pushed:
                tag = self._chance.choice(list(self.pushed))
                await self._pull(tag, self.pushed[tag])

    async def _pull(self, tag: str, image: Image) -> None:
        for at in self._chance.sample(self._gateways, len(self._gateways)):
            with self._excused(self.refused_pulls):
                found = await at.pull(REPOSITORY, tag)
                if found != image.digest:
                    raise Broken(f"{at.url}: {tag} shows {found}, not {image.digest}")
                self.pulls += 1
                return

    def outages(self, moments: Sequence[float]) -> list[float]:
        """How long after each of these moments nobody got through, at the longest, in s."""
        anybody = sorted(chain.from_iterable(self.acknowledged_at.values()))
        return [_longest(anybody, *span) for span in self._spans(moments)]

    def waits(self, moments: Sequence[float]) -> list[float]:
        """How long after each of these moments a pusher was kept waiting, at the longest, in s.

        That is the time between two acknowledgements of one pusher: it is not made shorter by
        another who gets through.
        """
        pushers = self.acknowledged_at.values()
        return [max(_longest(one, *span) for one in pushers) for span in self._spans(moments)]

    def _spans(self, moments: Sequence[float]) -> Iterable[tuple[float, float]]:
        end = max(pusher[-1] for pusher in self.acknowledged_at.values())
        return zip(moments, [*moments[1:], end], strict=True)

    async def check(self) -> None:
        """See that every acknowledged push is there, whole, at every gateway.

        Raises:
            Broken: One is not.
        """
        async with asyncio.TaskGroup() as group:
            for at in self._gateways:
                group.create_task(self._check(at))

    async def _check(self, at: Registry) -> None:
        for tag, image in self.pushed.items():
            if (found := await at.pull(REPOSITORY, tag)) != image.digest:
                raise Broken(f"{at.url} shows {found} for {tag}, not {image.digest}")

    def told(self) -> str:
        """What all of them have met, in one line."""
        return (
            f"{len(self.pushed)} pushes, of which {len(self.refused_pushes)} steps got 503;"
            f" {self.pulls} pulls, {len(self.refused_pulls)} more got 503;"
            f" {self.unreachable} connections were refused, {self.broken} broke"
        )


def _longest(acknowledged_at: Sequence[float], begun: float, ended: float) -> float:
    points = [begun, *(at for at in acknowledged_at if begun < at < ended), ended]
    return max(after - before for before, after in pairwise(points))
