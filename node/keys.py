r"""Every key of the metadata KV: built and parsed here only.

    M/<repository>\0<digest>            register   a manifest                      } replicated;
    T/<repository>\0<tag>\0             register   a tag                           } M before T
    b/<digest>                          BlobRecord the one record of a blob
    r/<digest><repository>\0<manifest>             reference: manifest -> blob, child or own body
    u/<digest><repository>\0            Pin        keeps a blob without a reference
    tr/<repository>\0<digest><tag>\0               reverse: every sibling of every tag
    l/<repository>\0<tag>\0                        live tags, for lists
    f/<repository>\0<subject><digest>   Referrer   live manifests with a subject
    c/<repository>\0                    RepositoryRecord   repositories with live content
    c-/<repository>\0                                      was in c and left it, perhaps came back
    x/<repository>\0<tag>\0                        tags in conflict
    s/<session>                         UploadSession
    g/<repository>\0<digest>            Stage      a manifest on its way in several transactions
    o/<op>                                         an operation that was applied (1 h, by lease)
    ev/<repository>\0<op>\0<n>          Event      outbox (72 h, by lease)
    cur/<source>\0                      Cursor     what is applied here of a peer
    park/<source>\0<repository>\0       Parked     what is not
    ack/<peer>\0                        Ack        what a peer has applied of this site
    st/<source>\0                       FollowRecord   how following a peer goes (by its lease)
    do/<source>\0                       "full" or nothing   a comparison that somebody asked for
    L/<duty>\0<lease>                              candidates of an election
    site                                SiteRecord

A digest is packed (one algorithm byte, then 32 or 64 raw bytes), so its length is known; every
other field ends with NUL, which no name holds: `T/a/b` would be ambiguous otherwise.  Between "M/"
and "U" lie the replicated keys and nothing else, so the feed is one range.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from node.blobs import SessionId
from node.digest import Digest
from node.kv import Lease, Range, prefix
from node.reference import Repository, Tag

SITE: Final = b"site"
REPLICATED: Final = Range(b"M/", b"U")
BLOBS: Final = prefix(b"b/")
SESSIONS: Final = prefix(b"s/")
CATALOG: Final = prefix(b"c/")
# c and c-, side by side and nothing else: the later written of a repository's two keys says
# whether it is in the catalog, so followers are told of those that leave.
CATALOG_CHANGES: Final = Range(b"c-/", CATALOG.end)
STAGES: Final = prefix(b"g/")
# All that is known of peers begins here; a peer that has parks has a cursor too.
PEERS: Final = tuple(prefix(kind) for kind in (b"cur/", b"ack/", b"st/", b"do/"))


def _end(text: str) -> bytes:
    return text.encode() + b"\0"


def manifest(repository: Repository, digest: Digest) -> bytes:
    """M: the register of a manifest."""
    return b"M/" + _end(repository) + digest.packed


def manifests(repository: Repository) -> Range:
    """All M of a repository, tombstones too."""
    return prefix(b"M/" + _end(repository))


def tag(repository: Repository, name: Tag) -> bytes:
    """T: the register of a tag."""
    return b"T/" + _end(repository) + _end(name)


def tags(repository: Repository) -> Range:
    """All T of a repository, tombstones too."""
    return prefix(b"T/" + _end(repository))


def blob(digest: Digest) -> bytes:
    """b: the record of a blob."""
    return b"b/" + digest.packed


def blob_digest(key: bytes) -> Digest:
    """The blob that a b key is about."""
    return Digest.take(key, 2)[0]


def reference(target: Digest, repository: Repository, by: Digest) -> bytes:
    """r: manifest `by` needs `target`."""
    return b"r/" + target.packed + _end(repository) + by.packed


def references(target: Digest, repository: Repository, limit: int = 0) -> Range:
    """All r to `target` in a repository."""
    return prefix(b"r/" + target.packed + _end(repository), limit)


def referring(key: bytes) -> Digest:
    """The manifest that an r key says is referring."""
    _, end = Digest.take(key, 2)
    return Digest.take(key, key.index(b"\0", end) + 1)[0]


def pin(digest: Digest, repository: Repository) -> bytes:
    """u: the pin of a blob in a repository."""
    return b"u/" + digest.packed + _end(repository)


def tagged(repository: Repository, digest: Digest, name: Tag) -> bytes:
    """tr: a sibling of the tag names the digest."""
    return b"tr/" + _end(repository) + digest.packed + _end(name)


def tags_of(repository: Repository, digest: Digest, limit: int = 0) -> Range:
    """All tr of a manifest."""
    return prefix(b"tr/" + _end(repository) + digest.packed, limit)


def tagged_name(key: bytes) -> Tag:
    """The tag that a tr key is about."""
    _, end = Digest.take(key, key.index(b"\0") + 1)
    return Tag(key[end:-1].decode())


def live_tag(repository: Repository, name: Tag) -> bytes:
    """l: the tag shows something."""
    return b"l/" + _end(repository) + _end(name)


def live_tags(repository: Repository, after: str | None = None, limit: int = 0) -> Range:
    """The l of a repository, from just after a name (which need not exist)."""
    whole = prefix(b"l/" + _end(repository), limit)
    return whole if after is None else _beyond(whole, after)


def live_tag_name(key: bytes) -> Tag:
    """The tag that an l key is about."""
    return Tag(key[key.index(b"\0") + 1 : -1].decode())


def referrer(repository: Repository, subject: Digest, digest: Digest) -> bytes:
    """f: the manifest has this subject."""
    return b"f/" + _end(repository) + subject.packed + digest.packed


def referrers(
    repository: Repository, subject: Digest, after: Digest | None = None, limit: int = 0
) -> Range:
    """The f of a subject, from just after a manifest (which need not exist)."""
    whole = prefix(b"f/" + _end(repository) + subject.packed, limit)
    return whole if after is None else whole._replace(start=whole.start + after.packed + b"\0")


def referrer_digest(key: bytes) -> Digest:
    """The manifest that an f key is about."""
    _, end = Digest.take(key, key.index(b"\0") + 1)
    return Digest.take(key, end)[0]


def repository(name: Repository) -> bytes:
    """c: the repository has live content."""
    return b"c/" + _end(name)


def repositories(after: str | None = None, limit: int = 0) -> Range:
    """The c keys, from just after a name (which need not exist)."""
    whole = CATALOG._replace(limit=limit)
    return whole if after is None else _beyond(whole, after)


def repository_name(key: bytes) -> Repository:
    """The repository that a c key is about."""
    return Repository(key[2:-1].decode())


def forgotten(name: Repository) -> bytes:
    """c-: the repository left the catalog when this was last written."""
    return b"c-/" + _end(name)


def catalog_change(key: bytes) -> tuple[Repository, bool]:
    """Which repository a c or c- key is about, and whether it is in the catalog by that."""
    kind, _, name = key.partition(b"/")
    return Repository(name[:-1].decode()), kind == b"c"


def conflict(repository: Repository, name: Tag) -> bytes:
    """x: the tag's siblings name more than one live manifest."""
    return b"x/" + _end(repository) + _end(name)


