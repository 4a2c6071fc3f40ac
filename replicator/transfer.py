"""Bring blobs here: pinned if the site has them, else fetched from a peer, resumed and verified.

A blob is fetched once however many manifests want it: the first to ask fetches, the others wait and
then find it here.  What was fetched survives a cut, a stop and a kill -9 in the pieces of an upload
session that names its target; the next attempt asks for the rest.  Nothing is visible before the
whole has the right digest, and the bytes of a peer that lies are dropped.

What this does not promise: a blob that the site has, in whatever repository, is pinned for a peer's
manifest without any proof that the peer has it.  A peer that knows a digest can thus make the bytes
readable here in a repository that it may write to.  Only possession would prove more, and that is a
transfer; peers that may not know of each other's content take no common repository
(`peers[].repositories`), and digests of what is not public are not made public.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from prometheus_client import Counter

from node.blobs import BlobStore
from node.content import Content
from node.digest import Digest
from node.errors import (
    BodyCut,
    DigestMismatch,
    InvalidRequest,
    NotFound,
    PeerLied,
    PeerUnavailable,
    StorageFull,
    Unavailable,
    UploadUnknown,
)
from node.manifest import Descriptor
from node.reference import Repository
from node.remote import RemoteBlob
from node.uploads import Upload, Uploads, once
from replicator.turns import Turns

# Up to here a blob goes through memory in one go: no session to come back to is worth its commit.
SMALL_BYTES: Final = 1 << 20
# Replication leaves room for pushes, which are refused only at the reserve (DESIGN 7).
FULL_SHARE: Final = 0.9
# Connections in a row that bring nothing.
_FRUITLESS: Final = 3

_log = structlog.stdlib.get_logger(__name__)


class BlobSource(Protocol):
    """Where bytes come from: `node.remote.Remote`."""

    @property
    def site(self) -> str:
        """What errors call it."""
        ...

    def blob(
        self, repository: Repository, digest: Digest, start: int = 0
    ) -> AbstractAsyncContextManager[RemoteBlob]:
        """The bytes of a blob from an offset to its end; see `Remote.blob`."""
        ...


@dataclass(slots=True)
class _Flight:
    lock: asyncio.Lock
    wanted_by: int = 0


class Flights:
    """Which digests this process is fetching, over all peers: one fetch of each at a time."""

    def __init__(self) -> None:
        self._flights: dict[Digest, _Flight] = {}

    @asynccontextmanager
    async def one(self, digest: Digest) -> AsyncIterator[None]:
        """Be the only one who fetches this."""
        flight = self._flights.setdefault(digest, _Flight(asyncio.Lock()))
        flight.wanted_by += 1
        try:
            async with flight.lock:
                yield
        finally:
            flight.wanted_by -= 1
            if not flight.wanted_by:
                del self._flights[digest]


class Transfer:
    """Brings blobs from one peer; `flights` is shared by all of a process."""

    def __init__(
        self,
        content: Content,
        uploads: Uploads,
        blobs: BlobStore,
        source: BlobSource,
        flights: Flights,
        *,
        in_flight: int,
        received: Counter,
    ) -> None:
        self._content = content
        self._uploads = uploads
        self._blobs = blobs
        self._source = source
        self._flights = flights
        self._turns = Turns(in_flight)
        self._received = received

    async def ensure(self, repository: Repository, descriptors: Sequence[Descriptor]) -> None:
        """Make each of these visible in the repository: pinned if it is here, else fetched.

        Raises:
            PeerUnavailable: The peer can't be reached, or has one of them no more.
            PeerLied: It sent something else.
            StorageFull, StorageFailed: The blob store can't take it.
            MetadataUnavailable: The KV did not answer.
        """
        wanted = {descriptor.digest: descriptor for descriptor in descriptors}
        failure: Exception | None = None
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._attempt(repository, d)) for d in wanted.values()]
        for task in tasks:
            failure = failure or task.result()
        if failure is not None:
            raise failure

    async def _attempt(self, repository: Repository, wanted: Descriptor) -> Exception | None:
        """One blob's failure does not stop its siblings: what they bring is of use later."""
        try:
            await self._ensure(repository, wanted)
        except (NotFound, InvalidRequest) as err:
            # Ours to have caused, by a session that somebody else ended or went on with.
            return PeerUnavailable(self._source.site, f"{wanted.digest}: {err}")
        except Unavailable as err:
            return err
        return None

    async def _ensure(self, repository: Repository, wanted: Descriptor) -> None:
        digest = wanted.digest
        if await self._content.adopt(repository, digest):
            return
        async with self._flights.one(digest):
            if await self._content.adopt(repository, digest):
                return
            async with self._turns.turn(repository):
                await self._ensure_room()
                small = wanted.size <= SMALL_BYTES
                if not (small and await self._fetch_small(repository, digest)):
                    await self._fetch(repository, digest)

    async def _ensure_room(self) -> None:
        usage = await self._blobs.usage()
        if usage.free_bytes < usage.total_bytes * (1 - FULL_SHARE):
            raise StorageFull(usage.free_bytes)

    # --- small blobs

    async def _fetch_small(self, repository: Repository, digest: Digest) -> bool:
        """Fetch it through memory; False if it is not small, whatever its manifest says."""
        async with self._source.blob(repository, digest) as blob:
            if blob.size > SMALL_BYTES:
                return False
            body = bytearray()
            async for chunk in blob.chunks:
                body += chunk
        self._received.inc(len(body))
        found = Digest.of(body, digest.algorithm)
        if found != digest:
            raise PeerLied(self._source.site, str(digest), str(found))
        await self._uploads.put(repository, digest, once(bytes(body)))
        return True

    # --- large ones

    async def _fetch(self, repository: Repository, digest: Digest) -> None:
        upload, resumed = await self._session(repository, digest)
        if upload.offset:
            _log.info("resuming a blob", digest=str(digest), offset=upload.offset)
        upload = await self._fill(upload, repository, digest)
        try:
            await self._uploads.finish(upload, digest)
        except DigestMismatch as err:
            # Half of it may be what a crash left of our own; next time all of it is the peer's.
            if resumed:
                reason = "the parts of a blob do not fit"
                raise PeerUnavailable(self._source.site, reason) from err
            raise PeerLied(self._source.site, err.expected, err.actual) from err
        if upload.repository != repository and not await self._content.adopt(repository, digest):
            raise PeerUnavailable(self._source.site, f"{digest} was here and went")

    async def _session(self, repository: Repository, digest: Digest) -> tuple[Upload, bool]:
        """The session that fetches this blob, with what stands of it; whether it is an old one."""
        standing = (await self._uploads.fetching()).get(digest)
        if standing is None:
            return await self._uploads.start(repository, digest), False
        try:
            return await self._uploads.recover(standing), True
        except UploadUnknown:
            return await self._uploads.start(repository, digest), False

    async def _fill(self, upload: Upload, repository: Repository, digest: Digest) -> Upload:
        """Append to the session until it has all bytes; a cut costs a connection, not the bytes."""
        fruitless = 0
        while True:
            try:
                async with self._source.blob(repository, digest, upload.offset) as blob:
                    return await self._uploads.append(upload, self._rest(blob, upload, digest))
            except BodyCut as err:
                before = upload.offset
                upload = await self._uploads.resume(upload.repository, upload.session_id)
                fruitless = 0 if upload.offset > before else fruitless + 1
                if fruitless == _FRUITLESS:
                    reason = f"{digest} is cut at byte {upload.offset} again and again"
                    raise PeerUnavailable(self._source.site, reason) from err
            except PeerLied:
                await self._uploads.abort(upload)
                raise

    async def _rest(self, blob: RemoteBlob, upload: Upload, digest: Digest) -> AsyncIterator[bytes]:
        """The bytes that are missing, as a body for the session."""
        offset = upload.offset
        try:
            async for chunk in blob.chunks:
                offset += len(chunk)
                if offset > blob.size:
                    said = f"more than {blob.size} bytes"
                    raise PeerLied(self._source.site, str(digest), said)
                self._received.inc(len(chunk))
                yield chunk
        except PeerUnavailable as err:
            raise BodyCut(offset - upload.offset) from err
