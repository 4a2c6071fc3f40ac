"""Clients under load: one pushes images like no others, one pulls whatever becomes visible."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Final, TypeVar

import aiohttp

from tests.faults.history import History, Outcome, Push, check_visible
from tests.faults.registry import Broken, Image, Refused, Registry, new_image
from tests.waiting import POLL_S, eventually

T = TypeVar("T")

REPOSITORIES: Final = ("team/app", "team/base", "tools")
SHARED: Final = ("latest", "stable", "edge")
BACK_S: Final = 60.0

_LOST: Final = (aiohttp.ClientError, TimeoutError, OSError)


class Pusher:
    """Pushes to one site, as often as `permits` lets it, and notes how each push ended.

    A registry that does not answer is waited for.  One that forgets what it has acknowledged, or
    refuses what is right, is `Broken`.  `busy` while a push is under way.
    """

    def __init__(
        self,
        name: str,
        site: str,
        at: Registry,
        *,
        history: History,
        permits: asyncio.Semaphore,
        chance: random.Random,
    ) -> None:
        self.busy = False
        self._name = name
        self._site = site
        self._at = at
        self._history = history
        self._permits = permits
        self._chance = chance

    async def run(self) -> None:
        """Push for ever."""
        number = 0
        while True:
            await self._permits.acquire()
            self.busy = True
            number += 1
            await self._push(f"{self._name}-{number}")
            self.busy = False

    async def _push(self, tag: str) -> None:
        repository = self._chance.choice(REPOSITORIES)
        layers = self._chance.choice((1, 1, 2))
        image = new_image(self._chance, [_size(self._chance) for _ in range(layers)])
        own = Push(self._site, repository, tag, image.digest, shared=False)
        if not await self._upload(repository, image):
            self._history.begin(own).end(Outcome.FAILED)
            return
        await self._put(own, image)
        if self._chance.random() < 0.3:
            tag = self._chance.choice(SHARED)
            await self._put(Push(self._site, repository, tag, image.digest, shared=True), image)

    async def _upload(self, repository: str, image: Image) -> bool:
        for blob in image.blobs:
            try:
                await self._step(self._at.push_blob(repository, blob.content))
            except _LOST:
                await self._back()
                return False
            except Refused as err:
                if err.status < 500:
                    raise Broken(f"{self._name}: a good blob was refused: {err}") from err
                return False
        return True

    async def _put(self, push: Push, image: Image) -> None:
        self._history.begin(push)
        try:
            await self._step(self._at.put_manifest(push.repository, image.manifest, push.tag))
        except _LOST:
            push.end(Outcome.UNKNOWN)
            await self._back()
        except Refused as err:
            if err.status < 500:
                raise Broken(f"{self._name}: a good manifest was refused: {err}") from err
            push.end(Outcome.UNKNOWN)
        else:
            push.end(Outcome.OK)

    async def _step(self, request: Awaitable[T]) -> T:
        try:
            return await request
        finally:
            self._history.steps += 1

    async def _back(self) -> None:
        await eventually(self._at.answers, BACK_S, f"{self._at.url} answers again")


class Puller:
    """Pulls every tag as soon as it is visible at one site, whole; shared ones whenever they moved.

    Raises Broken if something visible is not whole.
    """

    def __init__(self, at: Registry, history: History) -> None:
        self._at = at
        self._history = history
        self._seen: set[tuple[str, str, str]] = set()

    async def run(self) -> None:
        """Pull for ever."""
        while True:
            for (repository, tag), digests in self._history.tags.items():
                if tag in SHARED or not any((repository, tag, d) in self._seen for d in digests):
                    await self._look(repository, tag)
            await asyncio.sleep(POLL_S)

    async def _look(self, repository: str, tag: str) -> None:
        try:
            if tag in SHARED:
                shown = await self._at.shows(repository, tag)
                if shown is None or (repository, tag, shown) in self._seen:
                    return
            shown = await check_visible(self._history, self._at, repository, tag)
        except (Refused, *_LOST):
            await eventually(self._at.answers, BACK_S, f"{self._at.url} answers again")
        else:
            if shown is not None:
                self._seen.add((repository, tag, shown))


def _size(chance: random.Random) -> int:
    """From 1 KiB to 1 MiB; as many small ones as large ones."""
    return int(1024 * 2 ** chance.uniform(0, 10))
