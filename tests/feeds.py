"""A feed over gRPC within a test: a real listener and a real dialler, over sites in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeAlias

from grpc import aio
from pydantic import SecretStr

from gateway.feed import FeedServer
from node.config_models import Address, Peer
from node.reads import JoinedReads
from node.records import Cursor, SiteRecord
from node.remote import Remote, new_session
from node.site import Site
from node.telemetry import Metrics
from node.wire import feed_codec
from node.wire import feed_pb2 as pb
from node.wire.feed_codec import Batch, Hello
from node.wire.feed_pb2_grpc import FeedServicer, add_FeedServicer_to_server
from replicator.feed_client import FeedClient, FeedStream
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


@asynccontextmanager
async def served(site: Site, peers: Sequence[Peer], port: int) -> AsyncIterator[FeedServer]:
    """The site's feed, until the body ends."""
    server = FeedServer(site, peers, Metrics("gateway"))
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
        client = FeedClient(peer, SiteRecord(name, "life of " + name), remote)
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


class _Teller(_Babbler):
    """A peer that tells these changes, whatever it is asked for."""

    def __init__(self, message: pb.ChangeBatch) -> None:
        self._message = message

    async def Hello(self, request: Any, context: Any) -> pb.HelloReply:  # noqa: N802 - gRPC's
        """Site fra."""
        del request, context
        return feed_codec.hello_reply(Hello("fra", self._message.incarnation, 1))

    async def Changes(self, requests: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """The changes, and then nothing."""
        del requests, context
        yield self._message
        await asyncio.Event().wait()

    async def Repository(self, request: Any, context: Any) -> AsyncIterator[pb.ChangeBatch]:  # noqa: N802 - gRPC's
        """The changes."""
        del request, context
        yield self._message


@asynccontextmanager
async def babbling() -> AsyncIterator[FeedClient]:
    """What is seen of a peer that talks nonsense."""
    async with _seen(_Babbler(), {}) as client:
        yield client


@asynccontextmanager
async def telling(
    batch: Batch | pb.ChangeBatch, **filters: Sequence[str]
) -> AsyncIterator[FeedClient]:
    """What is seen, through our filters, of a peer that tells a batch whatever it is asked for."""
    message = feed_codec.batch_message(batch) if isinstance(batch, Batch) else batch
    async with _seen(_Teller(message), filters) as client:
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
