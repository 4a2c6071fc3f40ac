"""The transactions about blobs (RELIABILITY 4): T1 upload done, T2 mount, T6 delete.

Pure: what was seen goes in, guards and operations come out.  A blob is readable, mountable and
referable in a repository only by a reference or a visible pin there; its one record names the one
copy that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from node import keys
from node.blobs import Generation, SessionId
from node.digest import Digest
from node.errors import BlobUnknown, InUse, UploadUnknown
from node.kv import Empty, Exists, Guard, Range, only
from node.records import BlobRecord, Pin
from node.reference import Repository
from node.transaction import Seen, Transaction
from node.wire import codec


class Copy(NamedTuple):
    """A copy that was published and that no record names yet; its session protects it."""

    session: SessionId
    generation: Generation
    size: int


@dataclass(frozen=True, slots=True)
class VisibleBlob:
    """A blob as one repository sees it."""

    digest: Digest
    record: BlobRecord
    referenced: bool
    pin: Pin | None


def blob_ranges(repository: Repository, digest: Digest) -> tuple[Range, Range, Range]:
    """What must be read to know whether a repository sees a blob: reference, pin, record."""
    return (
        keys.references(digest, repository, 1),
        only(keys.pin(digest, repository)),
        only(keys.blob(digest)),
    )


def standing(seen: Seen, digest: Digest) -> BlobRecord | None:
    """The record of a blob that the site has, whoever sees it, unless its copy is quarantined."""
    entry = seen.entry(keys.blob(digest))
    record = None if entry is None else codec.decode_blob(entry.value)
    return None if record is None or record.quarantined else record


def visible(seen: Seen, repository: Repository, digest: Digest) -> VisibleBlob | None:
    """The blob, if the repository sees it and its copy is not quarantined."""
    record = standing(seen, digest)
    if record is None:
        return None
    referenced = bool(seen.entries(keys.references(digest, repository, 1)))
    entry = seen.entry(keys.pin(digest, repository))
    pin = None if entry is None else codec.decode_pin(entry.value)
    if not referenced and (pin is None or pin.hidden):
        return None
    return VisibleBlob(digest, record, referenced, pin)


def adopt(
    txn: Transaction, digest: Digest, copy: Copy | None, damaged: frozenset[Generation]
) -> bool:
    """Make sure that a good copy has the record; whether it is the new one (P9: pushing heals).

    Raises:
        UploadUnknown: The new copy's session is gone, so its file may be gone too.
        BlobUnknown: There is no sound record and no new copy.
    """
    key = keys.blob(digest)
    txn.unchanged(key)
    record = standing(txn.seen, digest)
    sound = record is not None and record.generation not in damaged
    if copy is None:
        if not sound:
            raise BlobUnknown(str(digest))
        return False
    session = keys.session(copy.session)
    if txn.seen.entry(session) is None:
        raise UploadUnknown(copy.session)
    txn.unchanged(session)
    txn.delete(session)
    if not sound:
        txn.put(key, codec.encode_blob(BlobRecord(copy.generation, copy.size)))
    return not sound


def finish_upload(
    txn: Transaction, digest: Digest, copy: Copy, damaged: frozenset[Generation], op: str
) -> bool:
    """T1: the uploaded copy becomes the blob, or makes way for the one that stands.

    Whether the copy is the one in the record; if not, its file is the caller's to remove, after
    the transaction.

    Raises:
        UploadUnknown: The session is gone.
    """
    txn.once(op)
    mine = adopt(txn, digest, copy, damaged)
    txn.pin(digest)
    return mine


def mount(txn: Transaction, digest: Digest, source: Repository | None) -> None:
    """T2: the repository sees what the source sees; without a source, what the site has.

    Only a replicator mounts without a source: its right comes from the peer's manifest.

    Raises:
        BlobUnknown: The source does not see it, or its copy is quarantined.
    """
    if standing(txn.seen, digest) is None:
        raise BlobUnknown(str(digest))
    txn.unchanged(keys.blob(digest))
    if source is not None:
        if visible(txn.seen, source, digest) is None:
            raise BlobUnknown(str(digest))
        txn.require(_grant(txn.seen, source, digest))
    txn.pin(digest)


def _grant(seen: Seen, repository: Repository, digest: Digest) -> Guard:
    """That what makes the blob visible still does: a reference, else the pin as it was."""
    references = seen.entries(keys.references(digest, repository, 1))
    if references:
        return Exists(references[0].key)
    return seen.guard(keys.pin(digest, repository))


def hide(txn: Transaction, digest: Digest, op: str) -> None:
    """T6: the repository no longer sees the blob; collection finds it by its hidden pin.

    Raises:
        BlobUnknown: The repository does not see it.
        InUse: A manifest of the repository needs it.
    """
    blob = visible(txn.seen, txn.repository, digest)
    if blob is None:
        raise BlobUnknown(str(digest))
    within = keys.references(digest, txn.repository, 1)
    if blob.referenced:
        by = keys.referring(txn.seen.entries(within)[0].key)
        raise InUse(str(digest), f"manifest {by}")
    key = keys.pin(digest, txn.repository)
    txn.once(op)
    txn.unchanged(key)
    txn.require(Empty(within.start, within.end))
    txn.put(key, codec.encode_pin(Pin(expires_ms=txn.stamp.now_ms, hidden=True)))
