"""The transactions about tags: moved by a push (in T3), deleted, applied from a peer (T3r).

Pure, like all of them.  A tag shows the latest of its siblings whose manifest is live; its indexes
(tr, l, x) are written with it, so they always say what the register says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final

from node import keys
from node.condition import Condition
from node.digest import Digest
from node.errors import ConflictChanged, ManifestReferencesUnknown, ManifestUnknown
from node.kv import Range, only
from node.records import Action, Pushed
from node.reference import Reference, Repository, Tag
from node.register import Dot, Register
from node.transaction import Seen, Transaction
from node.wire import codec

# A push under several tags is one transaction. A tag takes five operations and one for each of its
# siblings, and what is left of a transaction is the manifest's own; the specification asks for ten.
MAX_TAGS: Final = 10

NEVER: Register[Pushed] = Register()


def register_at(seen: Seen, key: bytes) -> Register[Pushed]:
    """The register of a key that was read; one that never was is empty."""
    entry = seen.entry(key)
    return NEVER if entry is None else codec.decode_register(entry.value)


def manifest_range(repository: Repository, digest: Digest) -> Range:
    """What must be read to know whether a manifest is live."""
    return only(keys.manifest(repository, digest))


def is_live(seen: Seen, repository: Repository, digest: Digest) -> bool:
    """Whether the manifest is live; its key was read."""
    return register_at(seen, keys.manifest(repository, digest)).live


def digests(register: Register[Pushed]) -> frozenset[Digest]:
    """What a register's siblings name."""
    return frozenset(value.digest for value in register.siblings.values())


def sibling_ranges(repository: Repository, registers: Iterable[Register[Pushed]]) -> list[Range]:
    """The manifests that these tags' siblings name."""
    named = {digest for register in registers for digest in digests(register)}
    return [manifest_range(repository, digest) for digest in named]


def require_shown(txn: Transaction, condition: Condition) -> None:
    """The condition holds, and applying depends on it.

    Raises:
        PreconditionFailed: It does not.
    """
    key = _register_key(txn.repository, condition.reference)
    shown = register_at(txn.seen, key).shown(
        lambda value: is_live(txn.seen, txn.repository, value.digest)
    )
    txn.unchanged(key)
    if shown is not None:
        txn.unchanged(keys.manifest(txn.repository, shown.digest))
    condition.require(None if shown is None else shown.digest)


def require_siblings(txn: Transaction, tag: Tag, dots: Collection[Dot]) -> None:
    """The tag has these siblings and no other, and applying depends on it.

    Raises:
        ConflictChanged: It has not.
    """
    key = keys.tag(txn.repository, tag)
    register = register_at(txn.seen, key)
    txn.unchanged(key)
    if frozenset(register.siblings) != frozenset(dots):
        raise ConflictChanged(tag, tuple(sorted(map(str, digests(register)))))


def _register_key(repository: Repository, reference: Reference) -> bytes:
    if isinstance(reference, Digest):
        return keys.manifest(repository, reference)
    return keys.tag(repository, reference)


def put_tag(txn: Transaction, tag: Tag, before: Register[Pushed], after: Register[Pushed]) -> None:
    """Write a tag's register and its indexes, which depend on nothing else.

    A sibling whose manifest has just died still counts until it is dropped, moments later: were
    the manifest pushed again before that, the indexes would be right already.
    """
    repository = txn.repository
    txn.put(keys.tag(repository, tag), codec.encode_register(after))
    named = digests(after)
    for gone in digests(before) - named:
        txn.delete(keys.tagged(repository, gone, tag))
    for digest in named:
        txn.put(keys.tagged(repository, digest, tag))
    _write_if(txn, keys.live_tag(repository, tag), wanted=bool(named))
    _write_if(txn, keys.conflict(repository, tag), wanted=len(named) > 1)


def _write_if(txn: Transaction, key: bytes, *, wanted: bool) -> None:
    if wanted:
        txn.put(key)
    else:
        txn.delete(key)


