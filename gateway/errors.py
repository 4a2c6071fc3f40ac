"""What an HTTP client sees of each error: the one map, and the one place that renders it.

Codes are those of the distribution specification.  Where it has none that fits, the nearest one is
taken and the reason stands beside it; clients act on the status and on few codes (PROTOCOL 1.1).
An error that is not in the table is a bug, and a test says so before any client does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.answers import Answer
from gateway.headers import upload_headers
from node.errors import (
    BlobDamaged,
    BlobUnknown,
    BodyBroken,
    BodyStalled,
    ConflictChanged,
    Denied,
    DigestInvalid,
    DigestMismatch,
    DigestUnsupported,
    ImageUnknown,
    InUse,
    ManifestInvalid,
    ManifestReferencesUnknown,
    ManifestTooLarge,
    ManifestUnknown,
    MetadataUnavailable,
    NameInvalid,
    NameUnknown,
    NoRoom,
    NotFound,
    PageInvalid,
    PeerLied,
    PeerUnavailable,
    PeerUnknown,
    PreconditionFailed,
    RangeInvalid,
    RegistryError,
    RequestInvalid,
    SiteUnfit,
    SizeMismatch,
    StorageFailed,
    StorageFull,
    TagInvalid,
    TooManyRequests,
    TooManyTags,
    Unauthenticated,
    Unavailable,
    Unsupported,
    UploadOutOfOrder,
    UploadUnknown,
)

RETRY_AFTER_S: Final = 2
# A manifest may lack thousands; clients show the first.
_MOST_ENTRIES: Final = 100


class Code(StrEnum):
    """The specification's error codes, and the three that registries have added."""

    BLOB_UNKNOWN = "BLOB_UNKNOWN"
    BLOB_UPLOAD_INVALID = "BLOB_UPLOAD_INVALID"
    BLOB_UPLOAD_UNKNOWN = "BLOB_UPLOAD_UNKNOWN"
    DIGEST_INVALID = "DIGEST_INVALID"
    MANIFEST_BLOB_UNKNOWN = "MANIFEST_BLOB_UNKNOWN"
    MANIFEST_INVALID = "MANIFEST_INVALID"
    MANIFEST_UNKNOWN = "MANIFEST_UNKNOWN"
    NAME_INVALID = "NAME_INVALID"
    NAME_UNKNOWN = "NAME_UNKNOWN"
    SIZE_INVALID = "SIZE_INVALID"
    UNAUTHORIZED = "UNAUTHORIZED"
    DENIED = "DENIED"
    UNSUPPORTED = "UNSUPPORTED"
    TOOMANYREQUESTS = "TOOMANYREQUESTS"
    PAGINATION_NUMBER_INVALID = "PAGINATION_NUMBER_INVALID"
    UNAVAILABLE = "UNAVAILABLE"
    UNKNOWN = "UNKNOWN"


class EndpointUnknown(NotFound):
    """The path is none of this API's."""

    def __init__(self, path: str) -> None:
        super().__init__("no such endpoint")
        self.path = path


class Row(NamedTuple):
    """What clients see of an error."""

    code: Code
    status: int


