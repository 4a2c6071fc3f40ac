"""Clients that push, read and delete the same few tags by any gateway, and note what they see."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp

from tests.faults.linear import ANYTHING, NOTHING, Kind, Operation, Outcome
from tests.faults.registry import OCI_CONFIG, OCI_MANIFEST, Answer, Blob, Broken, Registry
from tests.waiting import eventually

TAGS: Final = ("v1", "v2", "latest")
BACK_S: Final = 120.0

_CONFIG: Final = Blob(OCI_CONFIG, b"{}")
_METHODS: Final = {Kind.READ: "GET", Kind.WRITE: "PUT", Kind.DELETE: "DELETE"}
_DONE: Final = {Kind.READ: 200, Kind.WRITE: 201, Kind.DELETE: 202}
_LOST: Final = (aiohttp.ClientError, TimeoutError, OSError)


class Taggers:
    """Clients of a repository at the gateways of one site, who do as many operations as permitted.

    A gateway that is not there is left for another; after each answer that tells nothing a client
    waits until tags can be read again, so an outage costs each client one operation.  `history` is
    what was done, without two pushes of the same content; `ended` counts what has ended.
    """

    def __init__(
        self, gateways: Sequence[Registry], repository: str, chance: random.Random
    ) -> None:
        self.history: list[Operation] = []
        self.ended = 0
        self._permits = asyncio.Semaphore(0)
        self._busy = 0
        self._gateways = gateways
        self._repository = repository
        self._chance = chance

    @property
    def idle(self) -> bool:
        """Whether all that was permitted has been done."""
        return self._permits.locked() and not self._busy

    def permit(self, operations: int) -> None:
        """Let so many more be done."""
        for _ in range(operations):
            self._permits.release()

    async def prepare(self) -> None:
        """Push what all manifests need."""
        await self._gateways[0].push_blob(self._repository, _CONFIG.content)

    async def run(self, client: str) -> None:
        """Operate for ever, one operation at a time."""
        chance = random.Random(self._chance.random())
        shown = dict.fromkeys(TAGS, NOTHING)
        while True:
            await self._permits.acquire()
            self._busy += 1
            one = self._choose(client, chance, shown)
            await self._try(one, chance)
            if one.outcome is Outcome.OK:
                shown[one.tag] = one.digest
            self._busy -= 1
            self.ended += 1

    async def look(self) -> None:
        """Read each tag at each gateway, when nothing else goes on."""
        for number, at in enumerate(self._gateways):
            for tag in TAGS:
                one = Operation(tag, Kind.READ, client=f"last-{number}")
                self.history.append(one)
                await self._do(one, at)

    def _choose(self, client: str, chance: random.Random, shown: Mapping[str, str]) -> Operation:
        tag = chance.choice(TAGS)
        (kind,) = chance.choices(tuple(Kind), (4, 5, 2))
        expects = ANYTHING
        if kind is Kind.WRITE or (kind is Kind.DELETE and shown[tag] != NOTHING):
            expects = chance.choice((ANYTHING, shown[tag]))
        return Operation(tag, kind, expects=expects, client=client)

    async def _try(self, one: Operation, chance: random.Random) -> None:
        """Do it at any gateway that is there."""
        body = None
        if one.kind is Kind.WRITE:
            manifest = _manifest(f"{one.client}-{len(self.history)}")
            one.digest, body = manifest.digest, manifest.content
        self.history.append(one)
        for at in chance.sample(self._gateways, len(self._gateways)):
            await self._do(one, at, body)
            if one.outcome is not Outcome.UNSENT:
                break
        if one.outcome in (Outcome.UNKNOWN, Outcome.UNSENT):
            await eventually(self._serves, BACK_S, f"{self._repository} can be read again")

    async def _do(self, one: Operation, at: Registry, body: bytes | None = None) -> None:
        one.began_at = time.monotonic()
        try:
            answer = await at.call(
                _METHODS[one.kind],
                f"/v2/{self._repository}/manifests/{one.tag}",
                headers=_headers(one),
                data=body,
            )
        except aiohttp.ClientConnectorError:
            one.outcome = Outcome.UNSENT
        except _LOST:
            one.outcome = Outcome.UNKNOWN
        else:
            one.outcome = _outcome(one, answer)
            if one.kind is Kind.READ and one.outcome is Outcome.OK:
                one.digest = answer.headers.get("Docker-Content-Digest", NOTHING)
        finally:
            one.ended_at = time.monotonic()

    async def _serves(self) -> bool:
        """Whether some gateway can say what a tag shows."""
        for at in self._gateways:
            try:
                answer = await at.call("HEAD", f"/v2/{self._repository}/manifests/{TAGS[0]}")
            except _LOST:
                continue
            if answer.status in (200, 404) and "Warning" not in answer.headers:
                return True
        return False


def _manifest(name: str) -> Blob:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _CONFIG.descriptor,
        "layers": [],
        "annotations": {"name": name},
    }
    return Blob(OCI_MANIFEST, json.dumps(document).encode())


def _headers(one: Operation) -> dict[str, str]:
    headers = {"Content-Type": OCI_MANIFEST} if one.kind is Kind.WRITE else {}
    if one.expects == NOTHING:
        headers["If-None-Match"] = "*"
    elif one.expects != ANYTHING:
        headers["If-Match"] = f'"{one.expects}"'
    return headers


def _outcome(one: Operation, answer: Answer) -> Outcome:
    """What an answer tells.

    Raises:
        Broken: Nothing that was done deserves it.
    """
    if answer.status >= 500 or "Warning" in answer.headers:
        return Outcome.UNKNOWN
    if answer.status == _DONE[one.kind] or (one.kind, answer.status) == (Kind.READ, 404):
        return Outcome.OK
    if answer.status == 412 or (one.kind, answer.status) == (Kind.DELETE, 404):
        return Outcome.REFUSED
    raise Broken(f"{one}: {answer.status} {answer.body[:300]!r}")
