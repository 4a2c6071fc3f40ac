"""Connections to the members of an etcd, and who serves next when one fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias

from aetcd.rpc.rpc_pb2_grpc import AuthStub, KVStub, LeaseStub, MaintenanceStub, WatchStub
from grpc import ChannelConnectivity, ChannelCredentials
from grpc.aio import EOF, insecure_channel, secure_channel

from node.errors import MetadataUnavailable
from node.kv_etcd_messages import Message

# gRPC tells of one channel at a time; looking at all of them is simpler than waiting for each.
_LOOK_S: Final = 0.02

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # What bounds an answer is the number of entries that is asked for.
    ("grpc.max_receive_message_length", -1),
    # Pings find a dead member in 15 s.  etcd takes pings more often than every 5 s, or without a
    # call under way, for an attack.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Whether a write is sent again is decided here.
    ("grpc.enable_retries", 0),
    # Writes never wait behind reads: else all lines to a member would share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
)

Metadata: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Where the members are (`host:port`), and what opens them: TLS, a user."""

    endpoints: tuple[str, ...]
    credentials: ChannelCredentials | None = None
    user: str | None = None
    password: str | None = None


class Line:
    """A connection to one member, shared with nobody."""

    def __init__(self, endpoint: str, credentials: ChannelCredentials | None) -> None:
        self.endpoint = endpoint
        # It was not heard when last it was given up: others are asked before it.
        self.is_silent = False
        self.channel = (
            insecure_channel(endpoint, options=_OPTIONS)
            if credentials is None
            else secure_channel(endpoint, credentials, options=_OPTIONS)
        )
        self.kv = KVStub(self.channel)
        self.watch = WatchStub(self.channel)
        self.lease = LeaseStub(self.channel)
        self.maintenance = MaintenanceStub(self.channel)
        self.auth = AuthStub(self.channel)

    @property
    def is_ready(self) -> bool:
        """Whether it is connected; if not, it begins to connect."""
        state = self.channel.get_state(try_to_connect=True)
        return state is ChannelConnectivity.READY

    async def keep_alive(self, request: Message, *, timeout: float, metadata: Metadata) -> Message:
        """One question and one answer: etcd itself keeps leases alive on streams only.

        Raises:
            EOFError: The stream ended without an answer.
        """
        call = self.lease.LeaseKeepAlive(timeout=timeout, metadata=metadata)
        try:
            await call.write(request)
            answer = await call.read()
        finally:
            call.cancel()
        if answer is EOF:
            raise EOFError
        return answer


Method: TypeAlias = Callable[[Line], Callable[..., Awaitable[Message]]]


class Ring:
    """A line to each member; the one that serves does so until it fails."""

    def __init__(self, access: Access) -> None:
        # Clients that begin with different members share the work between them.
        endpoints = random.sample(access.endpoints, len(access.endpoints))
        self.lines = [Line(endpoint, access.credentials) for endpoint in endpoints]
        self._closed = False

    async def ready(self, until: float) -> Line:
        """The line that serves; another if it is not connected, or is silent.

        Raises:
            MetadataUnavailable: None was, until then (by the loop's clock), or they are closed.
        """
        loop = asyncio.get_running_loop()
        while not self._closed:
            ready = [line for line in self.lines if line.is_ready]
            if ready:
                return min(ready, key=attrgetter("is_silent"))
            if loop.time() >= until:
                raise MetadataUnavailable("no member of etcd can be reached")
            await asyncio.sleep(_LOOK_S)
        raise MetadataUnavailable("it is closed")

    def leave(self, line: Line) -> None:
        """Let others serve before this one."""
        self.lines.remove(line)
        self.lines.append(line)

    async def close(self, grace_s: float) -> None:
        """Begin nothing more; calls under way get so long to end."""
        self._closed = True
        async with asyncio.TaskGroup() as group:
            for line in self.lines:
                group.create_task(line.channel.close(grace_s))
