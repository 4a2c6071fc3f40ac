"""How blobs arrive at a site: upload sessions, and the step from bytes to a blob.

The records are the KV's, the bytes are the blob store's; the order in which they are written is the
promise: bytes durable, then the record (RELIABILITY 4).  A crash between the two leaves a file that
nothing names, never a name without its file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import zip_longest
from typing import Final

from node import blobs, keys
from node.blob_transactions import Copy, finish_upload
from node.blobs import BlobStore, Generation, Piece, SessionId
from node.content import Content
from node.digest import Digest, Verifier
from node.errors import (
    BodyCut,
    DigestMismatch,
    MetadataUnavailable,
    StorageFailed,
    StorageFull,
    UploadOutOfOrder,
    UploadUnknown,
)
from node.kv import Absent, Delete, Entry, Failed, Ok, Put, Unknown, only
from node.records import UploadSession
from node.reference import Repository
from node.stamps import Decider
from node.transaction import Transaction
from node.upload import Hashes, Received, Upload, found_upload, nothing
from node.wire import codec

_SESSION_TTL_MS: Final = 7 * 24 * 3600 * 1000
# A member that ends takes a request with it; the next one makes the session.
_BEGINNINGS: Final = 2


class Uploads:
    """The uploads of one site.

    `new_id` makes ids that are never used twice; `reserve_bytes` says how much of a disk of a
    given size stays free.
    """

    def __init__(
        self,
        decider: Decider,
        blobs: BlobStore,
        content: Content,
        *,
        new_id: Callable[[], str],
        clock_ms: Callable[[], int],
        reserve_bytes: Callable[[int], int],
    ) -> None:
        self._decider = decider
        self._blobs = blobs
        self._content = content
        self._new_id = new_id
        self._clock_ms = clock_ms
        self._reserve_bytes = reserve_bytes
        # The hash of what this process wrote all of, and of just which pieces: two requests may
        # write at one offset, and only one of them becomes part of the session.
        self._hashes = Hashes()

    async def ensure_room(self) -> None:
        """Refuse to take more when the store is down to its reserve.

        Raises:
            StorageFull: It is.
        """
        usage = await self._blobs.usage()
        if usage.free_bytes < self._reserve_bytes(usage.total_bytes):
            raise StorageFull(usage.free_bytes)

    async def start(self, repository: Repository, target: Digest | None = None) -> Upload:
        """Begin an upload session.

        Raises:
            StorageFull: There is no room for more.
            MetadataUnavailable: If it was made nevertheless, it only waits to expire.
        """
        await self.ensure_room()
        session_id = SessionId(self._new_id())
        session = UploadSession(repository, (), self._clock_ms() + _SESSION_TTL_MS, target)
        key = keys.session(session_id)
        put = Put(key, codec.encode_session(session))
        for _ in range(_BEGINNINGS):
            outcome = await self._decider.kv.txn([Absent(key)], [put])
            if isinstance(outcome, Ok):
                return Upload(session_id, session, outcome.revision)
            # Perhaps the reply was lost, and not the write; the id is nobody else's.
            made = found_upload(session_id, (await self._decider.look([only(key)])).entry(key))
            if made is not None:
                return made
        raise MetadataUnavailable("the upload session could not be made")

    async def resume(self, repository: Repository, session_id: SessionId) -> Upload:
        """An open session of this repository.

        Raises:
            UploadUnknown: There is none of that id.
        """
        key = keys.session(session_id)
        upload = found_upload(session_id, (await self._decider.look([only(key)])).entry(key))
        if upload is None or upload.repository != repository or self._is_over(upload):
            raise UploadUnknown(session_id)
        return upload

    def _is_over(self, upload: Upload) -> bool:
        return upload.session.expires_ms <= self._clock_ms()

    async def fetching(self) -> dict[Digest, Upload]:
        """The sessions by which replicators fetch, by what they fetch."""
        entries = (await self._decider.look([keys.SESSIONS])).entries(keys.SESSIONS)
        uploads = [found_upload(keys.session_id(entry.key), entry) for entry in entries]
        return {
            upload.session.target: upload
            for upload in uploads
            if upload is not None and upload.session.target and not self._is_over(upload)
        }

    async def recover(self, upload: Upload) -> Upload:
        """Take into a fetching session what a crash or a stop left of it, and nobody recorded.

        The bytes are whatever reached the files; `finish` verifies the whole.

        Raises:
            UploadOutOfOrder, UploadUnknown: Somebody else has the session, or its bytes were lost.
        """
        standing = await self._blobs.recover(upload.session_id)
        recorded = upload.session.pieces
        lost = any(
            held is None or held.length < piece.length
            for piece, held in zip_longest(recorded, standing[: len(recorded)])
        )
        target = upload.session.target
        if lost and not (target and await self._is_published(upload, recorded, target)):
            await self._give_up(upload)
            raise UploadUnknown(upload.session_id)
        for piece in standing[len(recorded) :]:
            upload = await self._record(upload, piece)
        return upload

    async def append(self, upload: Upload, body: AsyncIterator[bytes]) -> Upload:
        """Add a request's body to the session; what arrived of a body that is cut stays.

        Raises:
            UploadOutOfOrder: Somebody else has added bytes meanwhile; these were dropped.
            BodyCut: As the body raised it; the session has what came before.
            StorageFull, StorageFailed: Nothing of the body was kept.
        """
        received = await self._receive(upload, body)
        grown = await self._keep(upload, received)
        if received.cut is not None:
            raise received.cut
        return grown

    async def _keep(self, upload: Upload, received: Received) -> Upload:
        """Make what was received a part of the session, or leave nothing of it."""
        try:
            grown = await self._record(upload, received.piece)
        except UploadOutOfOrder:
            # What stands of a fetch, whoever goes on with it may have taken into the session.
            if upload.session.target is None:
                await received.writer.drop()
            raise
        except UploadUnknown:
            await self._blobs.abort(upload.session_id)
            raise
        if received.verifier is not None:
            self._hashes.keep(upload.session_id, grown.session.pieces, received.verifier)
        return grown

    async def _receive(self, upload: Upload, body: AsyncIterator[bytes]) -> Received:
        """Write a body to a piece of its own, hashed if all that came before was hashed here."""
        pieces = upload.session.pieces
        verifier = self._hashes.take(upload.session_id, pieces)
        writer = self._blobs.piece(upload.session_id, len(pieces), verifier)
        cut = None
        try:
            try:
                async for chunk in body:
                    await writer.write(chunk)
            except BodyCut as err:
                cut = err
            return Received(writer, await writer.seal(), cut, verifier)
        except asyncio.CancelledError:
            # A replicator that stops leaves what it has fetched to `recover`.
            if upload.session.target is None:
                await writer.drop()
            raise
        except BaseException:
            await writer.drop()
            raise

    async def _record(self, upload: Upload, piece: Piece) -> Upload:
        """Append the piece to the session, if the session is still as it was."""
        if piece.length == 0:
            return upload
        session = replace(
            upload.session,
            pieces=(*upload.session.pieces, piece),
            expires_ms=self._clock_ms() + _SESSION_TTL_MS,
        )
        key = keys.session(upload.session_id)
        guards = [upload.guard]
        outcome = await self._decider.kv.txn(guards, [Put(key, codec.encode_session(session))])
        if isinstance(outcome, Ok):
            return Upload(upload.session_id, session, outcome.revision)
        entry = (await self._decider.look([only(key)])).entry(key)
        now = found_upload(upload.session_id, entry)
        if now is not None and now.session.pieces == session.pieces:
            return now  # the reply was lost, not the write
        if isinstance(outcome, Unknown):
            raise MetadataUnavailable(outcome.reason)
        if now is None:
            raise UploadUnknown(upload.session_id)
        raise UploadOutOfOrder(upload.session_id, now.offset)

    async def finish(
        self, upload: Upload, digest: Digest, body: AsyncIterator[bytes] | None = None
    ) -> None:
        """T1: make the session's bytes, and a last body, the blob `digest` of its repository.

        Finishing the same content twice is not an error: the second copy is discarded.

        Raises:
            DigestMismatch: The bytes are not what was promised; the session is gone.
            UploadOutOfOrder, UploadUnknown: Somebody else went on with, or ended, the session; or
                its bytes were lost.
            BodyCut: As the body raised it; nothing of it was kept, so it may be sent again.
            StorageFull, StorageFailed: The store refused; after a failed sync the session is gone.
        """
        pieces = upload.session.pieces
        verifier: Verifier | None
        if body is not None or not pieces:
            received = await self._receive(upload, nothing() if body is None else body)
            if received.cut is not None:
                # oras sends a last request that broke once more as it was, and not its rest.
                await received.writer.drop()
                raise received.cut
            verifier = received.verifier
            pieces = (*pieces, received.piece) if received.piece.length or not pieces else pieces
        else:
            verifier = self._hashes.take(upload.session_id, pieces)
        try:
            await self._verify(upload, pieces, digest, verifier)
            copy = await self._publish_once(upload, pieces, digest)
        except UploadUnknown:
            await self._forget_rest(upload)
            raise
        await self._settle(upload.repository, digest, copy, upload)
        with suppress(StorageFailed):  # what is done is done
            await self._blobs.abort(upload.session_id)

    async def _forget_rest(self, upload: Upload) -> None:
        """Remove what came of a body after its session was over; of one that is not, nothing."""
        within = only(keys.session(upload.session_id))
        with suppress(MetadataUnavailable, StorageFailed):
            if (await self._decider.look([within])).entry(within.start) is None:
                await self._blobs.abort(upload.session_id)

    async def _verify(
        self, upload: Upload, pieces: tuple[Piece, ...], digest: Digest, verifier: Verifier | None
    ) -> None:
        if verifier is None or verifier.algorithm != digest.algorithm:
            try:
                verifier = await self._blobs.hash(upload.session_id, pieces, digest.algorithm)
            except UploadUnknown:
                # Verified and published before, by a request that did not get to its end?
                if await self._is_published(upload, pieces, digest):
                    return
                raise
        try:
            verifier.verify(digest)
        except DigestMismatch:
            await self._give_up(upload)
            raise

    async def _is_published(
        self, upload: Upload, pieces: tuple[Piece, ...], digest: Digest
    ) -> bool:
        copy = blobs.Copy(digest, Generation(upload.session_id), sum(p.length for p in pieces))
        return not await self._blobs.missing([copy])

    async def _give_up(self, upload: Upload) -> None:
        """End a session that can't be finished, unless somebody else goes on with it."""
        with suppress(UploadUnknown, UploadOutOfOrder, MetadataUnavailable):
            await self.abort(upload)

    async def _publish_once(
        self, upload: Upload, pieces: tuple[Piece, ...], digest: Digest
    ) -> Copy:
        try:
            generation = await self._blobs.publish(upload.session_id, pieces, digest)
        except StorageFailed:
            # A sync that failed is never tried again: the pages it lost would pass for written.
            await self._give_up(upload)
            await self._blobs.abort(upload.session_id)
            raise
        return Copy(upload.session_id, generation, sum(piece.length for piece in pieces))

    async def _settle(
        self, repository: Repository, digest: Digest, copy: Copy, upload: Upload | None = None
    ) -> None:
        """T1, while the session is as the upload says, if others may write to it."""
        op = self._new_id()
        ranges = [only(keys.session(copy.session)), only(keys.blob(digest))]
        damaged = await self._content.damaged(digest)

        def decision(txn: Transaction) -> bool:
            now = found_upload(copy.session, txn.seen.entry(ranges[0].start))
            if upload is not None and now is not None and now.revision != upload.revision:
                raise UploadOutOfOrder(copy.session, now.offset)
            return finish_upload(txn, digest, copy, damaged, op)

        _, named = await self._decider.decide(
            repository, lambda: self._decider.look(ranges), decision, op
        )
        if not named:
            with suppress(MetadataUnavailable, StorageFailed):  # what is done is done
                await self._content.discard(digest, copy.generation)

    async def abort(self, upload: Upload) -> None:
        """End the session and forget its bytes.

        Raises:
            UploadUnknown: It is over already.
            UploadOutOfOrder: Somebody else has added to it meanwhile.
        """
        outcome = await self._decider.kv.txn(
            [upload.guard], [Delete(keys.session(upload.session_id))]
        )
        match outcome:
            case Ok():
                self._hashes.forget(upload.session_id)
                await self._blobs.abort(upload.session_id)
            case Failed(found=(None, *_)):
                raise UploadUnknown(upload.session_id)
            case Failed(found=(Entry() as entry, *_)):
                offset = codec.decode_session(entry.value).offset
                raise UploadOutOfOrder(upload.session_id, offset)
            case _:
                raise MetadataUnavailable("the upload session could not be ended")

    async def put(self, repository: Repository, digest: Digest, body: AsyncIterator[bytes]) -> None:
        """Make a body a blob of the repository in one step; what fails leaves no session.

        Raises:
            DigestMismatch: The bytes are not what was promised.
            BodyCut: As the body raised it.
            StorageFull, StorageFailed: The blob store can't take it.
        """
        upload = await self.start(repository)
        try:
            await self.finish(upload, digest, body)
        except (BodyCut, StorageFull, StorageFailed):  # nobody was told of the session
            await self._give_up(upload)
            raise

    # --- small bodies that are in memory

    async def store(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """Make a verified body a blob of the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it.
        """
        copy = await self.stage(repository, digest, body)
        try:
            await self._settle(repository, digest, copy)
        except StorageFailed:
            with suppress(MetadataUnavailable):
                await self.withdraw(digest, copy)
            raise

    async def stage(self, repository: Repository, digest: Digest, body: bytes) -> Copy:
        """As `store`, for another transaction that will name it.

        Its session is made before the copy has its name: the reaper of orphans looks there.
        """
        upload = await self.start(repository)
        try:
            generation = await self._blobs.store(upload.session_id, body, digest)
        except (StorageFull, StorageFailed):
            await self._give_up(upload)
            raise
        return Copy(upload.session_id, generation, len(body))

    async def withdraw(self, digest: Digest, copy: Copy) -> None:
        """The transaction that would have named a copy was refused: forget it."""
        outcome = await self._decider.kv.txn([], [Delete(keys.session(copy.session))])
        if isinstance(outcome, Ok):
            await self._content.discard(digest, copy.generation)
