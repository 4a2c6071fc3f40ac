"""The Feed: what this site's peers ask it for over gRPC (DESIGN 6).

Who calls is proven by the secret of the pair, on every call.  A peer is told what both its own
filter and this site's filter for it let through, and nothing else.  What a peer sends is read whole
before anything is done with it; nonsense is answered INVALID_ARGUMENT.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeAlias, TypeVar

import structlog
from google.protobuf.message import Message
from grpc import StatusCode, aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc  # type: ignore[import-untyped]  # ships none
from prometheus_client import Counter, Gauge

from gateway.auth import Peers
from gateway.feed_acks import Acks
from gateway.feed_registers import Registers
from gateway.feed_source import FeedSource
from node import keys
from node.acked import let_through
from node.config_models import Peer
from node.config_values import Address
from node.errors import RegistryError, Unauthenticated
from node.keys import Name
from node.kv import Entry, only
from node.life import LifeEnded
from node.lifecycle import binding
from node.losses import Losses
from node.records import Cursor
from node.scans import Scans
from node.site import Site, now_ms
from node.telemetry import Metrics
from node.wire import codec, feed_codec, hello_codec, roots_codec
from node.wire import feed_pb2 as pb
from node.wire.feed_channel import SERVICE, SITE_HEADER, code_of, listener_options
from node.wire.feed_codec import PROTOCOL, Batch, Start
from node.wire.feed_pb2_grpc import FeedServicer, add_FeedServicer_to_server
from node.wire.hello_codec import Hello
from node.wire.roots_codec import TheirNames, TheirRoots

M = TypeVar("M", bound=Message)
R = TypeVar("R")
T = TypeVar("T")
P = TypeVar("P")

Heard: TypeAlias = Callable[[int], Awaitable[None]]

_START_LIMIT_S: Final = 10.0

_log = structlog.stdlib.get_logger(__name__)


class FeedServer:
    """Publishes one site's changes to the peers of its configuration.

    `heard` is shown a revision of this life that a peer knows and the metadata has not come to; see
    `Life.heard`.
    """

    def __init__(
        self, site: Site, peers: Sequence[Peer], metrics: Metrics, *, heard: Heard
    ) -> None:
        self._site = site
        self._peers = peers
        self._heard = heard
        self._streams = metrics.gauge("feed_streams", "Streams of changes to a peer.", "peer")
        self._sent = metrics.counter("feed_changes", "Changes sent to a peer.", "peer")
        self._health = health.aio.HealthServicer()
        self._server: aio.Server | None = None

    async def start(self, listen: Address, *, shared: bool = False) -> None:
        """Listen; `shared` if other workers of the site listen there too.

        Raises:
            ConfigError: The address is in use, or this machine does not have it.
        """
        server = aio.server(options=listener_options(shared=shared))
        feed = _Feed(self._site, self._peers, self._streams, self._sent, self._heard)
        add_FeedServicer_to_server(feed, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        with binding("grpc.listen", listen):
            _try_to_bind(listen, shared=shared)
            server.add_insecure_port(str(listen))
        await server.start()
        self._server = server
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Stop listening and end all streams; peers see UNAVAILABLE and try another gateway."""
        await self._health.enter_graceful_shutdown()
        if self._server is not None:
            await self._server.stop(None)


