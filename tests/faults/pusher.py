"""Clients under load: one pushes images like no others, one pulls whatever becomes visible."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import aiohttp

from tests.faults.history import History, Outcome, Push, check_visible
from tests.faults.registry import (
    OCI_CONFIG,
    OCI_MANIFEST,
    Blob,
    Broken,
    Image,
    Refused,
    Registry,
    new_image,
)
from tests.waiting import POLL_S, eventually

T = TypeVar("T")

REPOSITORIES: Final = ("team/app", "team/base", "tools")
SHARED: Final = ("latest", "stable", "edge")
BACK_S: Final = 120.0

_LOST: Final = (aiohttp.ClientError, TimeoutError, OSError)


@dataclass(frozen=True, slots=True)
class Load:
    """What is pushed: to which repositories, how many also to a shared tag, how large a layer is.

    Layers have from 1 KiB to `largest_bytes`, as many small ones as large ones.
    """

    repositories: tuple[str, ...] = REPOSITORIES
    shared: float = 0.3
    largest_bytes: int = 1 << 20

    def size(self, chance: random.Random) -> int:
        """The bytes of a layer."""
        return int(1024 * (self.largest_bytes / 1024) ** chance.random())


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
        chance: random.Random,
        permits: asyncio.Semaphore | None = None,
        load: Load = Load(),
    ) -> None:
        self.busy = False
        self._name = name
        self._site = site
        self._at = at
        self._history = history
        self._permits = permits or asyncio.Semaphore()
        self._load = load
        self._pushed = 0
        self._chance = chance

    async def run(self) -> None:
        """Push for ever."""
        while True:
            await self._permits.acquire()
            self.busy = True
            await self.push(1)
            self.busy = False

    async def push(self, count: int) -> None:
        """Push so many images, one after the other."""
        for _ in range(count):
            self._pushed += 1
            await self._push(f"{self._name}-{self._pushed}")

    async def push_small(self, count: int) -> None:
        """Push so many manifests of no layers and one config to one repository."""
        repository = self._load.repositories[0]
        config = Blob(OCI_CONFIG, b"{}")
        await self._step(self._at.push_blob(repository, config.content))
        for _ in range(count):
            self._pushed += 1
            tag = f"{self._name}-{self._pushed}"
            image = Image(_manifest(config, tag), (config,))
            await self._put(Push(self._site, repository, tag, image.digest, shared=False), image)

    async def push_again(self, push: Push) -> None:
        """Push what another push has pushed: its manifest as it stands there, to the same tag."""
        content = await self._at.manifest(push.repository, push.digest)
        again = replace(push, site=self._site, began=time.monotonic(), ended=0.0)
        await self._put(again, Image(content))

    async def push_to(self, repository: str, tag: str) -> str:
        """Push a new image to one of the shared tags, and return its digest."""
        image = new_image(self._chance)
        if await self._upload(repository, image):
            await self._put(Push(self._site, repository, tag, image.digest, shared=True), image)
        return image.digest

    async def _push(self, tag: str) -> None:
        repository = self._chance.choice(self._load.repositories)
        layers = self._chance.choice((1, 1, 2))
        image = new_image(self._chance, [self._load.size(self._chance) for _ in range(layers)])
        blob_bytes = sum(len(blob.content) for blob in image.blobs)
        own = Push(self._site, repository, tag, image.digest, False, blob_bytes)
        if not await self._upload(repository, image):
            self._history.begin(own).end(Outcome.FAILED)
            return
        await self._put(own, image)
        if self._chance.random() < self._load.shared:
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


def _manifest(config: Blob, name: str) -> Blob:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [],
        "annotations": {"name": name},
    }
    return Blob(OCI_MANIFEST, json.dumps(document).encode())


class Puller:
    """Pulls every tag as soon as it is visible at one site, whole; shared ones whenever they moved.

    It looks each `every_s`.  Raises Broken if something visible is not whole.
    """

    def __init__(self, at: Registry, history: History, every_s: float = POLL_S) -> None:
        self._at = at
        self._history = history
        self._every_s = every_s
        self._seen: set[tuple[str, str, str]] = set()

    async def run(self) -> None:
        """Pull for ever."""
        while True:
            repositories = {push.repository for push in self._history.pushes}
            try:
                for repository in repositories:
                    for tag in await self._at.tags(repository):
                        await self._look(repository, tag)
            except (Refused, *_LOST):
                await eventually(self._at.answers, BACK_S, f"{self._at.url} answers again")
            await asyncio.sleep(self._every_s)

    async def _look(self, repository: str, tag: str) -> None:
        digests = self._history.may_show(repository, tag)
        if tag in SHARED:
            shown = await self._at.shows(repository, tag)
            if shown is None or (repository, tag, shown) in self._seen:
                return
        elif any((repository, tag, digest) in self._seen for digest in digests):
            return
        shown = await check_visible(self._history, self._at, repository, tag)
        if shown is not None:
            self._seen.add((repository, tag, shown))
