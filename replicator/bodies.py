"""The bodies of manifests at this site, as applying changes needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator

from node.content import Content
from node.digest import Digest
from node.errors import BlobDamaged, BlobUnknown, StorageFailed, UploadOutOfOrder, UploadUnknown
from node.reference import Repository


class Bodies:
    """Reads and stores small blobs whole."""

    def __init__(self, content: Content) -> None:
        self._content = content

    async def read(self, digest: Digest) -> bytes | None:
        """A body, verified, if the site has a sound copy of it.

        Raises:
            MetadataUnavailable: The KV did not answer.
        """
        try:
            body = await self._content.read(digest)
        except (BlobUnknown, BlobDamaged, StorageFailed):
            return None
        return body if Digest.of(body, digest.algorithm) == digest else None

    async def store(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """Make a verified body a blob of the site, pinned in the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it.
            MetadataUnavailable: The KV did not answer.
        """
        upload = await self._content.start(repository)
        try:
            await self._content.finish(upload, digest, _once(body))
        except (UploadUnknown, UploadOutOfOrder) as err:
            raise StorageFailed("the session of a manifest's body ended") from err


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body
