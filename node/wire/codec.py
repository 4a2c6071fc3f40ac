"""Records to bytes and back: the only importer of the generated protobuf messages of the KV.

Each `encode_x` and `decode_x` are each other's inverse.  A value that can't be read is damage,
never a client's fault: it raises `ValueError`.
"""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from node.blobs import Generation, Piece
from node.digest import Digest
from node.globs import Filter
from node.records import (
    Ack,
    Action,
    BlobRecord,
    Cursor,
    Event,
    Parked,
    ParkedThere,
    Pin,
    Pushed,
    Referrer,
    Report,
    RepositoryRecord,
    SiteRecord,
    Stage,
    UploadSession,
)
from node.reference import Repository, Tag
from node.register import Dot, Register
from node.wire import metadata_pb2 as pb

M = TypeVar("M", bound=Message)


def register_message(register: Register[Pushed]) -> pb.Register:
    """A register as the feed carries it; siblings in the order of their dots."""
    return pb.Register(
        ctx=register.ctx,
        siblings=[
            pb.Sibling(
                actor=dot.actor,
                n=dot.n,
                ms=value.ms,
                digest=value.digest.packed,
                media_type=value.media_type,
                size=value.size,
                op=value.op,
                subject=b"" if value.subject is None else value.subject.packed,
                artifact_type=value.artifact_type or "",
            )
            for dot, value in sorted(register.siblings.items(), key=lambda item: item[0])
        ],
    )


def read_register(message: pb.Register) -> Register[Pushed]:
    """The register in a message, whoever sent it.

    Raises:
        ValueError: A digest in it is none.
    """
    return Register(
        dict(message.ctx),
        {
            Dot(sibling.actor, sibling.n): Pushed(
                sibling.ms,
                unpack_digest(sibling.digest),
                sibling.media_type,
                sibling.size,
                sibling.op,
                unpack_digest(sibling.subject) if sibling.subject else None,
                sibling.artifact_type or None,
            )
            for sibling in message.siblings
        },
    )


def unpack_digest(packed: bytes) -> Digest:
    """A digest from its packed form, which must be all there is.

    Raises:
        ValueError: It is none.
    """
    digest, end = Digest.take(packed)
    if end != len(packed):
        raise ValueError("bytes left over after a packed digest")
    return digest


def _parse(message: M, value: bytes) -> M:
    try:
        message.ParseFromString(value)
    except DecodeError as err:
        raise ValueError(f"damaged {type(message).__name__}") from err
    return message


def encode_register(record: Register[Pushed]) -> bytes:
    return register_message(record).SerializeToString()


def decode_register(value: bytes) -> Register[Pushed]:
    return read_register(_parse(pb.Register(), value))


def encode_blob(record: BlobRecord) -> bytes:
    return pb.BlobRecord(
        generation=record.generation, size=record.size, quarantined=record.quarantined
    ).SerializeToString()


def decode_blob(value: bytes) -> BlobRecord:
    found = _parse(pb.BlobRecord(), value)
    return BlobRecord(Generation(found.generation), found.size, found.quarantined)


def encode_pin(record: Pin) -> bytes:
    return pb.Pin(expires_ms=record.expires_ms, hidden=record.hidden).SerializeToString()


def decode_pin(value: bytes) -> Pin:
    found = _parse(pb.Pin(), value)
    return Pin(found.expires_ms, found.hidden)


def encode_session(record: UploadSession) -> bytes:
    return pb.UploadSession(
        repository=record.repository,
        pieces=[pb.UploadSession.Piece(name=p.name, length=p.length) for p in record.pieces],
        expires_ms=record.expires_ms,
        target=b"" if record.target is None else record.target.packed,
    ).SerializeToString()


def decode_session(value: bytes) -> UploadSession:
    found = _parse(pb.UploadSession(), value)
    return UploadSession(
        Repository(found.repository),
        tuple(Piece(piece.name, piece.length) for piece in found.pieces),
        found.expires_ms,
        unpack_digest(found.target) if found.target else None,
    )


def encode_referrer(record: Referrer) -> bytes:
    return pb.Referrer(
        media_type=record.media_type,
        size=record.size,
        artifact_type=record.artifact_type or "",
        annotations=record.annotations,
    ).SerializeToString()


def decode_referrer(value: bytes) -> Referrer:
    found = _parse(pb.Referrer(), value)
    return Referrer(
        found.media_type, found.size, found.artifact_type or None, dict(found.annotations)
    )


