"""Mutants of stages: ways to commit a manifest in several transactions that lose a part of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest

from node import (
    clearing,
    keys,
    manifest_transactions,
    reference_transactions,
    replica,
    staging,
    tag_transactions,
)
from node.digest import Digest
from node.kv import only
from node.reference import Repository
from node.reference_transactions import end, release, stage_range
from node.staging import Staging
from node.tag_transactions import manifest_range
from node.transaction import Seen, Transaction
from node.wire import codec
from tests.scenario.profile import Profile

Patch = pytest.MonkeyPatch
_RACES: Final = (1, 2, 3, 8)


def stages_unseen_by_deletes(patch: Patch) -> None:
    """The end of a delete lets go of references that a stage has written."""
    patch.setattr(clearing, "is_staged", lambda *_: False)
    patch.setattr(clearing, "unstaged", lambda *_: None)


def stage_goes_first(patch: Patch) -> None:
    """Clearing a stage deletes it before the references by which it would be found."""

    async def abandon(self: Staging, repository: Repository, digest: Digest, token: int) -> None:
        look, decide = self._decider.look, self._decider.decide
        within = [stage_range(repository, digest), manifest_range(repository, digest)]
        entry = (await look(within)).entry(keys.stage(repository, digest))
        if entry is None:
            return
        await decide(repository, lambda: look(within), lambda txn: end(txn, digest, token))
        targets = codec.decode_stage(entry.value).targets
        references = [only(keys.reference(target, repository, digest)) for target in targets]

        def decision(txn: Transaction) -> None:
            if not tag_transactions.is_live(txn.seen, repository, digest):
                release(txn, digest, targets)

        await decide(repository, lambda: look([*within, *references]), decision)

    patch.setattr(Staging, "abandon", abandon)


def stage_unguarded(patch: Patch) -> None:
    """Whoever lost its stage goes on where it was."""
    for module in (staging, reference_transactions):
        patch.setattr(module, "hold", lambda *_: None)


def staged_children_go(patch: Patch) -> None:
    """A child is kept for indexes that are live, and not for those on their way."""

    def needing(seen: Seen, repository: Repository, digest: Digest) -> list[Digest]:
        return [
            parent
            for parent in manifest_transactions.parents(seen, repository, digest)
            if tag_transactions.is_live(seen, repository, parent)
        ]

    for module in (manifest_transactions, replica):
        patch.setattr(module, "needing", needing)
    patch.setattr(manifest_transactions, "unstaged", lambda *_: None)


# With histories that lean to where they bite.
STAGE_MUTANTS: Final[Mapping[Callable[[Patch], None], Profile]] = {
    stages_unseen_by_deletes: Profile(
        {"push": 6, "delete_manifest": 4, "collect": 2}, images="d", strides=_RACES, chunk=3
    ),
    stage_goes_first: Profile({"push": 6, "tidy": 4, "crash": 2}, images="d", chunk=3),
    stage_unguarded: Profile(
        {"push": 6, "tidy": 4, "collect": 4, "wait": 2}, images="d", strides=_RACES, chunk=3
    ),
    staged_children_go: Profile(
        {"push": 6, "delete_manifest": 4, "tidy": 1}, images="cdj", strides=_RACES, chunk=3
    ),
}
