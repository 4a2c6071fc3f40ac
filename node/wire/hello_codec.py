"""The first messages of two sites: who is there, in which life; see `node.wire.feed_codec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from node.globs import Filter
from node.wire import feed_pb2 as pb
from node.wire.feed_codec import (
    MINOR,
    MOST_MS,
    PROTOCOL,
    filter_message,
    read_filter,
    read_incarnation,
    read_number,
)

_SITE_LENGTH: Final = 63
_FINGERPRINT_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, and its clock (ms); a reply has its newest revision and its filter for us too.

    `filters` is the fingerprint of that filter; the filter itself older versions do not tell.
    `known` is how far a reply's site has heard of the caller in the life that the caller named.
    """

    site: str
    incarnation: str
    ms: int
    revision: int = 0
    protocol: int = PROTOCOL
    filters: str = ""
    filter: Filter | None = None
    minor: int = MINOR
    known: int = 0


def hello_request(hello: Hello) -> pb.HelloRequest:
    return pb.HelloRequest(
        site=hello.site,
        incarnation=hello.incarnation,
        protocol=hello.protocol,
        ms=hello.ms,
        minor=hello.minor,
    )


def hello_reply(hello: Hello) -> pb.HelloReply:
    return pb.HelloReply(
        site=hello.site,
        incarnation=hello.incarnation,
        protocol=hello.protocol,
        ms=hello.ms,
        revision=hello.revision,
        filters=hello.filters,
        filter=None if hello.filter is None else filter_message(hello.filter),
        minor=hello.minor,
        known=hello.known,
    )


def read_hello(message: pb.HelloRequest | pb.HelloReply) -> Hello:
    """Raises: ValueError: It names no site or no incarnation, or its clock is no time."""
    if not 0 < len(message.site) <= _SITE_LENGTH:
        raise ValueError("no name of a site")
    if not 0 <= message.ms <= MOST_MS:
        raise ValueError("no time")
    reply = message if isinstance(message, pb.HelloReply) else pb.HelloReply()
    if len(reply.filters) > _FINGERPRINT_LENGTH:
        raise ValueError("a fingerprint is too long")
    return Hello(
        message.site,
        read_incarnation(message.incarnation),
        message.ms,
        read_number(reply.revision),
        message.protocol,
        reply.filters,
        read_filter(reply.filter) if reply.HasField("filter") else None,
        message.minor,
        read_number(reply.known),
    )
