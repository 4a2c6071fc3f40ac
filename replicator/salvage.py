"""Take blobs from files that no record names, instead of fetching them.

Such files are what is left where a site lost its metadata, or had it put back from a backup, and
kept its blobs (RELIABILITY 6.4).  One is taken as an upload whose only piece is that very file, by
a second name: hashed whole, published under a generation of its own, named by T1.  So a crash at
any point leaves what a crash of an upload leaves, and nothing is believed that was not read.

The old name stays.  It may belong to an upload whose transaction is still to come, or to metadata
that is put back once more; as both names are of one file, it takes no space while the blob stands.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
from prometheus_client import Counter

from node.blobs import BlobStore, Generation
from node.digest import Digest
from node.errors import (
    BlobDamaged,
    DigestMismatch,
    MetadataUnavailable,
    StorageFailed,
    StorageFull,
    UploadOutOfOrder,
    UploadUnknown,
)
from node.reference import Repository
from node.upload import Upload
from node.uploads import Uploads

# Files that are hashed at a time: pulls use the same disk, and the same threads.
_AT_ONCE: Final = 4
# What is wrong with one file, and no reason not to fetch the blob.
_UNFIT: Final = (BlobDamaged, DigestMismatch, StorageFailed, UploadUnknown, UploadOutOfOrder)

_log = structlog.stdlib.get_logger(__name__)


class Salvage:
    """Takes what the blob store of a site still has; `taken` counts the bytes."""

    def __init__(self, uploads: Uploads, blobs: BlobStore, taken: Counter) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._taken = taken
        self._places = asyncio.Semaphore(_AT_ONCE)
        # Files with other bytes than their name says: a peer that is away is asked for the blob
        # again and again, and they are not hashed each time.
        self._wrong: set[tuple[Digest, Generation]] = set()

    async def take(self, repository: Repository, digest: Digest) -> bool:
        """Make a sound file of a blob that has no sound record the blob, pinned in the repository.

        False if there is none; what is wrong with those that there are is in the log.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it, or can't be read.
            MetadataUnavailable: The KV did not answer.
        """
        for generation in await self._blobs.generations(digest):
            async with self._places:
                if (digest, generation) in self._wrong:
                    continue
                if await self._is_taken(repository, digest, generation):
                    return True
        return False

    async def _is_taken(
        self, repository: Repository, digest: Digest, generation: Generation
    ) -> bool:
        upload = await self._uploads.start(repository)
        try:
            piece = await self._blobs.reuse(upload.session_id, digest, generation)
            # As in `Uploads.put`, the piece is in no record: nobody else goes on with this.
            whole = replace(upload, session=replace(upload.session, pieces=(piece,)))
            await self._uploads.finish(whole, digest)
        except _UNFIT as err:
            _log.warning("a file is no blob", digest=str(digest), of=generation, reason=str(err))
            if isinstance(err, DigestMismatch):
                self._wrong.add((digest, generation))
            await self._forget(upload)
            return False
        except StorageFull:
            await self._forget(upload)
            raise
        self._taken.inc(piece.length)
        return True

    async def _forget(self, upload: Upload) -> None:
        with suppress(UploadUnknown, UploadOutOfOrder, MetadataUnavailable, StorageFailed):
            await self._uploads.abort(upload)
