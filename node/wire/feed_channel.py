"""What both ends of the feed's gRPC have in common: options, who calls, and what errors mean."""

from __future__ import annotations

from typing import Final

from grpc import StatusCode
from grpc.aio import AioRpcError

from node.errors import (
    Denied,
    InvalidRequest,
    NotFound,
    PeerUnavailable,
    RegistryError,
    Unauthenticated,
)
from node.wire.feed_codec import MESSAGE_BYTES

SERVICE: Final = "entrepot.feed.v1.Feed"
# The site that calls; its secret comes as a Bearer token under `authorization` (DESIGN 6).
SITE_HEADER: Final = "entrepot-site"

# Pings find a dead peer in 30 s, and the listener must not take them for an attack.
OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # What an unanswered ping really waits for: a minute, if it is not said here too.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
DIALLER_OPTIONS: Final = (
    *OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    # How long one attempt may take, which over a long line with TLS is a second or more.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)


def listener_options(*, shared: bool = False) -> tuple[tuple[str, int], ...]:
    """A listener's options; `shared` lets other processes listen on its port too."""
    return (
        *OPTIONS,
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # By default a second process could share the port, and nobody would notice.
        ("grpc.so_reuseport", int(shared)),
    )


def credentials(site: str, secret: str | None) -> tuple[tuple[str, str], ...]:
    """The headers by which a site shows who it is, on gRPC and on HTTP."""
    named = ((SITE_HEADER, site),)
    return named if secret is None else (*named, ("authorization", f"Bearer {secret}"))


def code_of(error: RegistryError) -> StatusCode:
    """What a peer is answered."""
    match error:
        case InvalidRequest():
            return StatusCode.INVALID_ARGUMENT
        case NotFound():
            return StatusCode.NOT_FOUND
        case Unauthenticated():
            return StatusCode.UNAUTHENTICATED
        case Denied():
            return StatusCode.PERMISSION_DENIED
        case _:
            return StatusCode.UNAVAILABLE


def error_of(site: str, error: AioRpcError) -> RegistryError:
    """What a peer's answer means here: `Refused` where one of the two must change, else weather."""
    code, details = error.code(), error.details() or ""
    if code is StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"peer {site} does not know us: {details}")
    if code in {StatusCode.PERMISSION_DENIED, StatusCode.FAILED_PRECONDITION}:
        return Denied(f"peer {site} refused: {details}")
    return PeerUnavailable(
        site,
        f"{code.name.lower().replace('_', ' ')}: {details}"[:500],
        reached=code not in {StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED},
    )
