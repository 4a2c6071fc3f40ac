"""The feed's messages to the site's own words and back.

Whatever a peer sent is checked here, whole, before anything acts on it: names by their grammars,
digests by their form, a register by what every register keeps.  Nonsense raises `ValueError`; the
caller knows which side sent it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from node.change import Change
from node.digest import Digest
from node.errors import InvalidRequest
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.records import Cursor, Pushed
from node.reference import Repository, Tag, parse_repository, parse_tag
from node.register import Register
from node.wire import feed_pb2 as pb
from node.wire.codec import read_register, register_message, unpack_digest

PROTOCOL: Final = 1

# Manifests up to this size travel in their change (DESIGN 6).
BODY_BYTES: Final = 64 << 10
BATCH_CHANGES: Final = 500
BATCH_BYTES: Final = 1 << 20
MESSAGE_BYTES: Final = 4 << 20
NAMES: Final = 1000
_PATTERNS: Final = 256
_PATTERN_LENGTH: Final = 512

# Revisions, dots and times stay what every site can store and add one to.
_MOST_NUMBER: Final = 2**62
_MOST_MS: Final = 2**53
_MEDIA_TYPE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_SITE_LENGTH: Final = 63
_FINGERPRINT_LENGTH: Final = 64


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks, and its clock (ms); a reply has its newest revision and its filter for us too."""

    site: str
    incarnation: str
    ms: int
    revision: int = 0
    protocol: int = PROTOCOL
    filters: str = ""


@dataclass(frozen=True, slots=True)
class Start:
    """From where a receiver wants changes, and which."""

    cursor: Cursor
    filter: Filter


