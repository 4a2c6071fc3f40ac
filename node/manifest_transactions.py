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
from typing import Final

from node import keys
from node.blob_transactions import Copy, adopt
from node.blobs import Generation
from node.condition import Condition
from node.digest import Digest
from node.errors import InUse, ManifestUnknown
from node.kv import Range, only
from node.manifest import Manifest
from node.records import Action, Pushed, Referrer, RepositoryRecord
from node.reference import Repository, Tag
from node.reference_transactions import (
    end,
    is_staged,
    needs_ranges,
    refer,
    stage_range,
    unstaged,
)
from node.register import Dot, Register
from node.tag_transactions import (
    is_live,
    manifest_range,
    move,
    register_at,
    require_shown,
    require_siblings,
    untag,
)
from node.transaction import Seen, Transaction, gaps
from node.wire import codec

# Indexes that a kept child is guarded by: two guards each, of the 128 that a transaction may have.
_KEPT_FOR: Final = 32
_TITLE = "org.opencontainers.image.title"
_DESCRIPTION = "org.opencontainers.image.description"


@dataclass(frozen=True, slots=True)
class Push:
    """One manifest PUT: what is pushed, under which tags, by whom, as which operation.

    A condition is about its digest or the first of its tags.  One that `resolves` a conflict is of
    a manifest that is live, under one tag, and replaces these siblings of it and no others.
    """

    repository: Repository
    digest: Digest
    size: int
    manifest: Manifest
    tags: tuple[Tag, ...]
    op: str
    actor: str = ""
    condition: Condition | None = None
    resolves: frozenset[Dot] | None = None


def _put_manifest(
    txn: Transaction, digest: Digest, register: Register[Pushed], manifest: Manifest, size: int
) -> None:
    """A live manifest's own keys: register, its body's reference, referrer, repository."""
    repository = txn.repository
    txn.put(keys.manifest(repository, digest), codec.encode_register(register))
    txn.put(keys.reference(digest, repository, digest))
    if manifest.subject is not None:
        listed = Referrer(manifest.media_type, size, manifest.artifact_type, manifest.annotations)
        key = keys.referrer(repository, manifest.subject.digest, digest)
        txn.put(key, codec.encode_referrer(listed))
    # Written each time, so that its removal can be guarded.
    txn.put(keys.repository(repository), codec.encode_repository(_said(txn, manifest)))


def _said(txn: Transaction, manifest: Manifest) -> RepositoryRecord:
    """What a search finds the repository by: what its last manifest says that says anything."""
    title = manifest.annotations.get(_TITLE, "")
    description = manifest.annotations.get(_DESCRIPTION, "")
    entry = txn.seen.entry(keys.repository(txn.repository))
    if entry is not None and (manifest.subject is not None or not (title or description)):
        return codec.decode_repository(entry.value)
    return RepositoryRecord.of(title, description)


# --- T3


def commit_ranges(push: Push, copy: Copy | None, *, staged: bool = False) -> list[Range]:
    """What T3 is decided on; where it ends a stage, what it needs was seen to before."""
    ranges = [
        only(keys.blob(push.digest)),
        manifest_range(push.repository, push.digest),
        only(keys.repository(push.repository)),
        *(only(keys.tag(push.repository, tag)) for tag in push.tags),
    ]
    if staged:
        ranges.append(stage_range(push.repository, push.digest))
    else:
        ranges += needs_ranges(push.repository, push.manifest.needs)
    if copy is not None:
        ranges.append(only(keys.session(copy.session)))
    return ranges


def commit(
    txn: Transaction,
    push: Push,
    copy: Copy | None,
    damaged: frozenset[Generation],
    *,
    token: int | None = None,
) -> bool:
    """T3: the manifest, its references, its tags and its events, at once.

    Every commit writes fresh dots, also of equal content: a re-push must beat a concurrent delete.
    With a token it ends a stage, in which all references were written; else it writes them.
    Returns whether the body's new copy is the one in its record.

    Raises:
        PreconditionFailed: The reference shows something else than the condition asks for.
        ConflictChanged: The tag has other siblings than those that it resolves.
        ManifestUnknown: It resolves a conflict, and the manifest is not live.
        ManifestReferencesUnknown: The repository lacks what it refers to.
        BlobUnknown: Its body has no sound copy and none was brought.
        UploadUnknown: The session of the body's copy is gone.
        StageLost: The token is not that of the stage.
    """
    if push.condition is not None:
        require_shown(txn, push.condition)
    if push.resolves is not None:
        _require_conflict(txn, push.digest, push.tags, push.resolves)
    txn.once(push.op)
    _refer(txn, push.digest, push.manifest, token, pushed=True)
    mine = adopt(txn, push.digest, copy, damaged)
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


