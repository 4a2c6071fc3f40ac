"""What a manifest needs: looked at, referred to, and let go of (RELIABILITY 4, 5.4, 5.5).

Pure, like all transactions.  A manifest whose references fit into its T3 gets them there.  One that
has more is staged: `take` begins, `refer` writes some references at a time while the stage is held,
and T3 ends it.  The stage's modified revision is the token of who holds it: whoever takes it over
voids what everybody else would still do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from node import keys
from node.blob_transactions import blob_ranges, visible
from node.digest import Digest
from node.errors import ManifestInvalid, ManifestReferencesUnknown
from node.kv import Modified, Range, only
from node.manifest import MEDIA_TYPES, Descriptor, Needs
from node.records import Stage
from node.reference import Repository
from node.tag_transactions import is_live, manifest_range, register_at
from node.transaction import Seen, Transaction
from node.wire import codec


class StageLost(Exception):
    """Somebody else has taken the stage over: all has to be done again."""


def needs_ranges(repository: Repository, needs: Needs) -> list[Range]:
    """What must be read to know whether a repository holds what a manifest needs."""
    ranges = [r for blob in needs.blobs for r in blob_ranges(repository, blob.digest)]
    for child in needs.children:
        ranges.append(manifest_range(repository, child.digest))
        ranges.extend(blob_ranges(repository, child.digest))
    return ranges


def missing(seen: Seen, repository: Repository, needs: Needs) -> Needs:
    """What of it the repository does not hold.

    An index's child may be a blob, if its media type is none of a manifest: BuildKit's cache
    indexes list layers as manifests.
    """
    return Needs(
        tuple(b for b in needs.blobs if visible(seen, repository, b.digest) is None),
        tuple(c for c in needs.children if not _holds_child(seen, repository, c)),
    )


def _holds_child(seen: Seen, repository: Repository, child: Descriptor) -> bool:
    if is_live(seen, repository, child.digest):
        return True
    # The pinned body of a manifest that was deleted is no child: nobody could pull it.
    return child.media_type not in MEDIA_TYPES and (
        visible(seen, repository, child.digest) is not None
    )


def refer(txn: Transaction, by: Digest, needs: Needs, *, pushed: bool) -> None:
    """Refer to all of it.

    Where a client pushes it, its sizes have to be right, and each child gets a fresh dot: so a
    delete of the child elsewhere that has not seen this push can't take it (5.5).

    Raises:
        ManifestReferencesUnknown: The repository lacks some of it.
        ManifestInvalid: A client pushes it, and something has another size than it says.
    """
    lacking = missing(txn.seen, txn.repository, needs).digests
    if lacking:
        raise ManifestReferencesUnknown(tuple(str(digest) for digest in lacking))
    if pushed:
        _require_sizes(txn.seen, txn.repository, needs)
    for digest in needs.digests:
        txn.put(keys.reference(digest, txn.repository, by))
    for blob in needs.blobs:
        txn.unchanged(keys.blob(blob.digest))
    for child in needs.children:
        live = is_live(txn.seen, txn.repository, child.digest)
        key = keys.manifest(txn.repository, child.digest) if live else keys.blob(child.digest)
        txn.unchanged(key)
        if pushed and live:
            _redot(txn, child.digest)


def _redot(txn: Transaction, digest: Digest) -> None:
    """A fresh dot on a live manifest, its value as shown."""
    key = keys.manifest(txn.repository, digest)
    register = register_at(txn.seen, key)
    shown = register.shown()
    assert shown is not None, "only what is live gets a fresh dot"
    value = replace(shown, ms=register.next_ms(txn.stamp.now_ms))
    txn.put(key, codec.encode_register(register.push(txn.dot, value)))


def _require_sizes(seen: Seen, repository: Repository, needs: Needs) -> None:
    """Clients refuse to pull what is larger or smaller than its manifest says (P3)."""
    for needed in (*needs.blobs, *needs.children):
        size = _size(seen, repository, needed.digest)
        if size is not None and size != needed.size:
            raise ManifestInvalid(f"{needed.digest} has {size} bytes, not {needed.size}")


def _size(seen: Seen, repository: Repository, digest: Digest) -> int | None:
    blob = visible(seen, repository, digest)
    return None if blob is None else blob.record.size


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


# --- the stage


def is_staged(seen: Seen, repository: Repository, digest: Digest) -> bool:
    """Whether the manifest is on its way in several transactions; its stage's key was read."""
    return seen.entry(keys.stage(repository, digest)) is not None


def unstaged(txn: Transaction, digest: Digest) -> None:
    """That the manifest is not on its way, as seen."""
    assert not is_staged(txn.seen, txn.repository, digest), "asked before it was looked at"
    txn.unchanged(keys.stage(txn.repository, digest))


def take(txn: Transaction, digest: Digest, owner: str, targets: Sequence[Digest]) -> None:
    """Begin a stage, or take it over: its token is the revision at which this applies."""
    key = keys.stage(txn.repository, digest)
    entry = txn.seen.entry(key)
    before = () if entry is None else codec.decode_stage(entry.value).targets
    every = tuple(dict.fromkeys((*before, *targets)))
    txn.unchanged(key)
    txn.put(key, codec.encode_stage(Stage(owner, txn.stamp.now_ms, every)))


def hold(txn: Transaction, digest: Digest, token: int) -> None:
    """That the stage is still held by this token.

    Raises:
        StageLost: It is not, as seen.
    """
    key = keys.stage(txn.repository, digest)
    entry = txn.seen.entry(key)
    if entry is None or entry.modified != token:
        raise StageLost
    txn.require(Modified(key, token))


def end(txn: Transaction, digest: Digest, token: int) -> None:
    """The stage is over, in the transaction that makes the manifest live, or when it is cleared.

    Raises:
        StageLost: It is not held any more.
    """
    hold(txn, digest, token)
    txn.delete(keys.stage(txn.repository, digest))


def stage_range(repository: Repository, digest: Digest) -> Range:
    """What must be read to know whether a manifest is on its way."""
    return only(keys.stage(repository, digest))
