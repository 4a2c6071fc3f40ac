"""Peers that have blobs and do as a test likes with them on the way, and what fetches from them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter

from node.digest import Digest
from node.errors import BlobUnknown, ManifestUnknown, PeerLied, PeerUnavailable
from node.globs import Filter
from node.manifest import Descriptor
from node.reference import Repository
from node.remote import RemoteBlob
from replicator.bandwidth import Throttle
from replicator.fetching import Fetching
from replicator.sources import Registry, Source, Sources
from replicator.transfer import Flights, Transfer
from replicator.turns import Turns
from tests.model import REPOSITORY, Model
from tests.salvaging import salvage_of

CHUNK = 10
CONTENT = bytes(range(100))
LARGE = Descriptor("application/octet-stream", Digest.of(CONTENT), len(CONTENT))


@dataclass
class BlobPeer:
    """A peer that has some blobs, and may do as it likes with them on the way."""

    blobs: dict[Digest, bytes]
    site: str = "fra"
    cut_at: list[int] = field(default_factory=list)
    """Offsets at which connections are cut, one each; then they are not."""
    asked: list[int] = field(default_factory=list)
    """The offsets that it was asked for."""
    announced: int | None = None
    """How long it says that its blobs are; None: as long as they are."""
    away: bool = False
    sent: int = 0
    held: asyncio.Event | None = None
    halfway: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, most: int | None = None
    ) -> AsyncIterator[RemoteBlob]:
        """See Registry."""
        del repository
        if self.away:
            raise PeerUnavailable(self.site, "away", reached=False)
        if digest not in self.blobs:
            raise BlobUnknown(str(digest))
        self.asked.append(start)
        cut_at = self.cut_at.pop(0) if self.cut_at else None
        content = self.blobs[digest]
        if start > len(content):
            raise PeerLied(self.site, str(digest), f"fewer than {start} bytes")
        said = len(content) if self.announced is None else self.announced
        end = len(content) if most is None else start + most
        yield RemoteBlob(said, self._chunks(content[:end], start, cut_at))

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See Registry."""
        del repository
        body = self.blobs.get(digest)
        if body is None:
            raise ManifestUnknown(str(digest))
        if len(body) != size or Digest.of(body) != digest:
            raise PeerLied(self.site, str(digest), "something else")
        return body

    async def _chunks(self, content: bytes, start: int, cut_at: int | None) -> AsyncIterator[bytes]:
        for at in range(start, len(content), CHUNK):
            await asyncio.sleep(0)
            if cut_at is not None and at >= cut_at:
                raise PeerUnavailable(self.site, "cut")
            if self.held is not None and at >= len(content) // 2:
                self.halfway.set()
                await self.held.wait()
            self.sent += len(content[at : at + CHUNK])
            yield content[at : at + CHUNK]


def source(
    peer: Registry,
    *patterns: str,
    clock: Callable[[], float] = time.monotonic,
    throttle: Throttle | None = None,
) -> Source:
    received = Counter("received", "Bytes.", registry=CollectorRegistry())
    filters = Filter(patterns or ("**",))
    return Source(peer, filters, throttle or Throttle(None), received, clock)


def transfer(
    model: Model,
    *peers: BlobPeer,
    flights: Flights | None = None,
    fetching: Fetching | None = None,
) -> Transfer:
    """Of the first peer's changes."""
    told_by, *others = [source(peer) for peer in peers]
    return transfer_of(model, Sources(told_by, others), flights, fetching=fetching)


def transfer_of(
    model: Model,
    sources: Sources,
    flights: Flights | None = None,
    turns: Turns | None = None,
    *,
    fetching: Fetching | None = None,
) -> Transfer:
    return Transfer(
        model.content,
        model.uploads,
        model.blobs,
        sources,
        flights or Flights(),
        salvage=salvage_of(model),
        fetching=(fetching or Fetching()).blob,
        turns=turns or Turns(2),
    )


async def has(model: Model, repository: Repository = REPOSITORY) -> bool:
    try:
        blob = await model.content.stat(repository, LARGE.digest)
    except BlobUnknown:
        return False
    opened = await model.content.open(LARGE.digest, blob.record)
    return await opened.read(0, 1000) == CONTENT


def sessions(model: Model) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(b"s/")]
