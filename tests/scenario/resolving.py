"""Mutants of resolving: ways to choose what a tag in conflict shows that lose something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from node import keys, manifest_transactions, metadata, tag_transactions
from node.digest import Digest
from node.manifest_transactions import Push
from node.reference import Tag
from node.register import Dot
from node.transaction import Transaction

Patch = pytest.MonkeyPatch


def _resolving(patch: Patch, resolve: Callable[[Transaction, Push], None]) -> None:
    whole = manifest_transactions.commit

    def commit(txn: Transaction, push: Push, *others: Any, **more: Any) -> bool:
        if push.resolves is None:
            return whole(txn, push, *others, **more)
        resolve(txn, push)
        return False

    patch.setattr(metadata, "commit", commit)


def resolved_without_the_manifest_s_dot(patch: Patch) -> None:
    """Resolving a conflict writes the tag alone, and peers can't tell which push that is of."""

    def resolve(txn: Transaction, push: Push) -> None:
        assert push.resolves is not None
        manifest_transactions._require_conflict(txn, push.digest, push.tags, push.resolves)
        manifest = keys.manifest(push.repository, push.digest)
        shown = tag_transactions.register_at(txn.seen, manifest).shown()
        assert shown is not None, "a live one is chosen"
        txn.once(push.op)
        for tag in push.tags:
            tag_transactions.move(txn, tag, shown, "")

    _resolving(patch, resolve)


def resolved_unseen(patch: Patch) -> None:
    """Resolving replaces whatever the tag has by then."""
    patch.setattr(manifest_transactions, "require_siblings", lambda *_: None)


def resolved_with_the_dead(patch: Patch) -> None:
    """Resolving brings a manifest back that was deleted meanwhile."""

    def require_conflict(
        txn: Transaction, _digest: Digest, tags: Sequence[Tag], dots: frozenset[Dot]
    ) -> None:
        for tag in tags:
            tag_transactions.require_siblings(txn, tag, dots)

    patch.setattr(manifest_transactions, "_require_conflict", require_conflict)
