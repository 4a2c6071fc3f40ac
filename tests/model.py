"""A site's model over fakes: for tests that need no process, no disk and no real time."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from node.content import Content
from node.digest import Algorithm, Digest
from node.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from node.manifest_transactions import Push
from node.metadata import Metadata
from node.reference import Repository, Tag
from node.staging import Staging
from node.stamps import Decider, Stamps
from node.tag_transactions import MAX_TAGS
from node.transaction import CHUNK
from node.uploads import Uploads
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV

GRACE_MS = 1000
REPOSITORY = Repository("team/app")
OTHER = Repository("other")


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """A request's body."""
    for part in parts:
        yield part


@dataclass
class Model:
    """One site over a memory KV and memory blobs; `time_ms` is its clock."""

    kv: MemoryKV
    blobs: MemoryBlobs = field(default_factory=MemoryBlobs)
    time_ms: int = 1_000_000
    site: str = "fra#1"
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        stamps = Stamps(self.kv, self.site, grace_ms=GRACE_MS, clock_ms=lambda: self.time_ms)
        self.decider = Decider(self.kv, self.kv, stamps)
        self.content = Content(
            self.decider, self.blobs, new_id=self.new_id, clock_ms=lambda: self.time_ms
        )
        self.uploads = Uploads(
            self.decider,
            self.blobs,
            self.content,
            new_id=self.new_id,
            clock_ms=lambda: self.time_ms,
            reserve_bytes=lambda total: total // 20,
        )
        self.staging = Staging(
            self.decider, new_id=self.new_id, chunk=self.chunk, pause=lambda _: asyncio.sleep(0)
        )
        self.metadata = Metadata(self.decider, self.staging, new_id=self.new_id)

    def new_id(self) -> str:
        """The next id, the same in every run."""
        return f"{self.site}-{next(self._ids)}"

    async def upload(self, content: bytes, repository: Repository = REPOSITORY) -> Digest:
        """Push a blob."""
        digest = _known(content)
        await self.uploads.store(repository, digest, content)
        return digest

    async def push(
        self,
        body: bytes,
        *tags: str,
        repository: Repository = REPOSITORY,
        media_type: str = OCI_MANIFEST,
        algorithm: Algorithm = Algorithm.SHA256,
    ) -> Digest:
        """Push a manifest, as a gateway does: as often as all of its tags take."""
        digest = _known(body, algorithm)
        for start in range(0, max(1, len(tags)), MAX_TAGS):
            some = tuple(Tag(tag) for tag in tags[start : start + MAX_TAGS])
            copy = await self.uploads.stage(repository, digest, body)
            manifest = parse_manifest(body, media_type)
            push = Push(repository, digest, len(body), manifest, some, self.new_id())
            if not await self.metadata.commit(push, copy, await self.content.damaged(digest)):
                await self.content.discard(digest, copy.generation)
        return digest

    async def image(
        self, *tags: str, layer: bytes = b"layer", repository: Repository = REPOSITORY, **more: Any
    ) -> tuple[Digest, bytes]:
        """Push a whole image of one layer; its digest and its manifest."""
        body = image_body(
            await self.upload(b"{}", repository), await self.upload(layer, repository), **more
        )
        return await self.push(body, *tags, repository=repository), body


_sizes: dict[Digest, int] = {}


def _known(content: bytes, algorithm: Algorithm = Algorithm.SHA256) -> Digest:
    digest = Digest.of(content, algorithm)
    _sizes[digest] = len(content)
    return digest


def descriptor(digest: Digest, media_type: str = "application/octet-stream") -> dict[str, object]:
    """A descriptor as JSON has it; of what no model was given, the size does not matter."""
    return {"mediaType": media_type, "digest": str(digest), "size": _sizes.get(digest, 2)}


def image_body(config: Digest, *layers: Digest, **more: Any) -> bytes:
    """An image manifest."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


def index_body(
    children: Sequence[Digest], media_type: str = OCI_MANIFEST, **more: Mapping[str, object]
) -> bytes:
    """An index of manifests, or of whatever media type."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(child, media_type) for child in children],
        **more,
    }
    return json.dumps(document).encode()
