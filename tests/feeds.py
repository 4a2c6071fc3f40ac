"""A feed over gRPC within a test: a real listener and a real dialler, over sites in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

from grpc import aio
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr

from gateway.feed import FeedServer, Heard
from node.config_models import Peer
from node.config_values import Address
from node.globs import Filter
from node.reads import JoinedReads
from node.records import Cursor, SiteRecord
from node.remote import Remote, new_session
from node.site import Site
from node.telemetry import Metrics
from node.wire import feed_codec, hello_codec
from node.wire import feed_pb2 as pb
from node.wire.feed_codec import MINOR, Batch
from node.wire.feed_pb2_grpc import FeedServicer, add_FeedServicer_to_server
from node.wire.hello_codec import Hello
from replicator.bandwidth import Throttle
from replicator.feed_client import FeedClient, FeedStream
from replicator.sources import Source, Sources
from tests.model import Model
from tests.ports import free_port

# Held for all tests: else the last object of grpc to go joins its thread, on somebody's loop.
aio.init_grpc_aio()

Batches: TypeAlias = AsyncGenerator[Batch, None]


def site_of(model: Model, name: str = "fra", incarnation: str = "1") -> Site:
    """A site over a model's fakes."""
    return Site(
        SiteRecord(name, incarnation),
        model.kv,
        model.blobs,
        JoinedReads(model.kv),
        model.decider,
        model.staging,
        model.content,
        model.uploads,
        model.metadata,
    )


def peer_at(
    port: int,
    site: str,
    secret: str | None = None,
    repositories: Sequence[str] = ("**",),
    tags: Sequence[str] = ("**",),
) -> Peer:
    """A peer's configuration, with a secret that was read already."""
    peer = Peer(
        site=site,
        http=f"http://127.0.0.1:{port + 1}",
        grpc=Address("127.0.0.1", port),
        repositories=tuple(repositories),
        tags=tuple(tags),
    )
    vars(peer)["secret"] = None if secret is None else SecretStr(secret)
    return peer


async def unheard(revision: int) -> None:
    """No peer knows more of the site than it does."""
    raise AssertionError(revision)


@asynccontextmanager
async def served(
    site: Site, peers: Sequence[Peer], port: int, heard: Heard | None = None
) -> AsyncIterator[FeedServer]:
    """The site's feed, until the body ends; nobody knows more of it than it does, if not said."""
    server = FeedServer(site, peers, Metrics("gateway"), heard=heard or unheard)
    await server.start(Address("127.0.0.1", port))
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def dialled(peer: Peer, name: str = "nyc") -> AsyncIterator[FeedClient]:
    """A client of a peer's feed, as the site of this name calls it."""
    async with new_session() as session:
        remote = Remote(session, peer.site, peer.http, {})
        received = Counter("received", "Bytes.", registry=CollectorRegistry())
        source = Source(remote, Filter(), Throttle(None), received)
        client = FeedClient(peer, SiteRecord(name, "life of " + name), Sources(source))
        try:
            yield client
        finally:
            await client.close()


@asynccontextmanager
async def told(client: FeedClient, cursor: Cursor) -> AsyncIterator[tuple[FeedStream, Batches]]:
    """An open stream of changes after a cursor, and its batches."""
    async with client.changes(cursor) as stream, aclosing(stream.batches()) as batches:
        yield stream, batches


@asynccontextmanager
async def feed(model: Model) -> AsyncIterator[FeedClient]:
    """What site nyc sees of site fra's feed."""
    port = free_port()
    async with (
        served(site_of(model), [peer_at(free_port(), "nyc")], port),
        dialled(peer_at(port, "fra")) as client,
    ):
        yield client


class _Babbler(FeedServicer):
    """A peer whose every answer is nonsense."""

    async def Hello(self, request: Any, context: Any) -> pb.HelloReply:  # noqa: N802 - gRPC's
        """No site."""
        del request, context
        return pb.HelloReply()

    async def Changes(self, requests: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """A change of no repository."""
        del requests, context
        yield pb.ChangeBatch(incarnation="1", changes=[pb.Change(tag="v1")], revision=1)

    async def Have(self, request: Any, context: Any) -> pb.HaveReply:  # noqa: N802 - gRPC's
        """No digest."""
        del request, context
        return pb.HaveReply(digests=[b"x"])

    async def Keys(self, request: Any, context: Any) -> pb.KeysReply:  # noqa: N802 - gRPC's
        """A change without a register."""
        del request, context
        return pb.KeysReply(changes=[pb.Change(repository="a", tag="b")])

    async def Repository(self, request: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """A batch of no life."""
        del request, context
        yield pb.ChangeBatch()

    async def Roots(self, request: Any, context: Any) -> pb.RootsReply:  # noqa: N802 - gRPC's
        """No sums."""
        del request, context
        return pb.RootsReply(incarnation="1")

    async def Bucket(self, request: Any, context: Any) -> AsyncIterator[pb.BucketReply]:  # noqa: N802 - gRPC's
        """A name without a hash."""
        del request, context
        yield pb.BucketReply(
            incarnation="1", names=[pb.BucketReply.Named(name=pb.Name(repository="a", tag="b"))]
        )


class _Teller(_Babbler):
    """A peer that tells these batches, whatever it is asked for."""

    def __init__(self, messages: Sequence[pb.ChangeBatch], minor: int) -> None:
        self._messages = messages
        self._minor = minor

    async def Hello(self, request: Any, context: Any) -> pb.HelloReply:  # noqa: N802 - gRPC's
        """Site fra."""
        del request, context
        life = self._messages[0].incarnation
        return hello_codec.hello_reply(Hello("fra", life, 1, minor=self._minor))

    async def Changes(self, requests: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """The changes, and then nothing."""
        del requests, context
        for message in self._messages:
            yield message
        await asyncio.Event().wait()

    async def Repository(self, request: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """The changes."""
        del request, context
        for message in self._messages:
            yield message


@asynccontextmanager
async def babbling() -> AsyncIterator[FeedClient]:
    """What is seen of a peer that talks nonsense."""
    async with _seen(_Babbler(), {}) as client:
        yield client


@asynccontextmanager
async def telling(
    *batches: Batch | pb.ChangeBatch, minor: int = MINOR, **filters: Sequence[str]
) -> AsyncIterator[FeedClient]:
    """What is seen, through our filters, of a peer that tells this whatever it is asked for."""
    messages = [feed_codec.batch_message(b) if isinstance(b, Batch) else b for b in batches]
    async with _seen(_Teller(messages, minor), filters) as client:
        yield client


@asynccontextmanager
async def _seen(
    servicer: FeedServicer, filters: Mapping[str, Sequence[str]]
) -> AsyncIterator[FeedClient]:
    port = free_port()
    server = aio.server()
    add_FeedServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    async with dialled(peer_at(port, "fra", None, **filters)) as client:
        yield client
    await server.stop(None)
