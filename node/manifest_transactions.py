"""The transactions about manifests (RELIABILITY 4): T3 commit, T3r apply, T4 delete.

Pure: what was seen goes in, guards and operations come out.  What every one of them keeps true at
this site, at every revision:

- a live manifest has its references, the records of its blobs, and live children;
- a tag's siblings all name manifests that are, or once were, live here;
- the local indexes (tr, l, f, c, x) say what the registers say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from node import keys
from node.blob_transactions import Copy, adopt, blob_ranges, visible
from node.blobs import Generation
from node.digest import Digest
from node.errors import InUse, ManifestReferencesUnknown, ManifestUnknown
from node.kv import Range, only
from node.manifest import MEDIA_TYPES, Descriptor, Manifest
from node.records import Action, Pushed, Referrer, RepositoryRecord
from node.reference import Repository, Tag
from node.register import Register
from node.tag_transactions import is_live, manifest_range, move, register_at, untag
from node.transaction import Seen, Transaction, gaps
from node.wire import codec

_TITLE = "org.opencontainers.image.title"
_DESCRIPTION = "org.opencontainers.image.description"


@dataclass(frozen=True, slots=True)
class Push:
    """One manifest PUT: what is pushed, under which tags, by whom, as which operation."""

    repository: Repository
    digest: Digest
    size: int
    manifest: Manifest
    tags: tuple[Tag, ...]
    op: str
    actor: str = ""


# --- what a manifest needs


def needs_ranges(repository: Repository, manifest: Manifest) -> list[Range]:
    """What must be read to know whether a repository holds all that a manifest needs."""
    ranges = [r for blob in manifest.blobs for r in blob_ranges(repository, blob.digest)]
    for child in manifest.children:
        ranges.append(manifest_range(repository, child.digest))
        ranges.extend(blob_ranges(repository, child.digest))
    return ranges


def missing(
    seen: Seen, repository: Repository, manifest: Manifest
) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
    """The blobs, and the children, that the repository does not hold.

    An index's child may be a blob, if its media type is none of a manifest: BuildKit's cache
    indexes list layers as manifests.
    """
    blobs = tuple(b for b in manifest.blobs if visible(seen, repository, b.digest) is None)
    children = tuple(c for c in manifest.children if not _holds_child(seen, repository, c))
    return blobs, children


def _holds_child(seen: Seen, repository: Repository, child: Descriptor) -> bool:
    if is_live(seen, repository, child.digest):
        return True
    # The pinned body of a manifest that was deleted is no child: nobody could pull it.
    return child.media_type not in MEDIA_TYPES and (
        visible(seen, repository, child.digest) is not None
    )


def _require_needs(txn: Transaction, manifest: Manifest) -> None:
    blobs, children = missing(txn.seen, txn.repository, manifest)
    if blobs or children:
        raise ManifestReferencesUnknown(tuple(str(d.digest) for d in (*blobs, *children)))
    for blob in manifest.blobs:
        txn.unchanged(keys.blob(blob.digest))
    for child in manifest.children:
        live = is_live(txn.seen, txn.repository, child.digest)
        key = keys.manifest(txn.repository, child.digest) if live else keys.blob(child.digest)
        txn.unchanged(key)


def _put_manifest(
    txn: Transaction, digest: Digest, register: Register[Pushed], manifest: Manifest, size: int
) -> None:
    """A live manifest's own keys: register, references, referrer, repository."""
    repository = txn.repository
    txn.put(keys.manifest(repository, digest), codec.encode_register(register))
    txn.put(keys.reference(digest, repository, digest))
    for needed in (*manifest.blobs, *manifest.children):
        txn.put(keys.reference(needed.digest, repository, digest))
    if manifest.subject is not None:
        listed = Referrer(manifest.media_type, size, manifest.artifact_type, manifest.annotations)
        key = keys.referrer(repository, manifest.subject.digest, digest)
        txn.put(key, codec.encode_referrer(listed))
    said = RepositoryRecord(
        manifest.annotations.get(_TITLE, ""), manifest.annotations.get(_DESCRIPTION, "")
    )
    txn.put(keys.repository(repository), codec.encode_repository(said))


# --- T3


def commit_ranges(push: Push, copy: Copy | None) -> list[Range]:
    """What T3 is decided on."""
    ranges = [
        only(keys.blob(push.digest)),
        manifest_range(push.repository, push.digest),
        *(only(keys.tag(push.repository, tag)) for tag in push.tags),
        *needs_ranges(push.repository, push.manifest),
    ]
    if copy is not None:
        ranges.append(only(keys.session(copy.session)))
    return ranges


def commit(txn: Transaction, push: Push, copy: Copy | None, damaged: frozenset[Generation]) -> bool:
    """T3: the manifest, its references, its tags and its events, at once.

    Every commit writes fresh dots, also of equal content: a re-push must beat a concurrent delete.
    An index re-dots its children too, so that a delete elsewhere that has not seen this push can't
    take them (5.5).  Returns whether the body's new copy is the one in its record.

    Raises:
        ManifestReferencesUnknown: The repository lacks what it refers to.
        BlobUnknown: Its body has no sound copy and none was brought.
        UploadUnknown: The session of the body's copy is gone.
    """
    txn.once(push.op)
    _require_needs(txn, push.manifest)
    mine = adopt(txn, push.digest, copy, damaged)
    for child in push.manifest.children:
        _redot(txn, child.digest)
    key = keys.manifest(push.repository, push.digest)
    before = register_at(txn.seen, key)
    txn.unchanged(key)
    value = Pushed(
        before.next_ms(txn.stamp.now_ms),
        push.digest,
        push.manifest.media_type,
        push.size,
        push.op,
        None if push.manifest.subject is None else push.manifest.subject.digest,
        push.manifest.artifact_type,
    )
    _put_manifest(txn, push.digest, before.push(txn.dot, value), push.manifest, push.size)
    if not push.tags and not before.live:
        txn.event(Action.PUSH, push.op, value, None, push.actor)
    for tag in push.tags:
        move(txn, tag, value, push.actor)
    return mine


