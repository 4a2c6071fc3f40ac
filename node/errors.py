"""What can go wrong, in the words of a registry.

Every error that Entrepot raises on purpose is a leaf of `RegistryError`.  Errors carry fields, not
only prose, and know nothing of HTTP: each edge has one table that says what its clients see
(gateway/errors.py for HTTP, node/wire/codec.py for gRPC).

    RegistryError
    ├── InvalidRequest          the request can never succeed as it is
    │   ├── NameInvalid, TagInvalid, DigestInvalid, DigestUnsupported, DigestMismatch
    │   ├── SizeMismatch, ManifestInvalid, ManifestTooLarge, ManifestReferencesUnknown
    │   ├── PreconditionFailed, ConflictChanged, TooManyTags, RequestInvalid
    │   ├── BodyCut: BodyBroken, BodyStalled
    │   ├── PageInvalid, RangeInvalid, UploadOutOfOrder
    │   └── Unsupported, InUse
    ├── NotFound
    │   ├── NameUnknown, ManifestUnknown, ImageUnknown, BlobUnknown, UploadUnknown
    │   └── PeerUnknown
    ├── Refused
    │   └── Unauthenticated, Denied, TooManyRequests, NoRoom
    └── Unavailable             weather: the same request may succeed later
        ├── MetadataUnavailable, StorageFull, StorageFailed, BlobDamaged, SiteUnfit
        └── PeerUnavailable, PeerLied
"""

from collections.abc import Mapping, Sequence
from typing import Final

# Characters of a message that lists what a client sent.
_SHOWN: Final = 500


class RegistryError(Exception):
    """Anything that Entrepot refuses or cannot do, on purpose and in its own words."""


class InvalidRequest(RegistryError):
    """The request can never succeed as it is."""


class NotFound(RegistryError):
    """What the request names is not here."""


class Refused(RegistryError):
    """The caller may not do this."""


class Unavailable(RegistryError):
    """Not now: the same request may succeed later."""


class NameInvalid(InvalidRequest):
    """The repository's name breaks the grammar of the distribution specification."""

    def __init__(self, name: str) -> None:
        super().__init__("invalid repository name")
        self.name = name


class TagInvalid(InvalidRequest):
    """The tag breaks the grammar of the distribution specification."""

    def __init__(self, tag: str) -> None:
        super().__init__("invalid tag")
        self.tag = tag


class DigestInvalid(InvalidRequest):
    """The text is no digest: not `algorithm:hex`, or of the wrong length or case."""

    def __init__(self, digest: str) -> None:
        super().__init__("invalid digest" if digest else "no digest is given")
        self.digest = digest


class DigestUnsupported(InvalidRequest):
    """A well-formed digest of an algorithm that Entrepot does not compute."""

    def __init__(self, digest: str) -> None:
        super().__init__("unsupported digest algorithm")
        self.digest = digest


class DigestMismatch(InvalidRequest):
    """The bytes received are not the ones promised."""

    def __init__(self, expected: str, actual: str) -> None:
        super().__init__(f"content is {actual}, not {expected}")
        self.expected = expected
        self.actual = actual


class SizeMismatch(InvalidRequest):
    """Fewer or more bytes arrived than were announced."""

    def __init__(self, expected: int, actual: int) -> None:
        super().__init__(f"{actual} bytes received, {expected} announced")
        self.expected = expected
        self.actual = actual


class BodyCut(InvalidRequest):
    """A body that ended before it was whole, after `received` bytes."""

    def __init__(self, received: int) -> None:
        super().__init__(f"the body was cut after {received} bytes")
        self.received = received


class BodyBroken(BodyCut):
    """Whoever sends the body has left, or frames it wrongly."""


class BodyStalled(BodyCut):
    """Whoever sends the body is there, and has sent nothing for too long."""


class ManifestInvalid(InvalidRequest):
    """The body is no manifest that Entrepot stores; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid manifest: {reason}")
        self.reason = reason


class ManifestTooLarge(InvalidRequest):
    """The manifest is larger than the site takes."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"a manifest may have at most {limit_bytes} bytes")
        self.limit_bytes = limit_bytes


class TooManyTags(InvalidRequest):
    """The manifest is to be pushed under more tags than one push takes; nothing was stored."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a manifest may be pushed under at most {limit} tags at once")
        self.limit = limit


class ManifestReferencesUnknown(InvalidRequest):
    """The manifest refers to blobs or manifests that its repository does not hold."""

    def __init__(self, digests: tuple[str, ...]) -> None:
        super().__init__(f"not in this repository: {', '.join(digests)}"[:_SHOWN])
        self.digests = digests


class PageInvalid(InvalidRequest):
    """The number of results asked for is no number, or negative."""

    def __init__(self, given: str) -> None:
        super().__init__("invalid number of results requested")
        self.given = given


class RangeInvalid(InvalidRequest):
    """No byte of the blob lies in the ranges asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the range lies outside of the content's {size} bytes")
        self.size = size


class UploadOutOfOrder(InvalidRequest):
    """The chunk does not begin where the upload session ends; nothing of it was kept."""

    def __init__(self, session_id: str, offset: int) -> None:
        super().__init__(f"the upload continues at byte {offset}")
        self.session_id = session_id
        self.offset = offset


