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

from google.protobuf.unknown_fields import UnknownFieldSet

from node import keys
from node.change import Change
from node.digest import Digest
from node.errors import InvalidRequest
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.kv import Entry
from node.records import Cursor, Pushed, Report
from node.reference import Repository, Tag, parse_repository, parse_tag
from node.register import Register
from node.wire import feed_pb2 as pb
from node.wire.ack_codec import read_ack
from node.wire.codec import decode_register, read_register, register_message, unpack_digest

PROTOCOL: Final = 1
# Raised with every kind of name, request or call that is new; see feed.proto.
MINOR: Final = 1

# Manifests up to this size travel in their change (DESIGN 6).
BODY_BYTES: Final = 64 << 10
BATCH_CHANGES: Final = 500
BATCH_BYTES: Final = 1 << 20
MESSAGE_BYTES: Final = 4 << 20
NAMES: Final = 1000
# What else a message holds: the name, the batch, and the lengths of all of them.
_AROUND_BYTES: Final = 64 << 10
_PATTERNS: Final = 256
_PATTERN_LENGTH: Final = 512

# Revisions, dots and times stay what every site can store and add one to.
_MOST_NUMBER: Final = 2**62
MOST_MS: Final = 2**53
_MEDIA_TYPE: Final = re.compile(r"[\x21-\x7e]{1,255}")
_INCARNATION_LENGTH: Final = 63


@dataclass(frozen=True, slots=True)
class Start:
    """From where a receiver wants changes, and which."""

    cursor: Cursor
    filter: Filter


@dataclass(frozen=True, slots=True)
class Batch:
    """Some changes; see ChangeBatch in feed.proto.

    `unreadable` are the repositories that have others in it, which can't be read, and why not;
    `unknown` counts those of a kind that this version does not know, which are left out.
    """

    incarnation: str
    changes: Sequence[Change]
    revision: int
    scanning: bool
    head: int
    unreadable: Mapping[Repository, str] = field(default_factory=dict)
    unknown: int = 0


# --- asking for changes, and acks


def start_message(start: Start) -> pb.ChangesRequest:
    return pb.ChangesRequest(
        start=pb.Start(
            incarnation=start.cursor.incarnation,
            after=start.cursor.revision,
            filter=filter_message(start.filter),
        )
    )


def read_changes_request(message: pb.ChangesRequest) -> Start | Report | None:
    """A start, or an ack: how far the receiver has applied a life of this site, and what not.

    None if it is of a kind that only newer versions know.

    Raises:
        ValueError: It is nothing, or has something in it that can't be.
    """
    match message.WhichOneof("kind"):
        case "start":
            start = message.start
            return Start(
                Cursor(start.incarnation, read_number(start.after)), read_filter(start.filter)
            )
        case "ack":
            return read_ack(message.ack)
        case None if len(UnknownFieldSet(message)):
            return None
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
    name = read_name(message)
    register = read_register(message.register)
    check_register(name, register)
    _check(len(message.body) <= MESSAGE_BYTES, "a body is too long")
    return Change(name, register, read_number(message.revision), message.body or None)


def read_entry(name: Name, entry: Entry) -> Change:
    """The change that an entry of the KV is, under the name that its key says.

    Raises:
        ValueError: No peer could take it: it is damaged, or written by a newer version.
    """
    _check(keys.register(name) == entry.key, "no register has this key")
    _check(len(entry.value) <= MESSAGE_BYTES - _AROUND_BYTES, "it is larger than a message")
    register = decode_register(entry.value)
    check_register(name, register)
    return Change(name, register, entry.modified)


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
        _check(0 <= value.ms <= MOST_MS, "a time out of range")
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
    unknown = 0
    for change in message.changes:
        if change.WhichOneof("name") is None and len(UnknownFieldSet(change)):
            unknown += 1
            continue
        try:
            changes.append(read_change(change))
        except ValueError as err:
            unreadable.setdefault(_repository(change.repository), f"can't be read: {err}")
    return Batch(
        read_incarnation(message.incarnation),
        tuple(changes),
        read_number(message.revision),
        message.scanning,
        read_number(message.head),
        unreadable,
        unknown,
    )


# --- asking for names, digests, a repository


def keys_request(names: Sequence[Name]) -> pb.KeysRequest:
    return pb.KeysRequest(names=[name_message(name) for name in names])


def read_keys_request(message: pb.KeysRequest) -> list[Name]:
    """Raises: ValueError: One of them is no name, or they are too many."""
    _check(len(message.names) <= NAMES, f"more than {NAMES} names")
    return [read_name(name) for name in message.names]


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


# --- parts

_AnyName: TypeAlias = pb.Change | pb.Name


def name_message(name: Name) -> pb.Name:
    message = pb.Name(repository=name.repository)
    _write_name(message, name)
    return message


def _write_name(message: _AnyName, name: Name) -> None:
    match name:
        case ManifestName(digest=digest):
            message.digest = digest.packed
        case TagName(tag=tag):
            message.tag = tag


def read_name(message: _AnyName) -> Name:
    """Raises: ValueError: It breaks a grammar."""
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


def read_incarnation(text: str) -> str:
    """Raises: ValueError: It is none."""
    _check(0 < len(text) <= _INCARNATION_LENGTH, "no incarnation")
    return text


def read_number(number: int) -> int:
    """Raises: ValueError: No site would count so far."""
    _check(number <= _MOST_NUMBER, "a number out of range")
    return number


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