def _try_to_bind(address: Address, *, shared: bool) -> None:
    """A socket tells what is wrong; grpc only that it failed, and writes lines of its own.

    Nothing listens on it: of a shared port that would take a connection, and drop it.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        probe.bind((address.host, address.port))


class _Feed(FeedServicer):
    """The calls of feed.proto."""

    def __init__(
        self, site: Site, peers: Sequence[Peer], streams: Gauge, sent: Counter, heard: Heard
    ) -> None:
        self._heard = heard
        self._site = site
        self._known = Peers(peers)
        self._peers = {peer.site: peer for peer in peers}
        self._streams = streams
        self._sent = sent
        self._registers = Registers()
        self._scans = Scans(site.kv)
        self._losses = Losses(site.kv, site.blobs)

    async def Hello(  # noqa: N802 - gRPC's names
        self,
        request: pb.HelloRequest,
        context: aio.ServicerContext[pb.HelloRequest, pb.HelloReply],
    ) -> pb.HelloReply:
        """Who is there."""
        peer = await self._caller(context)
        theirs = await _parsed(context, hello_codec.read_hello, request)
        if theirs.site != peer.site or theirs.protocol != PROTOCOL:
            ours = f"this is site {self._site.record.name}, protocol {PROTOCOL}"
            await context.abort(StatusCode.FAILED_PRECONDITION, ours)
        known = only(keys.cursor(peer.site))
        newest = await _done(context, self._site.kv.read([only(keys.SITE), known]))
        record = self._site.record
        return hello_codec.hello_reply(
            Hello(
                record.name,
                record.incarnation,
                now_ms(),
                newest.revision,
                filters=let_through(peer).fingerprint,
                filter=let_through(peer),
                known=_known(newest.ranges[1], theirs.incarnation),
            )
        )

    async def Changes(  # type: ignore[override]  # noqa: N802 - gRPC's names; mypy-protobuf knows generators only, which a cancelled write would leave open
        self,
        requests: AsyncIterator[pb.ChangesRequest],
        context: aio.ServicerContext[pb.ChangesRequest, pb.ChangeBatch],
    ) -> None:
        """Changes after a cursor, for ever; acks come back on the same stream."""
        peer = await self._caller(context)
        start = await self._start(requests, context)
        source = FeedSource(self._site, self._registers, (let_through(peer), start.filter))
        acks = Acks(self._site, peer.site, let_through(peer), start.filter)
        newest = await _done(context, self._site.kv.read([only(keys.SITE)]))
        ours = start.cursor.incarnation == self._site.record.incarnation
        if ours and start.cursor.revision > newest.revision:
            await self._restored(start.cursor.revision, context)
        stream = _Stream(context, requests, acks, self._sent.labels(peer.site), newest.revision)
        with self._streams.labels(peer.site).track_inprogress():
            await _done(context, stream.run(source.changes(start.cursor)))

    async def _restored(
        self, revision: int, context: aio.ServicerContext[pb.ChangesRequest, pb.ChangeBatch]
    ) -> None:
        try:
            await _done(context, self._heard(revision))
        except LifeEnded as err:
            await context.abort(StatusCode.UNAVAILABLE, str(err))

    async def _start(
        self,
        requests: AsyncIterator[pb.ChangesRequest],
        context: aio.ServicerContext[pb.ChangesRequest, pb.ChangeBatch],
    ) -> Start:
        try:
            async with asyncio.timeout(_START_LIMIT_S):
                first = await anext(requests, pb.ChangesRequest())
        except TimeoutError:
            await context.abort(StatusCode.DEADLINE_EXCEEDED, "no start came")
        start = await _parsed(context, feed_codec.read_changes_request, first)
        if not isinstance(start, Start):
            await context.abort(StatusCode.INVALID_ARGUMENT, "the first message is no start")
        return start

    async def Have(  # noqa: N802 - gRPC's names
        self,
        request: pb.HaveRequest,
        context: aio.ServicerContext[pb.HaveRequest, pb.HaveReply],
    ) -> pb.HaveReply:
        """Which of these digests can be read here."""
        source = await self._source(context)
        repository, digests = await _parsed(context, feed_codec.read_have_request, request)
        return feed_codec.have_reply(await _done(context, source.have(repository, digests)))

    async def Keys(  # noqa: N802 - gRPC's names
        self,
        request: pb.KeysRequest,
        context: aio.ServicerContext[pb.KeysRequest, pb.KeysReply],
    ) -> pb.KeysReply:
        """The present registers of these names."""
        source = await self._source(context)
        names = await _parsed(context, feed_codec.read_keys_request, request)
        return feed_codec.keys_reply(await _done(context, source.keys(names)))

    async def Repository(  # type: ignore[override]  # noqa: N802 - as Changes
        self,
        request: pb.RepositoryRequest,
        context: aio.ServicerContext[pb.RepositoryRequest, pb.ChangeBatch],
    ) -> None:
        """All of one repository as it stands, manifests before tags."""
        peer = await self._caller(context)
        name, theirs = await _parsed(context, feed_codec.read_repository_request, request)
        source = FeedSource(self._site, self._registers, (let_through(peer), theirs))
        await _done(context, _send(context, source.repository(name)))

    async def Roots(  # noqa: N802 - gRPC's names
        self,
        request: pb.RootsRequest,
        context: aio.ServicerContext[pb.RootsRequest, pb.RootsReply],
    ) -> pb.RootsReply:
        """Sums over all that the caller may have and wants."""
        peer = await self._caller(context)
        theirs = await _parsed(context, roots_codec.read_roots_request, request)
        scanned = await _done(context, self._scans.roots((let_through(peer), theirs)))
        lost = await _done(context, self._losses.count())
        told = TheirRoots(self._site.record.incarnation, scanned, lost)
        return roots_codec.roots_reply(told)

    async def Bucket(  # type: ignore[override]  # noqa: N802 - as Changes
        self,
        request: pb.BucketRequest,
        context: aio.ServicerContext[pb.BucketRequest, pb.BucketReply],
    ) -> None:
        """The names in some buckets, and the hash of each."""
        peer = await self._caller(context)
        theirs, buckets = await _parsed(context, roots_codec.read_bucket_request, request)
        names = self._scans.names((let_through(peer), theirs), buckets)
        await _done(context, _send_names(context, self._site.record.incarnation, names))

    async def _caller(self, context: aio.ServicerContext[M, R]) -> Peer:
        """The peer that calls; a call by anybody else ends here."""
        sent = dict(context.invocation_metadata() or ())
        name, token = _text(sent.get(SITE_HEADER)), _text(sent.get("authorization"))
        try:
            self._known.verify_token(name, token)
        except Unauthenticated as err:
            _log.warning("a peer was turned away", claims=name, address=context.peer())
            await context.abort(StatusCode.UNAUTHENTICATED, str(err))
        return self._peers[name]

    async def _source(self, context: aio.ServicerContext[M, R]) -> FeedSource:
        return FeedSource(self._site, self._registers, (let_through(await self._caller(context)),))


class _Stream:
    """One stream of changes, and the acks that come back on it."""

    def __init__(
        self,
        context: aio.ServicerContext[pb.ChangesRequest, pb.ChangeBatch],
        requests: AsyncIterator[pb.ChangesRequest],
        acks: Acks,
        sent: Counter,
        head: int,
    ) -> None:
        self._context = context
        self._requests = requests
        self._acks = acks
        self._sent = sent
        self._head = head

    async def run(self, batches: AsyncGenerator[Batch, None]) -> None:
        """Send batches until the peer leaves.

        Raises:
            MetadataUnavailable: The KV went away.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._acks.run())
                group.create_task(self._listen())
                await _send(self._context, self._counted(batches))
        except BaseExceptionGroup as several:
            # Whichever came first ended the others.
            if not isinstance(several.exceptions[0], _Left):
                raise several.exceptions[0] from None

    async def _counted(self, batches: AsyncGenerator[Batch, None]) -> AsyncGenerator[Batch, None]:
        async with aclosing(batches):
            async for batch in batches:
                self._head = max(self._head, batch.head)
                yield batch
                self._sent.inc(len(batch.changes))

    async def _listen(self) -> None:
        async for request in self._requests:
            ack = await _parsed(self._context, feed_codec.read_changes_request, request)
            if isinstance(ack, Start):
                await self._context.abort(StatusCode.INVALID_ARGUMENT, "a second start")
            if ack is not None:
                self._acks.take(ack, self._head)
        raise _Left


