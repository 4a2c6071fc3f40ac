"""What can be done with a site's registry, in its own words; HTTP is somebody else's.

Here the site's rules are applied (read-only, deletes, sizes) and content and metadata are brought
together: a manifest's body is blob, its visibility is metadata.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import structlog

from node.blob_transactions import VisibleBlob
from node.blobs import OpenBlob, SessionId
from node.condition import Condition
from node.conflicts import Conflict
from node.content import Content
from node.digest import Algorithm, Digest
from node.errors import (
    BlobDamaged,
    BlobUnknown,
    DigestMismatch,
    InvalidRequest,
    ManifestInvalid,
    ManifestUnknown,
    NotFound,
    Unavailable,
    Unsupported,
    UploadUnknown,
)
from node.manifest import Manifest, parse_manifest
from node.manifest_transactions import Push
from node.metadata import Metadata, Resolved
from node.reference import Reference, Repository, Tag
from node.upload import Upload
from node.uploads import Uploads

_CACHE_BYTES: Final = 16 << 20
# A manifest of more takes milliseconds to be read.
_LARGE_BYTES: Final = 256 << 10
# What comes from a client and is none of our ids need not reach the KV.
_SESSION_ID: Final = re.compile(r"[0-9a-zA-Z-]{1,64}")

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator allows; bytes and milliseconds."""

    deletes: bool = True
    read_only: bool = False
    manifest_bytes: int = 4 << 20
    grace_ms: int = 86_400_000


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest that was put."""

    digest: Digest
    subject: Digest | None


class BodyCache:
    """Manifests' bodies by digest, the least used forgotten first; what is not there is not kept.

    Content never changes under its digest, so an entry is never wrong; who may see it is asked
    elsewhere, every time.
    """

    def __init__(self, limit_bytes: int = _CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0
        self._bodies: OrderedDict[Digest, bytes] = OrderedDict()

    def get(self, digest: Digest) -> bytes | None:
        """The body, if it is here."""
        body = self._bodies.get(digest)
        if body is not None:
            self._bodies.move_to_end(digest)
        return body

    def put(self, digest: Digest, body: bytes) -> None:
        """Keep a body that was verified or comes from our own store."""
        if digest in self._bodies or len(body) > self._limit_bytes:
            return
        self._bodies[digest] = body
        self._size_bytes += len(body)
        while self._size_bytes > self._limit_bytes:
            self._size_bytes -= len(self._bodies.popitem(last=False)[1])


class Registry:
    """The use-cases of one site. `new_id` makes ids that are never used twice."""

    def __init__(
        self,
        content: Content,
        uploads: Uploads,
        metadata: Metadata,
        rules: Rules,
        *,
        new_id: Callable[[], str],
    ) -> None:
        self._content = content
        self._uploads = uploads
        self._metadata = metadata
        self._rules = rules
        self._new_id = new_id
        self._bodies = BodyCache()

    @property
    def manifest_bytes(self) -> int:
        """The largest manifest taken."""
        return self._rules.manifest_bytes

    # --- manifests

    async def get_manifest(
        self, repository: Repository, reference: Reference
    ) -> tuple[Resolved, bytes]:
        """The manifest that a reference shows, and its body.

        Raises:
            ManifestUnknown: None, or its body is damaged: pushing it again heals it (P9).
        """
        resolved = await self._metadata.resolve(repository, reference)
        body = self._bodies.get(resolved.digest)
        if body is None:
            body = await self._body(repository, resolved.digest)
        return resolved, body

    async def _body(self, repository: Repository, digest: Digest) -> bytes:
        try:
            body = await self._content.read(digest)
        except (BlobDamaged, BlobUnknown) as err:
            _log.error("manifest damaged", repository=repository, digest=str(digest))
            raise ManifestUnknown(str(digest)) from err
        self._bodies.put(digest, body)
        return body

    async def put_manifest(
        self,
        repository: Repository,
        reference: Reference,
        body: bytes,
        *,
        content_type: str | None,
        extra_tags: Sequence[Tag] = (),
        condition: Condition | None = None,
        actor: str = "",
    ) -> Stored:
        """Store a manifest under its digest, and under its tags if it has any; durable on return.

        Extra tags are heeded where the reference is a digest.

        Raises:
            ManifestInvalid: It is none that is stored here.
            DigestMismatch: It is not what the reference says it is.
            PreconditionFailed: The reference shows something else than the condition asks for.
            ManifestReferencesUnknown: The repository lacks what it refers to.
        """
        self._require_writable()
        if len(body) > _LARGE_BYTES:
            # In a thread, so that others are served meanwhile.
            read = await asyncio.to_thread(_read, body, reference, content_type)
        else:
            read = _read(body, reference, content_type)
        digest, manifest = read
        tags = tuple(dict.fromkeys(extra_tags)) if isinstance(reference, Digest) else (reference,)
        push = Push(repository, digest, len(body), manifest, tags, self._new_id(), actor, condition)
        await self._commit(push, body)
        self._bodies.put(digest, body)
        return Stored(digest, None if manifest.subject is None else manifest.subject.digest)

    async def _commit(self, push: Push, body: bytes) -> None:
        damaged = await self._content.damaged(push.digest)
        if not damaged:
            with suppress(BlobUnknown):
                # Nothing needs to be staged if the site has the body, or may not take it.
                await self._metadata.commit(push)
                return
        copy = await self._uploads.stage(push.repository, push.digest, body)
        try:
            named = await self._metadata.commit(push, copy, damaged)
        except (InvalidRequest, NotFound):
            with suppress(Unavailable):
                await self._uploads.withdraw(push.digest, copy)
            raise
        if not named:
            with suppress(Unavailable):  # what is done is done
                await self._content.discard(push.digest, copy.generation)

    async def resolve_conflict(self, conflict: Conflict, digest: Digest, actor: str = "") -> None:
        """Let a tag show one live manifest, as if it were pushed, in place of all that was seen.

        Raises:
            ConflictChanged: The tag has other siblings by now.
            ManifestUnknown: The manifest is not live in the repository.
            Unsupported: The site is read-only.
        """
        self._require_writable()
        repository, tags = conflict.repository, (conflict.tag,)
        resolved, body = await self.get_manifest(repository, digest)
        manifest = await asyncio.to_thread(parse_manifest, body, resolved.media_type)
        push = Push(repository, digest, len(body), manifest, tags, self._new_id(), actor)
        await self._metadata.commit(replace(push, resolves=conflict.dots))

    async def delete_manifest(
        self,
        repository: Repository,
        reference: Reference,
        actor: str = "",
        condition: Condition | None = None,
    ) -> None:
        """A tag goes alone; a digest goes with all of its tags.

        Raises:
            ManifestUnknown: There is none.
            PreconditionFailed: It shows something else than the condition asks for.
            InUse: A live index needs it.
            Unsupported: The site keeps everything.
        """
        self._require_deletes()
        if not isinstance(reference, Digest):
            await self._metadata.delete_tag(repository, reference, actor, condition)
        else:
            manifest = await self._parsed(repository, reference)
            if condition is not None:
                condition.require(reference)  # a digest shows itself, or is unknown
            await self._metadata.delete_manifest(repository, reference, manifest, actor)

    async def _parsed(self, repository: Repository, digest: Digest) -> Manifest | None:
        """A manifest's contents; None where its body is damaged or gone.

        Raises:
            ManifestUnknown: It is not live, and a delete of it has left nothing to clear.
        """
        try:
            media_type = (await self._metadata.resolve(repository, digest)).media_type
        except ManifestUnknown:
            # Only what a delete that was cut short has left is looked at; its body says enough.
            if not await self._metadata.is_uncleared(repository, digest):
                raise
            media_type = None
        try:
            body = self._bodies.get(digest) or await self._content.read(digest)
            return parse_manifest(body, media_type)
        except (BlobDamaged, BlobUnknown, ManifestInvalid):
            if media_type is not None:
                _log.warning("manifest deleted unread", repository=repository, digest=str(digest))
            return None

    # --- blobs

    async def stat_blob(self, repository: Repository, digest: Digest) -> VisibleBlob:
        """A blob whose bytes are there; it will stay for the grace time, as a client counts on it.

        Raises:
            BlobUnknown: The repository does not see it, or its bytes are missing.
        """
        blob = await self._content.stat(repository, digest)
        (await self._open(blob)).close()
        await self._content.renew(repository, blob, self._rules.grace_ms)
        return blob

    async def open_blob(self, repository: Repository, digest: Digest) -> OpenBlob:
        """A blob to read from; the caller closes it.

        Raises:
            BlobUnknown: The repository does not see it, or its bytes are missing.
        """
        return await self._open(await self._content.stat(repository, digest))

    async def _open(self, blob: VisibleBlob) -> OpenBlob:
        try:
            return await self._content.open(blob.digest, blob.record)
        except BlobDamaged as err:
            # "Unknown" makes clients push it again, which heals it (P9).
            _log.error("blob damaged", digest=str(blob.digest))
            raise BlobUnknown(str(blob.digest)) from err

    async def delete_blob(self, repository: Repository, digest: Digest) -> None:
        """The repository sees the blob no more.

        Raises:
            BlobUnknown: It does not see it now.
            InUse: A manifest of it needs it.
            Unsupported: The site keeps everything.
        """
        self._require_deletes()
        await self._content.hide(repository, digest)

    async def mount_blob(self, repository: Repository, source: Repository, digest: Digest) -> bool:
        """Let a repository see what another sees; False if that one does not, or has no bytes."""
        self._require_writable()
        try:
            (await self.open_blob(source, digest)).close()
            await self._content.mount(repository, source, digest)
        except BlobUnknown:
            return False
        return True

    # --- uploads

    async def start_upload(self, repository: Repository) -> Upload:
        """Begin an upload session.

        Raises:
            StorageFull: There is no room for more.
        """
        self._require_writable()
        return await self._uploads.start(repository)

    async def put_blob(
        self, repository: Repository, digest: Digest, body: AsyncIterator[bytes]
    ) -> None:
        """Make a body a blob in one step; see `Uploads.put`."""
        self._require_writable()
        await self._uploads.put(repository, digest, body)

    async def find_upload(self, repository: Repository, session_id: str) -> Upload:
        """An open upload session of the repository.

        Raises:
            UploadUnknown: There is none of that id.
        """
        if not _SESSION_ID.fullmatch(session_id):
            raise UploadUnknown(session_id)
        return await self._uploads.resume(repository, SessionId(session_id))

    async def find_writable(self, repository: Repository, session_id: str) -> Upload:
        """An open upload session to be changed.

        Raises:
            UploadUnknown: There is none of that id.
            Unsupported: The site is read-only.
        """
        self._require_writable()
        return await self.find_upload(repository, session_id)

    async def append(self, upload: Upload, body: AsyncIterator[bytes]) -> Upload:
        """Add bytes to an upload; see `Uploads.append`."""
        return await self._uploads.append(upload, body)

    async def finish(
        self, upload: Upload, digest: Digest, body: AsyncIterator[bytes] | None
    ) -> None:
        """Make the uploaded bytes a blob; see `Uploads.finish`."""
        await self._uploads.finish(upload, digest, body)

    async def cancel(self, upload: Upload) -> None:
        """End an upload and forget its bytes; see `Uploads.abort`."""
        await self._uploads.abort(upload)

    # --- rules

    def _require_writable(self) -> None:
        if self._rules.read_only:
            raise Unsupported("this site is read-only", ("GET", "HEAD"))

    def _require_deletes(self) -> None:
        self._require_writable()
        if not self._rules.deletes:
            raise Unsupported("this site does not delete", ("GET", "HEAD"))


def _read(body: bytes, reference: Reference, content_type: str | None) -> tuple[Digest, Manifest]:
    """A manifest that is put under a reference: its digest, and what it says."""
    if not isinstance(reference, Digest):
        return Digest.of(body, Algorithm.SHA256), parse_manifest(body, content_type, pushed=True)
    digest = Digest.of(body, reference.algorithm)
    if digest != reference:
        raise DigestMismatch(str(reference), str(digest))
    return digest, parse_manifest(body, content_type, pushed=True)
