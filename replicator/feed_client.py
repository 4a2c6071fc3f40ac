"""One peer's Feed, as its follower calls it.

Whatever the peer answers is read whole before it is handed on.  What makes no sense raises
`FeedDamaged`, a change that makes none is told as `Batch.unreadable`; an answer that refuses us
raises one of `Refused`; all else is weather, `PeerUnavailable`.
The peer is asked to filter, and is not trusted to: what this site's filter for it does not take is
dropped here, so a peer writes to no repository that it was not given.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Final, Protocol, TypeVar

import structlog
from grpc import ChannelConnectivity, StatusCode, aio

from node.change import Change
from node.config_models import Peer
from node.digest import Digest
from node.errors import Denied, PeerUnavailable
from node.globs import Filter
from node.keys import Name, TagName
from node.records import Cursor, Report, SiteRecord
from node.reference import Repository, Tag
from node.roots import passes
from node.wire import feed_codec, hello_codec, roots_codec
from node.wire import feed_pb2 as pb
from node.wire.ack_codec import ack_message
from node.wire.feed_channel import DIALLER_OPTIONS, credentials, error_of
from node.wire.feed_codec import PROTOCOL, Batch, Start
from node.wire.feed_pb2_grpc import FeedStub
from node.wire.hello_codec import Hello
from node.wire.roots_codec import TheirNames, TheirRoots

T = TypeVar("T")
P = TypeVar("P")

_CALL_S: Final = 10.0
_SILENT_S: Final = 60.0
_LOOK_S: Final = 0.1
# Before it answers, a peer may have to read all that it has.
_ROOTS_S: Final = 300.0
# The largest manifest that any site is configured to take.
_MANIFEST_BYTES: Final = 16 << 20

_log = structlog.stdlib.get_logger(__name__)


class FeedDamaged(Exception):
    """A peer's feed can't be read: it is broken, or speaks another language; nothing was applied.

    Like `node.kv.Compacted` it is raised and handled inside of one process, so it is no
    `RegistryError`.
    """

    def __init__(self, site: str, reason: str) -> None:
        super().__init__(f"peer {site} sent a feed that can't be read: {reason}")
        self.site = site
        self.reason = reason


class FeedStream:
    """An open stream of changes: batches come, acks go."""

    def __init__(
        self,
        call: aio.StreamStreamCall[pb.ChangesRequest, pb.ChangeBatch],
        site: str,
        taken: Callable[[Batch], Batch],
    ) -> None:
        self._call = call
        self._site = site
        self._taken = taken

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """Batches until the peer ends the stream.

        Raises:
            FeedDamaged, PeerUnavailable, Refused: See the module.
        """
        while True:
            with _weather(self._site):
                message = await self._call.read()
            if not isinstance(message, pb.ChangeBatch):
                return
            yield self._taken(_read(self._site, feed_codec.read_batch, message))

    async def ack(self, report: Report) -> None:
        """Tell how far the source's life has been applied here, and what of it has not.

        Raises:
            PeerUnavailable, Refused: The stream is over.
        """
        try:
            with _weather(self._site):
                await self._call.write(ack_message(report))
        except asyncio.CancelledError as err:
            # So grpc tells a writer that the call was cancelled, by whoever reads it; taken for the
            # end of the writer's own task it would end that without a word.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise PeerUnavailable(self._site, "the stream is over") from err


class Manifests(Protocol):
    """Where the bodies of manifests come from: `replicator.sources.Sources`."""

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """A manifest's body, verified.

        Raises:
            PeerUnavailable: Nobody reachable has it.
            PeerLied: The only one that could be asked sent something else.
        """
        ...


class FeedClient:
    """Calls one peer; it connects by itself and again, `close` ends it."""

    def __init__(self, peer: Peer, record: SiteRecord, manifests: Manifests) -> None:
        self.site = peer.site
        self._record = record
        self._manifests = manifests
        self._filter = Filter(peer.repositories, peer.tags)
        self.deletes = peer.deletes
        self._told_of_dropped = False
        self._told_of_unknown = False
        self._channel = aio.insecure_channel(str(peer.grpc), options=DIALLER_OPTIONS)
        self._stub = FeedStub(self._channel)
        secret = peer.secret.get_secret_value() if peer.secret else None
        self._credentials = credentials(record.name, secret)

    @property
    def filter(self) -> Filter:
        """What is taken of the peer."""
        return self._filter

    @property
    def takes(self) -> str:
        """The fingerprint of what is taken of the peer, and whether its deletes are."""
        return self._filter.fingerprint if self.deletes else f"{self._filter.fingerprint}+"

    @property
    def record(self) -> SiteRecord:
        """The site that calls."""
        return self._record

    async def close(self) -> None:
        """End the connection and whatever is called on it."""
        await self._channel.close()

    async def reconnected(self) -> None:
        """Return when a connection that is broken, or breaks from now on, is there again."""
        # Calls may hear of its end before the channel does, which is then still said to be ready.
        # It is looked at, for grpc has no way to take back that one waits for it to change.
        channel, ready = self._channel, ChannelConnectivity.READY
        while channel.get_state(try_to_connect=True) is ready:  # noqa: ASYNC110 - above
            await asyncio.sleep(_LOOK_S)
        await channel.channel_ready()

    async def hello(self, now_ms: int) -> Hello:
        """Who is there.

        Raises:
            Denied: Another site than it should be, or one of another protocol.
            FeedDamaged, PeerUnavailable, Refused: See the module.
        """
        ours = Hello(self._record.name, self._record.incarnation, now_ms)
        with _weather(self.site):
            reply = await self._stub.Hello(
                hello_codec.hello_request(ours), metadata=self._credentials, timeout=_CALL_S
            )
        theirs = _read(self.site, hello_codec.read_hello, reply)
        if theirs.site != self.site:
            raise Denied(f"peer {self.site} is configured at the address of site {theirs.site}")
        if theirs.protocol != PROTOCOL:
            raise Denied(f"peer {self.site} speaks protocol {theirs.protocol}, we {PROTOCOL}")
        return theirs

    @asynccontextmanager
    async def changes(self, cursor: Cursor) -> AsyncIterator[FeedStream]:
        """Open a stream of changes after a cursor.

        Raises:
            PeerUnavailable, Refused: See the module.
        """
        call = self._stub.Changes(metadata=self._credentials)
        try:
            with _weather(self.site):
                await call.write(feed_codec.start_message(Start(cursor, self._filter)))
            yield FeedStream(call, self.site, self._taken)
        finally:
            call.cancel()

    async def repository(self, name: Repository) -> AsyncGenerator[Batch, None]:
        """All of a repository as it stands; the last batch is not `scanning` and says as of when.

        Raises:
            FeedDamaged, PeerUnavailable, Refused: See the module.
        """
        request = feed_codec.repository_request(name, self._filter)
        call = self._stub.Repository(request, metadata=self._credentials)
        try:
            while True:
                message = await self._answered(call.read())
                if not isinstance(message, pb.ChangeBatch):
                    return
                batch = _read(self.site, feed_codec.read_batch, message)
                yield self._taken(batch, within=name)
        finally:
            call.cancel()

    # --- for replicator.compare.Peer

    async def roots(self) -> TheirRoots | None:
        """What all adds up to that the peer has for us; None if its version can't say.

        Raises:
            FeedDamaged, PeerUnavailable, Refused: See the module.
        """
        request = roots_codec.roots_request(self._filter)
        with _weather(self.site):
            try:
                reply = await self._stub.Roots(
                    request, metadata=self._credentials, timeout=_ROOTS_S
                )
            except aio.AioRpcError as err:
                if err.code() is StatusCode.UNIMPLEMENTED:
                    return None
                raise
        return _read(self.site, roots_codec.read_roots_reply, reply)

    async def names(self, buckets: Sequence[int]) -> AsyncGenerator[TheirNames, None]:
        """The names that the peer has in some buckets, and the hash of each.

        Raises:
            FeedDamaged, PeerUnavailable, Refused: See the module.
        """
        request = roots_codec.bucket_request(self._filter, buckets)
        call = self._stub.Bucket(request, metadata=self._credentials)
        try:
            while True:
                message = await self._answered(call.read())
                if not isinstance(message, pb.BucketReply):
                    return
                told = _read(self.site, roots_codec.read_bucket_reply, message)
                taken = {n: h for n, h in told.hashes.items() if passes(n, (self._filter,))}
                yield replace(told, hashes=taken)
        finally:
            call.cancel()

    async def _answered(self, message: Awaitable[T]) -> T:
        """The next message of an answer that has an end: silence is none."""
        try:
            async with asyncio.timeout(_SILENT_S):
                with _weather(self.site):
                    return await message
        except TimeoutError as err:
            raise PeerUnavailable(self.site, "it began an answer and went silent") from err

    def _taken(self, batch: Batch, within: Repository | None = None) -> Batch:
        """The batch without what was not asked for."""

        def takes(repository: Repository, tag: Tag | None = None) -> bool:
            return within in {None, repository} and self._filter.takes(repository, tag)

        dropped = [c.name for c in batch.changes if not takes(c.name.repository, _tag(c.name))]
        if batch.unknown and not self._told_of_unknown:
            self._told_of_unknown = True
            _log.warning("a peer of a newer version tells what we do not know", peer=self.site)
        if dropped and not self._told_of_dropped:
            self._told_of_dropped = True
            _log.warning("a peer sends what it was not asked for", peer=self.site, name=dropped[0])
        return replace(
            batch,
            changes=tuple(c for c in batch.changes if takes(c.name.repository, _tag(c.name))),
            unreadable={name: why for name, why in batch.unreadable.items() if takes(name)},
        )

    # --- for replicator.apply.Source

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """The peer's present registers of these names; None for those that it has none of.

        Raises:
            PeerUnavailable: No answer, or none of use.
        """
        told: dict[Name, Change | None] = {}
        for start in range(0, len(names), feed_codec.NAMES):
            asked = names[start : start + feed_codec.NAMES]
            with _weather(self.site):
                reply = await self._stub.Keys(
                    feed_codec.keys_request(asked), metadata=self._credentials, timeout=_CALL_S
                )
            try:
                told.update(feed_codec.read_keys_reply(reply, asked))
            except ValueError as err:
                raise PeerUnavailable(self.site, f"sent keys that can't be read: {err}") from err
        return told

    async def body(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """A manifest's body, verified.

        Raises:
            PeerUnavailable: Nobody reachable has it, or it is too large for one.
            PeerLied: The only one that could be asked sent something else.
        """
        if size > _MANIFEST_BYTES:
            raise PeerUnavailable(self.site, f"{digest} has {size} bytes, too many for a manifest")
        return await self._manifests.manifest(repository, digest, size)


def _tag(name: Name) -> Tag | None:
    return name.tag if isinstance(name, TagName) else None


@contextmanager
def _weather(site: str) -> Iterator[None]:
    try:
        yield
    except aio.AioRpcError as err:
        raise error_of(site, err) from err
    except (asyncio.InvalidStateError, aio.UsageError) as err:
        # What grpc says of a call that has ended meanwhile.
        raise PeerUnavailable(site, "the stream is over") from err


def _read(site: str, read: Callable[[P], T], message: P) -> T:
    try:
        return read(message)
    except ValueError as err:
        raise FeedDamaged(site, str(err)) from err
