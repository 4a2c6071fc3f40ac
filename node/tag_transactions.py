"""The transactions about tags: moved by a push (in T3), deleted, applied from a peer (T3r).

Pure, like all of them.  A tag shows the latest of its siblings whose manifest is live; its indexes
(tr, l, x) are written with it, so they always say what the register says.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from node import keys
from node.digest import Digest
from node.errors import ManifestUnknown
from node.kv import Range, only
from node.records import Action, Pushed
from node.reference import Repository, Tag
from node.register import Register
from node.transaction import Seen, Transaction
from node.wire import codec

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


def put_tag(
    txn: Transaction,
    tag: Tag,
    before: Register[Pushed],
    after: Register[Pushed],
    alive: Collection[Digest],
) -> None:
    """Write a tag's register and its indexes; `alive` holds the live ones among its manifests."""
    repository = txn.repository
    txn.put(keys.tag(repository, tag), codec.encode_register(after))
    named = digests(after)
    for gone in digests(before) - named:
        txn.delete(keys.tagged(repository, gone, tag))
    for digest in named:
        txn.put(keys.tagged(repository, digest, tag))
    living = named.intersection(alive)
    _write_if(txn, keys.live_tag(repository, tag), wanted=bool(living))
    _write_if(txn, keys.conflict(repository, tag), wanted=len(living) > 1)


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
    put_tag(txn, tag, before, before.push(txn.dot, value), [value.digest])
    shown = before.shown()
    if shown is None or shown.digest != value.digest:
        txn.event(Action.PUSH, value.op, value, tag, actor)


def delete_tag(txn: Transaction, tag: Tag, op: str, actor: str) -> None:
    """The tag shows nothing any more; what it named stays.

    Raises:
        ManifestUnknown: It shows nothing now.
    """
    key = keys.tag(txn.repository, tag)
    before = register_at(txn.seen, key)
    shown = before.shown(lambda value: is_live(txn.seen, txn.repository, value.digest))
    if shown is None:
        raise ManifestUnknown(tag)
    txn.once(op)
    txn.unchanged(key)
    put_tag(txn, tag, before, before.delete(txn.dot), [])
    txn.event(Action.DELETE, op, shown, tag, actor)


def untag(txn: Transaction, digest: Digest, tags: Sequence[Tag]) -> None:
    """Drop a dead manifest from its tags, and only it: other siblings stay (6.2)."""
    for tag in tags:
        key = keys.tag(txn.repository, tag)
        before = register_at(txn.seen, key)
        txn.unchanged(key)
        gone = [dot for dot, value in before.siblings.items() if value.digest == digest]
        after = before.without(gone, txn.dot) if gone else before
        alive = [d for d in digests(after) if is_live(txn.seen, txn.repository, d)]
        put_tag(txn, tag, before, after, [d for d in alive if d != digest])
        if not gone:
            txn.delete(keys.tagged(txn.repository, digest, tag))


def apply_tag(txn: Transaction, tag: Tag, merged: Register[Pushed], op: str) -> None:
    """T3r of a tag: every manifest that its siblings name is live here, and stays guarded so."""
    key = keys.tag(txn.repository, tag)
    before = register_at(txn.seen, key)
    txn.unchanged(key)
    named = digests(merged)
    for digest in named:
        txn.unchanged(keys.manifest(txn.repository, digest))
    put_tag(txn, tag, before, merged, named)
    shown, was = merged.shown(), before.shown()
    if shown is not None and (was is None or was.digest != shown.digest):
        txn.event(Action.REPLICATED, op, shown, tag, "")