def move(txn: Transaction, tag: Tag, value: Pushed, actor: str) -> None:
    """T3's part: the tag shows what is pushed; an event only if it showed something else."""
    key = keys.tag(txn.repository, tag)
    before = register_at(txn.seen, key)
    txn.unchanged(key)
    value = replace(value, ms=before.next_ms(txn.stamp.now_ms))
    put_tag(txn, tag, before, before.push(txn.dot, value))
    shown = before.shown()
    if shown is None or shown.digest != value.digest:
        txn.event(Action.PUSH, value.op, value, tag, actor)


def delete_tag(
    txn: Transaction, tag: Tag, op: str, actor: str, condition: Condition | None = None
) -> None:
    """The tag shows nothing any more; what it named stays.

    Raises:
        ManifestUnknown: It shows nothing now.
        PreconditionFailed: It shows something else than the condition asks for.
    """
    key = keys.tag(txn.repository, tag)
    before = register_at(txn.seen, key)
    shown = before.shown(lambda value: is_live(txn.seen, txn.repository, value.digest))
    if shown is None:
        raise ManifestUnknown(tag)
    if condition is not None:
        require_shown(txn, condition)
    txn.once(op)
    txn.unchanged(key)
    put_tag(txn, tag, before, before.delete(txn.dot))
    txn.event(Action.DELETE, op, shown, tag, actor)


def untag(txn: Transaction, digest: Digest, tags: Sequence[Tag]) -> None:
    """Drop a dead manifest from its tags, and only it: other siblings stay (6.2)."""
    for tag in tags:
        key = keys.tag(txn.repository, tag)
        before = register_at(txn.seen, key)
        txn.unchanged(key)
        gone = [dot for dot, value in before.siblings.items() if value.digest == digest]
        if gone:
            put_tag(txn, tag, before, before.without(gone, txn.dot))
        else:
            txn.delete(keys.tagged(txn.repository, digest, tag))


def apply_tag(
    txn: Transaction, tag: Tag, merged: Register[Pushed], gone: Collection[Dot], op: str
) -> None:
    """T3r of a tag, without the siblings that are `gone`: deleted by digest, not "not here yet".

    It applies only where each other sibling's manifest is live and has seen the very push that the
    sibling is of.  So whoever drops a tag because its manifest died never drops a push that the
    deleter had not seen (P5).

    Raises:
        ManifestReferencesUnknown: One of them is not.
    """
    key = keys.tag(txn.repository, tag)
    before = register_at(txn.seen, key)
    txn.unchanged(key)
    for digest in digests(merged):
        txn.unchanged(keys.manifest(txn.repository, digest))
    after = merged.without(gone, txn.dot) if gone else merged
    for dot, value in after.siblings.items():
        manifest = register_at(txn.seen, keys.manifest(txn.repository, value.digest))
        if not (manifest.live and manifest.has_seen(dot)):
            raise ManifestReferencesUnknown((str(value.digest),))
    put_tag(txn, tag, before, after)
    shown, was = after.shown(), before.shown()
    if shown is None:
        return
    if was is None or was.digest != shown.digest:
        txn.event(Action.REPLICATED, op, shown, tag, "")
    _tell_hidden(txn, tag, before, after, op)


def _tell_hidden(
    txn: Transaction, tag: Tag, before: Register[Pushed], after: Register[Pushed], op: str
) -> None:
    """Of concurrent pushes, one event for each that is not shown, as soon as it is not (P5)."""
    was, shown = before.shown(), after.shown()
    told = {shown.digest} if shown is not None else set()
    told.update(digest for digest in digests(before) if was is None or digest != was.digest)
    for value in sorted(after.siblings.values(), key=lambda value: (value.ms, value.digest)):
        if value.digest not in told:
            told.add(value.digest)
            txn.event(Action.CONFLICT, op, value, tag, "")