@dataclass(frozen=True, slots=True)
class Batch:
    """Some changes; see ChangeBatch in feed.proto.

    `unreadable` are the repositories that have others in it, which can't be read, and why not.
    """

    incarnation: str
    changes: Sequence[Change]
    revision: int
    scanning: bool
    head: int
    unreadable: Mapping[Repository, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FollowRecord:
    """What a follower says of itself: revisions of its source, times in ms of the source's clock.

    `oldest_ms` is when the oldest change was written that is not applied; 0 if there is none.
    """

    state: str
    revision: int = 0
    head: int = 0
    parked: int = 0
    oldest_ms: int = 0
    last_error: str = ""
    ms: int = 0


# --- hello


def hello_request(hello: Hello) -> pb.HelloRequest:
    return pb.HelloRequest(
        site=hello.site, incarnation=hello.incarnation, protocol=hello.protocol, ms=hello.ms
    )


def hello_reply(hello: Hello) -> pb.HelloReply:
    return pb.HelloReply(
        site=hello.site,
        incarnation=hello.incarnation,
        protocol=hello.protocol,
        ms=hello.ms,
        revision=hello.revision,
        filters=hello.filters,
    )


def read_hello(message: pb.HelloRequest | pb.HelloReply) -> Hello:
    """Raises: ValueError: It names no site or no incarnation, or its clock is no time."""
    _check(0 < len(message.site) <= _SITE_LENGTH, "no name of a site")
    _check(0 <= message.ms <= _MOST_MS, "no time")
    reply = message if isinstance(message, pb.HelloReply) else pb.HelloReply()
    _check(len(reply.filters) <= _FINGERPRINT_LENGTH, "a fingerprint is too long")
    return Hello(
        message.site,
        _incarnation(message.incarnation),
        message.ms,
        _number(reply.revision),
        message.protocol,
        reply.filters,
    )


# --- asking for changes, and acks


def start_message(start: Start) -> pb.ChangesRequest:
    return pb.ChangesRequest(
        start=pb.Start(
            incarnation=start.cursor.incarnation,
            after=start.cursor.revision,
            filter=filter_message(start.filter),
        )
    )


def ack_message(cursor: Cursor) -> pb.ChangesRequest:
    return pb.ChangesRequest(ack=pb.Ack(incarnation=cursor.incarnation, revision=cursor.revision))


def read_changes_request(message: pb.ChangesRequest) -> Start | Cursor:
    """A start, or an ack: how far the receiver has applied a life of this site.

    Raises:
        ValueError: It is neither, or has something in it that can't be.
    """
    match message.WhichOneof("kind"):
        case "start":
            start = message.start
            return Start(Cursor(start.incarnation, _number(start.after)), read_filter(start.filter))
        case "ack":
            return Cursor(_incarnation(message.ack.incarnation), _number(message.ack.revision))
        case _:
            raise ValueError("neither a start nor an ack")


def filter_message(wanted: Filter) -> pb.Filter:
    return pb.Filter(repositories=wanted.repositories, tags=wanted.tags)


def read_filter(message: pb.Filter) -> Filter:
    """A filter; none given means everything.

    Raises:
        ValueError: It has too many patterns, or one that is too long.
    """
    for patterns in (message.repositories, message.tags):
        _check(len(patterns) <= _PATTERNS, "too many patterns")
        _check(all(len(p) <= _PATTERN_LENGTH for p in patterns), "a pattern is too long")
    return Filter(tuple(message.repositories) or ("**",), tuple(message.tags) or ("**",))


# --- changes


def change_message(change: Change) -> pb.Change:
    message = pb.Change(
        repository=change.name.repository,
        register=register_message(change.register),
        revision=change.revision,
        body=change.body or b"",
    )
    _write_name(message, change.name)
    return message


def read_change(message: pb.Change) -> Change:
    """Raises: ValueError: It is no change that any site could have written."""
    name = _read_name(message)
    register = read_register(message.register)
    check_register(name, register)
    _check(len(message.body) <= MESSAGE_BYTES, "a body is too long")
    return Change(name, register, _number(message.revision), message.body or None)


def check_register(name: Name, register: Register[Pushed]) -> None:
    """Refuse a register that no site could have written, wherever it comes from.

    Raises:
        ValueError: Its name breaks a grammar, or something in it can't be.
    """
    _repository(name.repository)
    if isinstance(name, TagName):
        _tag(name.tag)
    _check(all(0 < n <= _MOST_NUMBER for n in register.ctx.values()), "a context out of range")
    _check(all(register.ctx), "an actor without a name")
    for dot, value in register.siblings.items():
        _check(0 < dot.n <= register.ctx.get(dot.actor, 0), "a sibling outside of its context")
        _check(0 <= value.ms <= _MOST_MS, "a time out of range")
        _check(value.size <= _MOST_NUMBER, "a size out of range")
        _check(bool(_MEDIA_TYPE.fullmatch(value.media_type)), "a media type that is none")
        if isinstance(name, ManifestName):
            _check(value.digest == name.digest, "a manifest under another's digest")


def batch_message(batch: Batch) -> pb.ChangeBatch:
    return pb.ChangeBatch(
        incarnation=batch.incarnation,
        changes=[change_message(change) for change in batch.changes],
        revision=batch.revision,
        scanning=batch.scanning,
        head=batch.head,
    )


def read_batch(message: pb.ChangeBatch) -> Batch:
    """A batch; a change that can't be read is told by its repository, and spoils no other.

    Raises:
        ValueError: It can't be read, or a change not so far as to say of which repository it is.
    """
    changes: list[Change] = []
    unreadable: dict[Repository, str] = {}
    for change in message.changes:
        try:
            changes.append(read_change(change))
        except ValueError as err:
            unreadable.setdefault(_repository(change.repository), f"can't be read: {err}")
    return Batch(
        _incarnation(message.incarnation),
        tuple(changes),
        _number(message.revision),
        message.scanning,
        _number(message.head),
        unreadable,
    )


# --- asking for names, digests, a repository


def keys_request(names: Sequence[Name]) -> pb.KeysRequest:
    return pb.KeysRequest(names=[_name_message(name) for name in names])


def read_keys_request(message: pb.KeysRequest) -> list[Name]:
    """Raises: ValueError: One of them is no name, or they are too many."""
    _check(len(message.names) <= NAMES, f"more than {NAMES} names")
    return [_read_name(name) for name in message.names]


def keys_reply(changes: Sequence[Change]) -> pb.KeysReply:
    return pb.KeysReply(changes=[change_message(change) for change in changes])


def read_keys_reply(message: pb.KeysReply, names: Sequence[Name]) -> Mapping[Name, Change | None]:
    """The answer for each name that was asked for; None where the source has no register of it.

    Raises:
        ValueError: It answers what was not asked.
    """
    told: dict[Name, Change | None] = dict.fromkeys(names)
    for change in map(read_change, message.changes):
        _check(change.name in told, "an answer to what was not asked")
        told[change.name] = change
    return told


def have_request(repository: Repository, digests: Sequence[Digest]) -> pb.HaveRequest:
    return pb.HaveRequest(repository=repository, digests=[digest.packed for digest in digests])


def read_have_request(message: pb.HaveRequest) -> tuple[Repository, list[Digest]]:
    """Raises: ValueError: There is no such repository or digest, or they are too many."""
    _check(len(message.digests) <= NAMES, f"more than {NAMES} digests")
    return _repository(message.repository), [unpack_digest(digest) for digest in message.digests]


def have_reply(digests: Sequence[Digest]) -> pb.HaveReply:
    return pb.HaveReply(digests=[digest.packed for digest in digests])


def read_have_reply(message: pb.HaveReply) -> frozenset[Digest]:
    """Raises: ValueError: One of them is no digest."""
    return frozenset(unpack_digest(digest) for digest in message.digests)


def repository_request(repository: Repository, wanted: Filter) -> pb.RepositoryRequest:
    return pb.RepositoryRequest(repository=repository, filter=filter_message(wanted))


def read_repository_request(message: pb.RepositoryRequest) -> tuple[Repository, Filter]:
    """Raises: ValueError: It is no name of a repository, or no filter."""
    return _repository(message.repository), read_filter(message.filter)


# --- what a follower keeps


def encode_follow(record: FollowRecord) -> bytes:
    return pb.FollowRecord(
        state=record.state,
        revision=record.revision,
        head=record.head,
        parked=record.parked,
        oldest_ms=record.oldest_ms,
        last_error=record.last_error,
        ms=record.ms,
    ).SerializeToString()


def decode_follow(value: bytes) -> FollowRecord:
    found = pb.FollowRecord.FromString(value)
    return FollowRecord(
        found.state,
        found.revision,
        found.head,
        found.parked,
        found.oldest_ms,
        found.last_error,
        found.ms,
    )


# --- parts

_AnyName: TypeAlias = pb.Change | pb.Name


def _name_message(name: Name) -> pb.Name:
    message = pb.Name(repository=name.repository)
    _write_name(message, name)
    return message


def _write_name(message: _AnyName, name: Name) -> None:
    match name:
        case ManifestName(digest=digest):
            message.digest = digest.packed
        case TagName(tag=tag):
            message.tag = tag


def _read_name(message: _AnyName) -> Name:
    repository = _repository(message.repository)
    match message.WhichOneof("name"):
        case "tag":
            return TagName(repository, _tag(message.tag))
        case "digest":
            return ManifestName(repository, unpack_digest(message.digest))
        case _:
            raise ValueError("a name that is neither a tag nor a manifest")


def _repository(text: str) -> Repository:
    try:
        return parse_repository(text)
    except InvalidRequest as err:
        raise ValueError(str(err)) from err


def _tag(text: str) -> Tag:
    try:
        return parse_tag(text)
    except InvalidRequest as err:
        raise ValueError(str(err)) from err


def _incarnation(text: str) -> str:
    _check(0 < len(text) <= _SITE_LENGTH, "no incarnation")
    return text


def _number(number: int) -> int:
    _check(number <= _MOST_NUMBER, "a number out of range")
    return number


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
