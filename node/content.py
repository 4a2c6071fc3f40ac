"""A site's blobs: who sees them, what is read of them, how they are let go.

A repository sees a blob by a reference or a visible pin; the record names the one copy that counts.
How blobs arrive is node/uploads.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from node import keys
from node.blob_transactions import VisibleBlob, blob_ranges, hide, mount, visible
from node.blobs import BlobStore, Generation, OpenBlob
from node.digest import Digest
from node.errors import BlobDamaged, BlobUnknown, MetadataUnavailable
from node.kv import only
from node.records import BlobRecord
from node.reference import Repository
from node.stamps import Decider
from node.wire import codec

# The most that is ever read into memory at once; no site takes larger manifests.
SMALL_BYTES: Final = 16 << 20


class Content:
    """The blobs of one site. `new_id` makes ids that are never used twice."""

    def __init__(
        self,
        decider: Decider,
        blobs: BlobStore,
        *,
        new_id: Callable[[], str],
        clock_ms: Callable[[], int],
    ) -> None:
        self._decider = decider
        self._blobs = blobs
        self._new_id = new_id
        self._clock_ms = clock_ms

    # --- reading

    async def stat(self, repository: Repository, digest: Digest) -> VisibleBlob:
        """The blob as the repository sees it.

        Raises:
            BlobUnknown: It does not.
        """
        seen = await self._decider.look(blob_ranges(repository, digest))
        blob = visible(seen, repository, digest)
        if blob is None:
            raise BlobUnknown(str(digest))
        return blob

    async def open(self, digest: Digest, record: BlobRecord) -> OpenBlob:
        """Open the copy that a record names; the caller closes it.

        Raises:
            BlobDamaged: It is not there, or not as long as it was.
        """
        blob = await self._blobs.open(digest, record.generation)
        if blob.size != record.size:
            blob.close()
            raise BlobDamaged(str(digest))
        return blob

    async def read(self, digest: Digest) -> bytes:
        """The whole of a small blob: a manifest's body. Visibility is the caller's to have checked.

        Raises:
            BlobUnknown: The site has no record of it, or it is too large for a manifest's body.
            BlobDamaged: Its copy is missing or cut short.
        """
        record = await self._record(digest)
        if record is None or record.size > SMALL_BYTES:
            raise BlobUnknown(str(digest))
        blob = await self.open(digest, record)
        try:
            body = bytearray()
            while chunk := await blob.read(len(body), record.size - len(body)):
                body += chunk
        finally:
            blob.close()
        if len(body) != record.size:
            raise BlobDamaged(str(digest))
        return bytes(body)

    async def _record(self, digest: Digest) -> BlobRecord | None:
        entry = (await self._decider.look([only(keys.blob(digest))])).entry(keys.blob(digest))
        return None if entry is None else codec.decode_blob(entry.value)

    async def renew(self, repository: Repository, blob: VisibleBlob, grace_ms: int) -> None:
        """Keep a blob that a client was told is here; at most one write per pin per grace/8.

        A failure only makes a retry likelier, so it never fails the request.
        """
        if blob.referenced or (
            blob.pin is not None
            and blob.pin.expires_ms - self._clock_ms() > grace_ms - grace_ms // 8
        ):
            return
        try:
            await self._mount(repository, blob.digest, repository)
        except (BlobUnknown, MetadataUnavailable):
            return

    # --- mounts and deletes

    async def mount(self, target: Repository, source: Repository, digest: Digest) -> None:
        """T2: the target sees the blob too.

        Raises:
            BlobUnknown: The source does not see it.
        """
        await self._mount(target, digest, source)

    async def adopt(self, repository: Repository, digest: Digest) -> bool:
        """Let a repository see what the site already has; False if the site has it not.

        For replication only: the right to see it comes from a peer's manifest.
        """
        seen = await self._decider.look(blob_ranges(repository, digest))
        if visible(seen, repository, digest) is not None:
            return True
        entry = seen.entry(keys.blob(digest))
        if entry is None:
            return False
        if await self._is_damaged(digest, codec.decode_blob(entry.value)):
            return False
        try:
            await self._mount(repository, digest, None)
        except BlobUnknown:
            return False
        return True

    async def _mount(self, target: Repository, digest: Digest, source: Repository | None) -> None:
        ranges = blob_ranges(source or target, digest)
        await self._decider.decide(
            target,
            lambda: self._decider.look(ranges),
            lambda txn: mount(txn, digest, source),
        )

    async def hide(self, repository: Repository, digest: Digest) -> None:
        """T6: the repository sees the blob no more; other repositories keep it.

        Raises:
            BlobUnknown: It does not see it now.
            InUse: A manifest of the repository needs it.
        """
        op = self._new_id()
        ranges = blob_ranges(repository, digest)
        await self._decider.decide(
            repository, lambda: self._decider.look(ranges), lambda txn: hide(txn, digest, op), op
        )

    # --- copies

    async def discard(self, digest: Digest, generation: Generation) -> None:
        """Remove a copy whose session is over, unless the record names it."""
        record = await self._record(digest)
        if record is None or record.generation != generation:
            await self._blobs.delete(digest, generation)

    async def damaged(self, digest: Digest) -> frozenset[Generation]:
        """The generation in the digest's record, if its copy is not there whole (P9)."""
        record = await self._record(digest)
        bad = record is not None and await self._is_damaged(digest, record)
        return frozenset({record.generation}) if record is not None and bad else frozenset()

    async def _is_damaged(self, digest: Digest, record: BlobRecord) -> bool:
        try:
            (await self.open(digest, record)).close()
        except BlobDamaged:
            return True
        return False
