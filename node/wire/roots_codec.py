"""The messages by which two sites compare what they hold; see `node.wire.feed_codec`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node.globs import Filter
from node.keys import Name
from node.roots import BUCKETS, HASH_BYTES, Roots, Scanned
from node.wire import feed_pb2 as pb
from node.wire.feed_codec import (
    filter_message,
    name_message,
    read_filter,
    read_incarnation,
    read_name,
)


@dataclass(frozen=True, slots=True)
class TheirRoots:
    """What a site in one of its lives says of all that it holds.

    `lost` counts blobs of which it has a record and no file, as of some minutes ago.
    """

    incarnation: str
    scanned: Scanned
    lost: int = 0


@dataclass(frozen=True, slots=True)
class TheirNames:
    """Some names that a site in one of its lives holds, and the hash of each."""

    incarnation: str
    hashes: Mapping[Name, int]


def roots_request(wanted: Filter) -> pb.RootsRequest:
    return pb.RootsRequest(filter=filter_message(wanted))


def read_roots_request(message: pb.RootsRequest) -> Filter:
    """Raises: ValueError: It is no filter."""
    return read_filter(message.filter)


def roots_reply(theirs: TheirRoots) -> pb.RootsReply:
    roots = theirs.scanned.roots
    return pb.RootsReply(
        incarnation=theirs.incarnation,
        revision=theirs.scanned.revision,
        exact=theirs.scanned.exact,
        sums=[number.to_bytes(HASH_BYTES, "big") for number in roots.sums],
        live=roots.live,
        tombstones=roots.tombstones,
        lost=theirs.lost,
    )


def read_roots_reply(message: pb.RootsReply) -> TheirRoots:
    """Raises: ValueError: There is not one sum for each bucket, or something in it can't be."""
    if len(message.sums) != BUCKETS:
        raise ValueError(f"{len(message.sums)} sums for {BUCKETS} buckets")
    roots = Roots(tuple(map(_read_hash, message.sums)), message.live, message.tombstones)
    scanned = Scanned(roots, message.revision, message.exact)
    return TheirRoots(read_incarnation(message.incarnation), scanned, message.lost)


def bucket_request(wanted: Filter, buckets: Sequence[int]) -> pb.BucketRequest:
    return pb.BucketRequest(filter=filter_message(wanted), buckets=buckets)


def read_bucket_request(message: pb.BucketRequest) -> tuple[Filter, frozenset[int]]:
    """Raises: ValueError: There is no such bucket, or they are too many."""
    if len(message.buckets) > BUCKETS or max(message.buckets, default=0) >= BUCKETS:
        raise ValueError("no such buckets")
    return read_filter(message.filter), frozenset(message.buckets)


def bucket_reply(theirs: TheirNames) -> pb.BucketReply:
    return pb.BucketReply(
        incarnation=theirs.incarnation,
        names=[
            pb.BucketReply.Named(name=name_message(name), hash=number.to_bytes(HASH_BYTES, "big"))
            for name, number in theirs.hashes.items()
        ],
    )


def read_bucket_reply(message: pb.BucketReply) -> TheirNames:
    """Raises: ValueError: One of them is no name, or has no hash."""
    hashes = {read_name(named.name): _read_hash(named.hash) for named in message.names}
    return TheirNames(read_incarnation(message.incarnation), hashes)


def _read_hash(value: bytes) -> int:
    if len(value) != HASH_BYTES:
        raise ValueError("a hash of another length")
    return int.from_bytes(value, "big")