class PreconditionFailed(InvalidRequest):
    """The reference does not show what the client made its condition; nothing was changed."""

    def __init__(self, reference: str, shown: str) -> None:
        super().__init__(f"the condition does not hold: {reference} shows {shown or 'nothing'}")
        self.reference = reference
        self.shown = shown


class ConflictChanged(InvalidRequest):
    """The tag is not in the conflict that was to be resolved, or not any more; it stays."""

    def __init__(self, tag: str, siblings: tuple[str, ...]) -> None:
        super().__init__(f"{tag} is not in the conflict that was seen: list it, and choose again")
        self.tag = tag
        self.siblings = siblings


class RequestInvalid(InvalidRequest):
    """The body of a request to the admin API is not what it takes; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"invalid request: {reason}"[:_SHOWN])
        self.reason = reason


class SiteUnfit(Unavailable):
    """The site's own checks fail: what it would answer could be wrong."""

    def __init__(self, checks: tuple[str, ...]) -> None:
        super().__init__(f"this site is not able to serve now: {', '.join(checks)}")
        self.checks = checks


class TooManyRequests(Refused):
    """This process answers as many requests as it may already."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"{limit} requests are under way; try again soon")
        self.limit = limit


class NoRoom(Refused):
    """The bodies that this process holds in memory take as many bytes as they may already."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"manifests of {limit} bytes are on their way; try again soon")
        self.limit = limit


class Unsupported(InvalidRequest):
    """The operation is not offered here: unknown method, deletes off, read-only."""

    def __init__(self, reason: str, allowed: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.allowed = allowed


class InUse(InvalidRequest):
    """The content is needed by a live manifest of the repository (promise P3)."""

    def __init__(self, digest: str, by: str) -> None:
        super().__init__(f"{digest} is in use by {by}; delete that first")
        self.digest = digest
        self.by = by


class NameUnknown(NotFound):
    """No repository of this name holds anything."""

    def __init__(self, name: str) -> None:
        super().__init__(f"repository {name} is not known here")
        self.name = name


class ManifestUnknown(NotFound):
    """The reference names no manifest of the repository."""

    def __init__(self, reference: str) -> None:
        super().__init__("manifest unknown")
        self.reference = reference


class ImageUnknown(NotFound):
    """This site has no such image; `sources` says of each peer why it may be there and not here."""

    def __init__(
        self,
        image: str,
        site: str,
        reasons: Sequence[str],
        sources: Sequence[Mapping[str, str | int | None]],
        now_ms: int,
    ) -> None:
        why = f": {'; '.join(reasons)}" if reasons else ""
        super().__init__(f"{image} is not at {site}{why}")
        self.image = image
        self.site = site
        self.sources = sources
        self.now_ms = now_ms


class BlobUnknown(NotFound):
    """No blob with this digest is visible in the repository."""

    def __init__(self, digest: str) -> None:
        super().__init__("blob unknown to repository")
        self.digest = digest


class UploadUnknown(NotFound):
    """No such upload session: never begun, finished, cancelled, expired or another repository's."""

    def __init__(self, session_id: str) -> None:
        super().__init__("blob upload unknown to registry")
        self.session_id = session_id


class PeerUnknown(NotFound):
    """No peer of this name is followed from here; `known` are those that are."""

    def __init__(self, site: str, known: tuple[str, ...]) -> None:
        others = f"; it follows {', '.join(known)}" if known else ""
        super().__init__(f"no peer {site} is followed from here{others}"[:_SHOWN])
        self.site = site
        self.known = known


class Unauthenticated(Refused):
    """Who calls is not known, or did not prove it."""

    def __init__(self, reason: str = "authentication required") -> None:
        super().__init__(reason)


class Denied(Refused):
    """Who calls is known and may not do this."""

    def __init__(self, reason: str = "access denied") -> None:
        super().__init__(reason)


class MetadataUnavailable(Unavailable):
    """The metadata KV did not answer, or could not take the write; nothing is acknowledged.

    `unled`: all of it that can be reached says that it has no leader.
    """

    def __init__(self, reason: str, *, unled: bool = False) -> None:
        super().__init__(f"metadata is unavailable: {reason}")
        self.reason = reason
        self.unled = unled


class StorageFull(Unavailable):
    """The blob store is below its reserve or out of space; pulls go on."""

    def __init__(self, free_bytes: int) -> None:
        super().__init__("the blob store is full")
        self.free_bytes = free_bytes


class StorageFailed(Unavailable):
    """The blob store could not read or write; nothing is acknowledged."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the blob store failed: {reason}")
        self.reason = reason


class BlobDamaged(Unavailable):
    """A blob's record is here and its bytes are not, or are wrong; pushing it again heals it."""

    def __init__(self, digest: str) -> None:
        super().__init__(f"the stored bytes of {digest} are missing or damaged")
        self.digest = digest


class PeerUnavailable(Unavailable):
    """A peer could not be reached, or answered with an error; `reached` says which."""

    def __init__(self, site: str, reason: str, *, reached: bool = True) -> None:
        super().__init__(f"peer {site}: {reason}")
        self.site = site
        self.reason = reason
        self.reached = reached


class PeerLied(Unavailable):
    """A peer sent bytes that are not what it said they are; they were dropped."""

    def __init__(self, site: str, digest: str, actual: str) -> None:
        super().__init__(f"peer {site} sent {actual} as {digest}")
        self.site = site
        self.digest = digest
        self.actual = actual
