"""Bring blobs here: pinned if the site has them, else fetched, resumed and verified.

A blob is fetched once however many manifests want it: the first to ask fetches, the others wait and
then find it here.  What was fetched survives a cut, a stop and a kill -9 in the pieces of an upload
session that names its target; the next attempt asks for the rest, of whoever has it.  Nothing is
visible before the whole has the right digest, and the bytes of a peer that lies are dropped: where
several brought a part, each is asked alone for the whole then.

What this does not promise: a blob that the site has, in whatever repository, is pinned for a peer's
manifest without any proof that the peer has it.  A peer that knows a digest can thus make the bytes
readable here in a repository that it may write to.  Only possession would prove more, and that is a
transfer; peers that may not know of each other's content take no common repository
(`peers[].repositories`), and digests of what is not public are not made public.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from node.blobs import BlobStore
from node.content import Content
from node.digest import Digest
from node.errors import (
    BodyCut,
    DigestMismatch,
    InvalidRequest,
    MetadataUnavailable,
    NotFound,
    PeerLied,
    PeerUnavailable,
    StorageFull,
    Unavailable,
    UploadOutOfOrder,
    UploadUnknown,
)
from node.manifest import Descriptor
from node.reference import Repository
from node.upload import Upload
from node.uploads import Uploads
from replicator.download import SHORT_BYTES, Download
from replicator.fetching import Fetched
from replicator.salvage import Salvage
from replicator.sources import FAILURES, Failure, Source, Sources
from replicator.turns import Place, Turns

# Up to here a blob goes through memory in one go: no session to come back to is worth its commit.
SMALL_BYTES: Final = 1 << 20
# They take no place from larger ones: what they wait for is the distance, not the bytes.
_SMALL_AT_ONCE: Final = 16
# Replication leaves room for pushes, which are refused only at the reserve (DESIGN 7).
FULL_SHARE: Final = 0.9

_log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class _Flight:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    wanted_by: int = 0
    tried: bool = False
    download: Download | None = None


class Flights:
    """Which digests this process is fetching, over all peers: one fetch of each at a time."""

    def __init__(self) -> None:
        self._flights: dict[Digest, _Flight] = {}

    @contextmanager
    def of(self, digest: Digest) -> Iterator[_Flight]:
        """What all share who want this now; who holds its lock is the only one who fetches it."""
        flight = self._flights.setdefault(digest, _Flight())
        flight.wanted_by += 1
        try:
            yield flight
        finally:
            flight.wanted_by -= 1
            if not flight.wanted_by:
                del self._flights[digest]

    def begin(self, digest: Digest, download: Download) -> None:
        """This is how it comes."""
        self._flights[digest].download = download

    def left(self) -> int:
        """How many bytes are still to come of what there was room for."""
        return sum(f.download.left for f in self._flights.values() if f.download)


@dataclass(frozen=True, slots=True)
class _Job:
    """A large blob that is being brought: for whom, in which place, and who hears of its bytes."""

    repository: Repository
    digest: Digest
    place: Place
    fetched: Fetched


class Transfer:
    """Brings the blobs of one peer's changes; `flights` is shared by all of a process.

    What is fetched, of so many bytes, is so within `fetching`.  The `turns` are for
    all but the small ones.
    """

    def __init__(
        self,
        content: Content,
        uploads: Uploads,
        blobs: BlobStore,
        sources: Sources,
        flights: Flights,
        *,
        salvage: Salvage,
        fetching: Callable[[int], AbstractContextManager[Fetched]],
        turns: Turns,
    ) -> None:
        self._content = content
        self._uploads = uploads
        self._blobs = blobs
        self._sources = sources
        self._flights = flights
        self._salvage = salvage
        self._fetching = fetching
        self._turns = turns
        self._small_turns = Turns(_SMALL_AT_ONCE)

    async def ensure(self, repository: Repository, descriptors: Sequence[Descriptor]) -> None:
        """Make each of these visible in the repository: pinned if it is here, else fetched.

        Raises:
            PeerUnavailable: Nobody reachable has one of them.
            PeerLied: The only one that could be asked sent something else.
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
            return PeerUnavailable(self._sources.site, f"{wanted.digest}: {err}")
        except Unavailable as err:
            return err
        return None

    async def _ensure(self, repository: Repository, wanted: Descriptor) -> None:
        digest = wanted.digest
        with self._flights.of(digest) as flight:
            if await self._content.adopt(repository, digest):
                return
            async with flight.lock:
                # Whoever has tried since we looked may have brought it.
                if flight.tried and await self._content.adopt(repository, digest):
                    return
                flight.tried = True
                if await self._salvage.take(repository, digest):
                    return
                try:
                    with self._fetching(wanted.size) as fetched:
                        await self._bring(repository, wanted, fetched)
                finally:
                    flight.download = None

    async def _bring(self, repository: Repository, wanted: Descriptor, fetched: Fetched) -> None:
        digest = wanted.digest
        if wanted.size <= SMALL_BYTES:
            async with self._small_turns.turn(repository):
                await self._ensure_room(0)
                if await self._fetch_small(repository, digest):
                    return
        is_short = wanted.size <= SHORT_BYTES
        async with self._turns.turn(repository, is_short=is_short) as place:
            await self._ensure_room(0)
            await self._fetch(_Job(repository, digest, place, fetched))

    async def _ensure_room(self, more_bytes: int) -> None:
        usage = await self._blobs.usage()
        more_bytes += self._flights.left()
        if usage.free_bytes - more_bytes < usage.total_bytes * (1 - FULL_SHARE):
            raise StorageFull(usage.free_bytes)

    # --- small blobs

    async def _fetch_small(self, repository: Repository, digest: Digest) -> bool:
        """Fetch it through memory; False if it is not small, whatever its manifest says."""
        failures: list[Failure] = []
        for source in self._sources.order(repository):
            try:
                body = await self._small_from(source, repository, digest)
            except FAILURES as err:
                failures.append(source.did(err, digest))
                continue
            if body is None:
                return False
            await self._uploads.store(repository, digest, body)
            return True
        raise self._sources.failed(failures)

    async def _small_from(
        self, source: Source, repository: Repository, digest: Digest
    ) -> bytes | None:
        async with source.blob(repository, digest) as blob:
            if blob.size > SMALL_BYTES:
                return None
            body = b"".join([chunk async for chunk in blob.chunks])
        found = Digest.of(body, digest.algorithm)
        if found != digest:
            raise PeerLied(source.site, str(digest), str(found))
        return body

    # --- large ones

    async def _fetch(self, job: _Job) -> None:
        repository, digest = job.repository, job.digest
        upload, resumed = await self._session(repository, digest)
        if upload.offset:
            _log.info("resuming a blob", digest=str(digest), offset=upload.offset)
        sources = self._sources.order(repository)
        download = self._download(sources, job, upload.offset)
        try:
            await self._complete(upload, download, digest)
        except PeerLied as lie:
            # What a crash left of our own may be damaged, so a part's source is not to blame.
            suspects = set() if resumed else download.brought | {lie.site}
            await self._fetch_alone(job, lie, suspects)
        if upload.repository != repository and not await self._content.adopt(repository, digest):
            raise PeerUnavailable(self._sources.site, f"{digest} was here and went")

    def _download(self, sources: Sequence[Source], job: _Job, offset: int = 0) -> Download:
        download = Download(
            sources,
            job.repository,
            job.digest,
            job.place,
            offset=offset,
            ensure_room=self._ensure_room,
            fetched=job.fetched,
        )
        self._flights.begin(job.digest, download)
        return download

    async def _session(self, repository: Repository, digest: Digest) -> tuple[Upload, bool]:
        """The session that fetches this blob, with what stands of it; whether it is an old one."""
        standing = (await self._uploads.fetching()).get(digest)
        if standing is None:
            return await self._uploads.start(repository, digest), False
        try:
            return await self._uploads.recover(standing), True
        except UploadUnknown:
            return await self._uploads.start(repository, digest), False

    async def _complete(self, upload: Upload, download: Download, digest: Digest) -> None:
        """Append to the session until it has all bytes, and make it a blob.

        Raises:
            PeerLied: The bytes are not the blob's, and the session is gone.
            PeerUnavailable: The session has what was brought.
            StorageFull: So it has, unless the disk itself refused.
        """
        try:
            while not download.is_whole:
                async with aclosing(download.body()) as body:
                    upload = await self._uploads.append(upload, body)
            await self._uploads.finish(upload, digest)
        except BodyCut:
            failure = download.failed(self._sources)
            if isinstance(failure, PeerLied):
                await self._forget(upload)
            raise failure from None
        except DigestMismatch as err:
            last = download.last or self._sources.site
            raise PeerLied(last, err.expected, err.actual) from err

    async def _forget(self, upload: Upload) -> None:
        """End a session; somebody else's going on with it is their affair."""
        with suppress(UploadUnknown, UploadOutOfOrder, MetadataUnavailable):
            now = await self._uploads.resume(upload.repository, upload.session_id)
            await self._uploads.abort(now)

    async def _fetch_alone(self, job: _Job, lie: PeerLied, suspects: set[str]) -> None:
        """Start over, from one source after the other: a lie is then whose it is."""
        repository, digest = job.repository, job.digest
        sources = self._sources.order(repository)
        failures: list[Failure] = []
        if len(suspects) == 1:
            failures.append(lie)
            for liar in [s for s in sources if s.site in suspects]:
                liar.lied(lie)
                sources.remove(liar)
        for source in sources:
            upload = await self._uploads.start(repository, digest)
            download = self._download([source], job)
            try:
                await self._complete(upload, download, digest)
            except FAILURES as err:
                failures.append(source.did(err, digest))
                if source is not sources[-1]:  # whose bytes the next attempt goes on with
                    await self._forget(upload)
            else:
                left = [s for s in sources if s.site in suspects - {source.site}]
                if len(left) == 1:  # of several, nobody knows which
                    left[0].lied(lie)
                return
        raise self._sources.failed(failures)