class _Left(Exception):
    """The peer has ended its side of the stream."""


async def _send(
    context: aio.ServicerContext[M, pb.ChangeBatch], batches: AsyncGenerator[Batch, None]
) -> None:
    """Write each batch; the next is made only when the last was written."""
    async with aclosing(batches):
        async for batch in batches:
            await context.write(feed_codec.batch_message(batch))


async def _send_names(
    context: aio.ServicerContext[pb.BucketRequest, pb.BucketReply],
    incarnation: str,
    names: AsyncGenerator[dict[Name, int], None],
) -> None:
    async with aclosing(names):
        async for page in names:
            await context.write(roots_codec.bucket_reply(TheirNames(incarnation, page)))


async def _parsed(context: aio.ServicerContext[M, R], read: Callable[[P], T], message: P) -> T:
    """What a peer's message says; nonsense ends the call."""
    try:
        return read(message)
    except ValueError as err:
        await context.abort(StatusCode.INVALID_ARGUMENT, str(err))


async def _done(context: aio.ServicerContext[M, R], work: Awaitable[T]) -> T:
    """The result of some work; what it refuses ends the call with the code for it."""
    try:
        return await work
    except RegistryError as err:
        await context.abort(code_of(err), str(err))


def _known(cursors: Sequence[Entry], incarnation: str) -> int:
    """How far a life of a peer is known here."""
    cursor = codec.decode_cursor(cursors[0].value) if cursors else Cursor("", 0)
    return cursor.revision if cursor.incarnation == incarnation else 0


def _text(value: str | bytes | None) -> str:
    return value if isinstance(value, str) else ""