def conflicts(
    repository: Repository | None = None, after: str | None = None, limit: int = 0
) -> Range:
    """The x of a repository or of all, from just after `repository:tag` (it need not exist)."""
    whole = prefix(b"x/" if repository is None else b"x/" + _end(repository), limit)
    if after is None:
        return whole
    # A client's text, as in `_beyond`; in an image's name the colon is where the repository ends.
    start = b"x/" + after.encode("utf-8", "replace").replace(b":", b"\0", 1) + b"\0\0"
    return whole._replace(start=min(max(start, whole.start), whole.end))


def conflict_name(key: bytes) -> TagName:
    """The tag that an x key is about."""
    repository, name, _ = key[2:].split(b"\0")
    return TagName(Repository(repository.decode()), Tag(name.decode()))


def session(session_id: SessionId) -> bytes:
    """s: an upload session."""
    return b"s/" + session_id.encode()


def session_id(key: bytes) -> SessionId:
    """The session that an s key is about."""
    return SessionId(key[2:].decode())


def stage(repository: Repository, digest: Digest) -> bytes:
    """g: the manifest is being committed in several transactions."""
    return b"g/" + _end(repository) + digest.packed


def staged(key: bytes) -> ManifestName:
    """The manifest that a g key is about."""
    end = key.index(b"\0")
    return ManifestName(Repository(key[2:end].decode()), Digest.take(key, end + 1)[0])


def operation(op: str) -> bytes:
    """o: the operation was applied."""
    return b"o/" + op.encode()


def event(repository: Repository, op: str, n: int) -> bytes:
    """ev: the n-th event of an operation."""
    return b"ev/" + _end(repository) + _end(op) + str(n).encode()


def cursor(source: str) -> bytes:
    """cur: how far a peer is applied here."""
    return b"cur/" + _end(source)


def parked(source: str, repository: Repository) -> bytes:
    """park: a repository of a peer that is behind."""
    return b"park/" + _end(source) + _end(repository)


def all_parked(source: str) -> Range:
    """All park keys of a peer."""
    return prefix(b"park/" + _end(source))


def parked_repository(key: bytes) -> Repository:
    """The repository that a park key is about."""
    return Repository(key[key.index(b"\0") + 1 : -1].decode())


def ack(peer: str) -> bytes:
    """ack: how far a peer has applied this site."""
    return b"ack/" + _end(peer)


def status(source: str) -> bytes:
    """st: what the follower of a peer says of itself."""
    return b"st/" + _end(source)


def peer_name(key: bytes) -> str:
    """The peer that a cur, ack, st or do key is about."""
    return key[key.index(b"/") + 1 : -1].decode()


def request(source: str) -> bytes:
    """do: a peer is to be compared with at once."""
    return b"do/" + _end(source)


def candidate(duty: str, lease: Lease) -> bytes:
    """L: a candidate of an election; its create revision orders and fences it."""
    return b"L/" + _end(duty) + f"{lease:016x}".encode()


def candidates(duty: str) -> Range:
    """All candidates for a duty."""
    return prefix(b"L/" + _end(duty))


class ManifestName(NamedTuple):
    """What an M key is about."""

    repository: Repository
    digest: Digest


class TagName(NamedTuple):
    """What a T key is about."""

    repository: Repository
    tag: Tag


Name: TypeAlias = ManifestName | TagName


def register(name: Name) -> bytes:
    """The key of a replicated register."""
    match name:
        case ManifestName(repository, digest):
            return manifest(repository, digest)
        case TagName(repository, name_of_tag):
            return tag(repository, name_of_tag)


def parse_register(key: bytes) -> Name | None:
    """What a replicated key is about; None for a kind that this version does not know.

    Raises:
        ValueError: No key of these two kinds is like that.
    """
    if not key.startswith((b"M/", b"T/")):
        return None
    end = key.find(b"\0")
    name = Repository(key[2:end].decode())
    if key.startswith(b"M/"):
        return ManifestName(name, Digest.take(key, end + 1)[0])
    return TagName(name, Tag(key[end + 1 : -1].decode()))


def _beyond(whole: Range, after: str) -> Range:
    # `after` is a client's text and may hold anything: a NUL in it must not reach over the end.
    start = whole.start + after.encode("utf-8", "replace") + b"\0\0"
    return whole._replace(start=min(max(start, whole.start), whole.end))