TABLE: Final[Mapping[type[RegistryError], Row]] = {
    NameInvalid: Row(Code.NAME_INVALID, 400),
    # podman takes MANIFEST_INVALID and TAG_INVALID for "try another manifest format".
    TagInvalid: Row(Code.NAME_INVALID, 400),
    DigestInvalid: Row(Code.DIGEST_INVALID, 400),
    DigestUnsupported: Row(Code.DIGEST_INVALID, 400),
    DigestMismatch: Row(Code.DIGEST_INVALID, 400),
    SizeMismatch: Row(Code.SIZE_INVALID, 400),
    BodyBroken: Row(Code.SIZE_INVALID, 400),
    # 408 has no code: too few bytes have come.
    BodyStalled: Row(Code.SIZE_INVALID, 408),
    ManifestInvalid: Row(Code.MANIFEST_INVALID, 400),
    # 413 has no code; another manifest format would be as large, so not MANIFEST_INVALID.
    ManifestTooLarge: Row(Code.SIZE_INVALID, 413),
    # 414 has no code either; fewer tags in one request will do (0.2).
    TooManyTags: Row(Code.SIZE_INVALID, 414),
    ManifestReferencesUnknown: Row(Code.MANIFEST_BLOB_UNKNOWN, 400),
    # Not the specification's, but what distribution/distribution answers (TL6).
    PageInvalid: Row(Code.PAGINATION_NUMBER_INVALID, 400),
    # 416 has no code for reading: the range does not fit the blob's size.
    RangeInvalid: Row(Code.SIZE_INVALID, 416),
    # 412 has no code: the change is refused, and sending it again would not help.
    PreconditionFailed: Row(Code.DENIED, 412),
    ConflictChanged: Row(Code.DENIED, 412),
    # Of the admin API, which the specification knows nothing of.
    RequestInvalid: Row(Code.UNSUPPORTED, 400),
    UploadOutOfOrder: Row(Code.BLOB_UPLOAD_INVALID, 416),
    Unsupported: Row(Code.UNSUPPORTED, 405),
    InUse: Row(Code.UNSUPPORTED, 405),
    NameUnknown: Row(Code.NAME_UNKNOWN, 404),
    ManifestUnknown: Row(Code.MANIFEST_UNKNOWN, 404),
    ImageUnknown: Row(Code.MANIFEST_UNKNOWN, 404),
    BlobUnknown: Row(Code.BLOB_UNKNOWN, 404),
    UploadUnknown: Row(Code.BLOB_UPLOAD_UNKNOWN, 404),
    PeerUnknown: Row(Code.NAME_UNKNOWN, 404),
    EndpointUnknown: Row(Code.UNSUPPORTED, 404),
    Unauthenticated: Row(Code.UNAUTHORIZED, 401),
    Denied: Row(Code.DENIED, 403),
    TooManyRequests: Row(Code.TOOMANYREQUESTS, 429),
    NoRoom: Row(Code.TOOMANYREQUESTS, 429),
    # As distribution/distribution does while its health checks fail (G19).
    SiteUnfit: Row(Code.UNAVAILABLE, 503),
    # 503, not 500: this is weather, and clients should try again.
    MetadataUnavailable: Row(Code.UNAVAILABLE, 503),
    StorageFull: Row(Code.UNAVAILABLE, 503),
    StorageFailed: Row(Code.UNAVAILABLE, 503),
    BlobDamaged: Row(Code.UNAVAILABLE, 503),
    PeerUnavailable: Row(Code.UNAVAILABLE, 503),
    PeerLied: Row(Code.UNAVAILABLE, 503),
}


def render(error: RegistryError, path: str = "") -> Answer:
    """The answer to a request, on this path, that ended in an error."""
    code, status = TABLE[type(error)]
    if isinstance(error, ManifestReferencesUnknown):
        # One entry for each, so that a client can tell which (PROTOCOL 1.1).
        shown = error.digests[:_MOST_ENTRIES]
        entries = [_entry(code, str(error), {"digest": digest}) for digest in shown]
    else:
        entries = [_entry(code, str(error), vars(error))]
    return _answer(status, _headers(error, path), entries)


def render_unknown(status: int = 500, message: str = "internal error") -> Answer:
    """The answer where the fault is ours, or the request was not even HTTP; nothing is told."""
    return _answer(status, {}, [_entry(Code.UNKNOWN, message, {})])


def _entry(code: Code, message: str, detail: Mapping[str, object]) -> Mapping[str, object]:
    return {"code": code, "message": message, "detail": detail}


def _answer(status: int, headers: Mapping[str, str], entries: list[Mapping[str, object]]) -> Answer:
    body = json.dumps({"errors": entries}).encode()
    return Answer(status, {**headers, "Content-Type": "application/json"}, body)


def _headers(error: RegistryError, path: str) -> Mapping[str, str]:
    headers: Mapping[str, str] = {}
    match error:
        case Unavailable() | TooManyRequests() | NoRoom():
            headers = {"Retry-After": str(RETRY_AFTER_S)}
        case UploadOutOfOrder(session_id=session_id, offset=offset):
            headers = upload_headers(path, session_id, offset)
        case RangeInvalid(size=size):
            headers = {"Content-Range": f"bytes */{size}"}
        case Unsupported(allowed=allowed):
            headers = {"Allow": ", ".join(allowed)}
        case InUse():
            headers = {"Allow": "GET, HEAD"}
        case Unauthenticated():
            headers = {"WWW-Authenticate": "Bearer"}
        case _:
            pass
    return headers