def _require_conflict(
    txn: Transaction, digest: Digest, tags: Sequence[Tag], dots: frozenset[Dot]
) -> None:
    # Choosing among what is there: it may not bring back what was deleted meanwhile.
    if not is_live(txn.seen, txn.repository, digest):
        raise ManifestUnknown(str(digest))
    for tag in tags:
        require_siblings(txn, tag, dots)


def _refer(
    txn: Transaction, digest: Digest, manifest: Manifest, token: int | None, *, pushed: bool
) -> None:
    if token is None:
        refer(txn, digest, manifest.needs, pushed=pushed)
    else:
        end(txn, digest, token)


# --- T4


def parents(seen: Seen, repository: Repository, digest: Digest) -> list[Digest]:
    """The manifests that refer to this one, live or not; its references were read whole."""
    referring = (keys.referring(e.key) for e in seen.entries(keys.references(digest, repository)))
    return [parent for parent in referring if parent != digest]


def parent_ranges(seen: Seen, repository: Repository, digest: Digest) -> list[Range]:
    """What must be read to know which of the parents need the manifest."""
    found = parents(seen, repository, digest)
    return [range_(repository, p) for p in found for range_ in (manifest_range, stage_range)]


def needing(seen: Seen, repository: Repository, digest: Digest) -> list[Digest]:
    """The manifests that can't be without this one: live, or on their way (5.5)."""
    return [
        parent
        for parent in parents(seen, repository, digest)
        if is_live(seen, repository, parent) or is_staged(seen, repository, parent)
    ]


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
    for parent in needing(txn.seen, txn.repository, digest):
        on_its_way = not is_live(txn.seen, txn.repository, parent)
        raise InUse(str(digest), f"index {parent}{', which is being pushed' if on_its_way else ''}")
    txn.once(op)
    bury(txn, digest, before.delete(txn.dot), tags)
    txn.event(Action.DELETE, op, shown, None, actor)


def bury(
    txn: Transaction, digest: Digest, tombstone: Register[Pushed], tags: Sequence[Tag]
) -> None:
    """Write a manifest's tombstone and drop it from some of its tags; clearing does the rest.

    It applies only while no manifest that is live or on its way refers to this one, and no other
    reference has come.
    """
    key = keys.manifest(txn.repository, digest)
    txn.unchanged(key)
    within = keys.references(digest, txn.repository)
    txn.require(*gaps(within, [entry.key for entry in txn.seen.entries(within)]))
    for parent in parents(txn.seen, txn.repository, digest):
        txn.unchanged(keys.manifest(txn.repository, parent))
        unstaged(txn, parent)
    txn.put(key, codec.encode_register(tombstone))
    for value in register_at(txn.seen, key).siblings.values():
        if value.subject is not None:
            txn.delete(keys.referrer(txn.repository, value.subject, digest))
    untag(txn, digest, tags)


def clear_tags(txn: Transaction, digest: Digest, tags: Sequence[Tag]) -> None:
    """Drop a dead manifest from more of its tags, only while it is dead as seen."""
    txn.unchanged(keys.manifest(txn.repository, digest))
    untag(txn, digest, tags)


# --- T3r: a peer's change


def apply_manifest(
    txn: Transaction,
    digest: Digest,
    merged: Register[Pushed],
    manifest: Manifest,
    op: str,
    *,
    token: int | None = None,
) -> None:
    """T3r of a live manifest: the merged register and all that T3 writes, but no dot of this site.

    With a token it ends a stage, as T3 does.

    Raises:
        ManifestReferencesUnknown: Something that it needs is not here yet.
        BlobUnknown: Its body is not here yet.
        StageLost: The token is not that of the stage.
    """
    key = keys.manifest(txn.repository, digest)
    shown = merged.shown()
    assert shown is not None, "a tombstone is buried, not applied"
    _refer(txn, digest, manifest, token, pushed=False)
    adopt(txn, digest, None, frozenset())
    txn.unchanged(key)
    _put_manifest(txn, digest, merged, manifest, shown.size)
    if not register_at(txn.seen, key).live:
        txn.event(Action.REPLICATED, op, shown, None, "")


def keep_manifest(txn: Transaction, digest: Digest, merged: Register[Pushed]) -> None:
    """The keeping rule (5.5): a live index here needs what a peer deleted, so it stays.

    The merge is written with a fresh dot of this site, which the peer has not seen.  An index that
    has died meanwhile needs nothing any more: then this does not land.
    """
    key = keys.manifest(txn.repository, digest)
    mine = register_at(txn.seen, key)
    shown = mine.shown()
    assert shown is not None, "only what is live is kept"
    txn.unchanged(key)
    for parent in needing(txn.seen, txn.repository, digest)[:_KEPT_FOR]:
        txn.unchanged(keys.manifest(txn.repository, parent))
        txn.unchanged(keys.stage(txn.repository, parent))
    value = replace(shown, ms=mine.next_ms(txn.stamp.now_ms))
    txn.put(key, codec.encode_register(merged.push(txn.dot, value)))
