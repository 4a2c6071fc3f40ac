"""The bodies of manifests at this site, as applying changes needs them."""

from __future__ import annotations

from node.content import Content
from node.digest import Digest
from node.errors import BlobDamaged, BlobUnknown, StorageFailed, UploadUnknown
from node.reference import Repository
from node.uploads import Uploads
from replicator.salvage import Salvage


class Bodies:
    """Reads and stores small blobs whole."""

    def __init__(self, content: Content, uploads: Uploads, salvage: Salvage) -> None:
        self._content = content
        self._uploads = uploads
        self._salvage = salvage

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

    async def find(self, repository: Repository, digest: Digest) -> bytes | None:
        """As `read`; of what only a file is left, that is made a blob, pinned in the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it, or can't be read.
            MetadataUnavailable: The KV did not answer.
        """
        body = await self.read(digest)
        if body is None and await self._salvage.take(repository, digest):
            body = await self.read(digest)
        return body

    async def store(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """Make a verified body a blob of the site, pinned in the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it.
            MetadataUnavailable: The KV did not answer.
        """
        try:
            await self._uploads.store(repository, digest, body)
        except UploadUnknown as err:
            raise StorageFailed("the session of a manifest's body ended") from err