def encode_stage(record: Stage) -> bytes:
    """A manifest on its way."""
    targets = [target.packed for target in record.targets]
    return pb.Stage(owner=record.owner, ms=record.ms, targets=targets).SerializeToString()


def decode_stage(value: bytes) -> Stage:
    """Raises: ValueError: Damage."""
    found = _parse(pb.Stage(), value)
    return Stage(found.owner, found.ms, tuple(unpack_digest(target) for target in found.targets))


def encode_repository(record: RepositoryRecord) -> bytes:
    return pb.RepositoryRecord(
        title=record.title, description=record.description
    ).SerializeToString()


def decode_repository(value: bytes) -> RepositoryRecord:
    found = _parse(pb.RepositoryRecord(), value)
    return RepositoryRecord(found.title, found.description)


def encode_event(record: Event) -> bytes:
    return pb.Event(
        action=record.action,
        repository=record.repository,
        tag=record.tag or "",
        digest=record.digest.packed,
        media_type=record.media_type,
        size=record.size,
        ms=record.ms,
        actor=record.actor,
    ).SerializeToString()


def decode_event(value: bytes) -> Event:
    found = _parse(pb.Event(), value)
    return Event(
        Action(found.action),
        Repository(found.repository),
        unpack_digest(found.digest),
        found.media_type,
        found.size,
        found.ms,
        Tag(found.tag) if found.tag else None,
        found.actor,
    )


def encode_cursor(record: Cursor) -> bytes:
    return pb.Cursor(
        incarnation=record.incarnation, revision=record.revision, filters=record.filters
    ).SerializeToString()


def decode_cursor(value: bytes) -> Cursor:
    found = _parse(pb.Cursor(), value)
    return Cursor(found.incarnation, found.revision, found.filters)


def encode_parked(record: Parked) -> bytes:
    return pb.Parked(
        first=record.first,
        last=record.last,
        attempts=record.attempts,
        reason=record.reason,
        since_ms=record.since_ms,
        next_ms=record.next_ms,
        scanned=record.scanned,
    ).SerializeToString()


def decode_parked(value: bytes) -> Parked:
    found = _parse(pb.Parked(), value)
    return Parked(
        found.first,
        found.last,
        found.attempts,
        found.reason,
        found.since_ms,
        found.next_ms,
        found.scanned,
    )


def parked_there_message(parked: ParkedThere) -> pb.ParkedThere:
    """A park as the feed carries it, too."""
    return pb.ParkedThere(
        repository=parked.repository,
        first=parked.first,
        attempts=parked.attempts,
        reason=parked.reason,
        since_ms=parked.since_ms,
        next_ms=parked.next_ms,
    )


def read_parked_there(message: pb.ParkedThere) -> ParkedThere:
    """The park in a message that was checked."""
    return ParkedThere(
        Repository(message.repository),
        message.first,
        message.attempts,
        message.reason,
        message.since_ms,
        message.next_ms,
    )


def encode_ack(record: Ack) -> bytes:
    report = record.report
    return pb.Ack(
        incarnation=report.incarnation,
        revision=report.revision,
        ms=record.ms,
        life=report.life,
        state=report.state,
        cursor=report.cursor,
        parked=map(parked_there_message, report.parked),
        parked_count=report.parked_count,
        repositories=record.theirs.repositories,
        tags=record.theirs.tags,
        ours=record.ours,
        stream=record.stream,
        bytes_to_go=report.bytes_to_go,
        seconds_left=report.seconds_left,
    ).SerializeToString()


def decode_ack(value: bytes) -> Ack:
    found = _parse(pb.Ack(), value)
    report = Report(
        found.incarnation,
        found.revision,
        found.life,
        found.state,
        found.cursor,
        tuple(map(read_parked_there, found.parked)),
        found.parked_count,
        found.bytes_to_go if found.HasField("bytes_to_go") else None,
        found.seconds_left if found.HasField("seconds_left") else None,
    )
    theirs = Filter(tuple(found.repositories), tuple(found.tags))
    return Ack(report, found.ms, theirs, found.ours, found.stream)


def encode_site(record: SiteRecord) -> bytes:
    return pb.Site(name=record.name, incarnation=record.incarnation).SerializeToString()


def decode_site(value: bytes) -> SiteRecord:
    found = _parse(pb.Site(), value)
    return SiteRecord(found.name, found.incarnation)