def _redot(txn: Transaction, digest: Digest) -> None:
    """A fresh dot on a live manifest, its value as shown."""
    register = register_at(txn.seen, keys.manifest(txn.repository, digest))
    shown = register.shown()
    if shown is not None:
        value = replace(shown, ms=register.next_ms(txn.stamp.now_ms))
        fresh = register.push(txn.dot, value)
        txn.put(keys.manifest(txn.repository, digest), codec.encode_register(fresh))


# --- T4


def parents(seen: Seen, repository: Repository, digest: Digest) -> list[Digest]:
    """The manifests that refer to this one, live or not; its references were read whole."""
    referring = (keys.referring(e.key) for e in seen.entries(keys.references(digest, repository)))
    return [parent for parent in referring if parent != digest]


def delete_manifest(
    txn: Transaction, digest: Digest, tags: Sequence[Tag], op: str, actor: str
) -> None:
    """T4, its deciding transaction: the manifest is dead, and these tags no longer name it.

    Raises:
        ManifestUnknown: It is not live.
        InUse: A live index needs it.
    """
    before = register_at(txn.seen, keys.manifest(txn.repository, digest))
    shown = before.shown()
    if shown is None:
        raise ManifestUnknown(str(digest))
    for parent in parents(txn.seen, txn.repository, digest):
        if is_live(txn.seen, txn.repository, parent):
            raise InUse(str(digest), f"index {parent}")
    txn.once(op)
    bury(txn, digest, before.delete(txn.dot), tags)
    txn.event(Action.DELETE, op, shown, None, actor)


def bury(
    txn: Transaction, digest: Digest, tombstone: Register[Pushed], tags: Sequence[Tag]
) -> None:
    """Write a manifest's tombstone and drop it from some of its tags; clearing does the rest.

    It applies only while no live manifest refers to this one and no other reference has come.
    """
    key = keys.manifest(txn.repository, digest)
    txn.unchanged(key)
    within = keys.references(digest, txn.repository)
    txn.require(*gaps(within, [entry.key for entry in txn.seen.entries(within)]))
    for parent in parents(txn.seen, txn.repository, digest):
        txn.unchanged(keys.manifest(txn.repository, parent))
    txn.put(key, codec.encode_register(tombstone))
    for value in register_at(txn.seen, key).siblings.values():
        if value.subject is not None:
            txn.delete(keys.referrer(txn.repository, value.subject, digest))
    untag(txn, digest, tags)


def clear_tags(txn: Transaction, digest: Digest, tags: Sequence[Tag]) -> None:
    """Drop a dead manifest from more of its tags, only while it is dead as seen."""
    txn.unchanged(keys.manifest(txn.repository, digest))
    untag(txn, digest, tags)


def release(txn: Transaction, digest: Digest, targets: Sequence[Digest]) -> None:
    """Turn some of a dead manifest's references into pins, its own body's last.

    It applies only while the manifest is dead as seen (a re-push rewrites them all), and while the
    references stand: whoever released them first has pinned, and those pins may have run out.
    """
    txn.unchanged(keys.manifest(txn.repository, digest))
    for target in targets:
        key = keys.reference(target, txn.repository, digest)
        if txn.seen.entry(key) is not None:
            txn.unchanged(key)
            txn.delete(key)
            txn.pin(target)


# --- T3r: a peer's change


def apply_manifest(
    txn: Transaction, digest: Digest, merged: Register[Pushed], manifest: Manifest, op: str
) -> None:
    """T3r of a live manifest: the merged register and all that T3 writes, but no dot of this site.

    Raises:
        ManifestReferencesUnknown: Something that it needs is not here yet.
        BlobUnknown: Its body is not here yet.
    """
    key = keys.manifest(txn.repository, digest)
    shown = merged.shown()
    assert shown is not None, "a tombstone is buried, not applied"
    _require_needs(txn, manifest)
    adopt(txn, digest, None, frozenset())
    txn.unchanged(key)
    _put_manifest(txn, digest, merged, manifest, shown.size)
    if not register_at(txn.seen, key).live:
        txn.event(Action.REPLICATED, op, shown, None, "")


def keep_manifest(txn: Transaction, digest: Digest, merged: Register[Pushed]) -> None:
    """The keeping rule (5.5): a live index here needs what a peer deleted, so it stays.

    The merge is written with a fresh dot of this site, which the peer has not seen.
    """
    key = keys.manifest(txn.repository, digest)
    mine = register_at(txn.seen, key)
    shown = mine.shown()
    assert shown is not None, "only what is live is kept"
    txn.unchanged(key)
    value = replace(shown, ms=mine.next_ms(txn.stamp.now_ms))
    txn.put(key, codec.encode_register(merged.push(txn.dot, value)))
