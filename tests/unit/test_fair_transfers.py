"""Huge images and small ones over one link: nobody is kept waiting, and nothing is sent twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest

from node.digest import Digest
from node.errors import ManifestUnknown
from node.manifest import Descriptor
from node.reference import Repository
from node.remote import RemoteBlob
from node.wire import codec
from replicator import download as downloads
from replicator import transfer as transfers
from replicator.bandwidth import Throttle
from replicator.sources import Sources
from replicator.turns import Turns
from tests.blob_peers import source, transfer_of
from tests.fake_kv import MemoryKV
from tests.model import Model

KIB: Final = 1 << 10
# A thousandth of everything: 5 KiB are small and half a MiB huge, on a link of 100 KiB a second.
SHORT: Final = 16 * KIB
HUGE: Final = 512 * KIB
SMALL: Final = 5 * KIB
BYTES_PER_S: Final = 100 * KIB
PLACES: Final = 4
REPOSITORIES: Final = 30


@dataclass
class _Peer:
    """A peer at the end of a link: what it sends takes its time, one chunk after the other."""

    blobs: dict[Digest, bytes]
    site: str = "fra"
    now: float = 0.0
    sent: int = 0
    asked: int = 0
    connections: int = 0
    most: int = 0
    began: set[Digest] = field(default_factory=set)

    def clock(self) -> float:
        """The seconds that have passed."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let that time pass."""
        self.now += seconds
        await _others()

    async def until(self, seconds: float) -> None:
        """Wait for that time, while others fetch."""
        while self.now < seconds:
            await _others()

    @asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, most: int | None = None
    ) -> AsyncIterator[RemoteBlob]:
        """See Registry."""
        del repository
        self.began.add(digest)
        self.connections += 1
        self.most = max(self.most, self.connections)
        try:
            content = self.blobs[digest]
            end = len(content) if most is None else min(len(content), start + most)
            self.asked += end - start
            yield RemoteBlob(len(content), self._chunks(content[:end], start))
        finally:
            self.connections -= 1

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See Registry."""
        raise ManifestUnknown(f"{repository}@{digest} of {size}")

    async def _chunks(self, content: bytes, start: int) -> AsyncIterator[bytes]:
        for at in range(start, len(content), KIB):
            await _others()
            self.now += KIB / BYTES_PER_S
            self.sent += len(content[at : at + KIB])
            yield content[at : at + KIB]


async def _others() -> None:
    await asyncio.sleep(0)


def _blob(peer: _Peer, seed: str, size: int) -> Descriptor:
    content = (seed.encode() * size)[:size]
    digest = Digest.of(content)
    peer.blobs[digest] = content
    return Descriptor("application/octet-stream", digest, size)


async def test_a_small_image_passes_huge_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty repositories fetch minutes' worth: three small layers take seconds beside them.

    No more connections are open than there are places, no session has more than one piece, and
    when all has arrived no byte was sent twice.
    """
    monkeypatch.setattr(downloads, "SHORT_BYTES", SHORT)
    monkeypatch.setattr(transfers, "SHORT_BYTES", SHORT)
    monkeypatch.setattr(transfers, "SMALL_BYTES", 1)
    model, peer = Model(MemoryKV()), _Peer({})
    turns = Turns(PLACES, clock=peer.clock)
    transfer = transfer_of(model, Sources(source(peer)), turns=turns)
    huge = [_blob(peer, f"huge {n} ", HUGE) for n in range(REPOSITORIES)]
    small = [_blob(peer, f"small {n} ", SMALL) for n in range(3)]

    async def later() -> float:
        await peer.until(45)
        await transfer.ensure(Repository("small"), small)
        pieces = [
            codec.decode_session(value).pieces
            for key, value in model.kv.entries().items()
            if key.startswith(b"s/")
        ]
        assert all(len(of_one) <= 1 for of_one in pieces)
        return peer.now - 45

    async with asyncio.TaskGroup() as group:
        for n, blob in enumerate(huge):
            group.create_task(transfer.ensure(Repository(f"huge-{n}"), [blob]))
        took = group.create_task(later())
    assert took.result() < 8
    assert peer.most <= PLACES
    assert peer.sent == sum(map(len, peer.blobs.values()))
    assert len(peer.began) == REPOSITORIES + 3


async def test_on_a_limited_link_nothing_is_asked_for_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was on its way to who gives way would come again, beyond what the link may take."""
    monkeypatch.setattr(transfers, "SMALL_BYTES", 1)
    peer = _Peer({})
    throttle = Throttle(BYTES_PER_S // 4, clock=peer.clock, sleep=peer.sleep)
    turns = Turns(1, clock=peer.clock)
    sources = Sources(source(peer, throttle=throttle))
    transfer = transfer_of(Model(MemoryKV()), sources, turns=turns)
    huge = [_blob(peer, f"huge {n} ", HUGE) for n in range(3)]

    async def first() -> int:
        await transfer.ensure(Repository("huge-0"), huge[:1])
        return len(peer.began)

    async with asyncio.TaskGroup() as group:
        turned = group.create_task(first())
        for n, blob in enumerate(huge[1:], 1):
            group.create_task(transfer.ensure(Repository(f"huge-{n}"), [blob]))
    assert turned.result() == len(huge), "they took turns"
    assert peer.asked == sum(map(len, peer.blobs.values()))
