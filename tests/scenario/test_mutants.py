"""Bugs that a site could have had, put in on purpose: the simulation must catch every one.

A suite that catches none proves nothing.  Each mutant is patched into the code under simulation,
and stories and seeds are played until one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from time import process_time
from typing import Any

import pytest

from node import (
    keys,
    manifest_transactions,
    metadata,
    reference_transactions,
    register,
    replica,
    tag_transactions,
)
from node.change import Change
from node.digest import Digest
from node.kv import Guard
from node.manifest import Needs
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register
from node.replica import HeldManifest, HeldTag
from node.stamps import Decider
from node.transaction import Seen, Transaction
from node.wire import codec
from replicator import apply, plan
from tests.fake_kv import RegisterRemoved
from tests.scenario.archive import ARCHIVE_MUTANTS
from tests.scenario.checker import Violation
from tests.scenario.deletes import ARCHIVE, DELETES
from tests.scenario.follower import Follower
from tests.scenario.profile import AN_ARCHIVE, Profile
from tests.scenario.resolving import (
    resolved_unseen,
    resolved_with_the_dead,
    resolved_without_the_manifest_s_dot,
)
from tests.scenario.sameness import SAMENESS_MUTANTS, SAMENESS_STORIES
from tests.scenario.stages import STAGE_MUTANTS
from tests.scenario.stories import STORIES
from tests.scenario.world import World

Patch = pytest.MonkeyPatch
_SEEDS = 3000


def wall_clock_wins(patch: Patch) -> None:
    """Of two registers the later value stays, by the clocks, and nothing else."""

    def merge(left: Register[Pushed], right: Register[Pushed]) -> Register[Pushed]:
        both = {**left.siblings, **right.siblings}
        latest = max(both, key=lambda dot: (both[dot].ms, dot), default=None)
        ctx = {a: max(left.ctx.get(a, 0), right.ctx.get(a, 0)) for a in {*left.ctx, *right.ctx}}
        return Register(ctx, {} if latest is None else {latest: both[latest]})

    patch.setattr(register, "merge", merge)


def delete_removes_the_key(patch: Patch) -> None:
    """A delete leaves nothing behind, and the register is not kept."""
    whole = Transaction.put

    def put(self: Transaction, key: bytes, value: bytes = b"", *more: Any) -> None:
        if key.startswith((b"M/", b"T/")) and not codec.decode_register(value).live:
            self.delete(key)
        else:
            whole(self, key, value, *more)

    patch.setattr(Transaction, "put", put)


def delete_forgets(patch: Patch) -> None:
    """A delete leaves an empty register that knows nothing, as a removed key does."""
    patch.setattr(Register, "delete", lambda self, dot: Register({dot.actor: dot.n}, {}))


def merge_without_context(patch: Patch) -> None:
    """Merging keeps every sibling of both sides."""

    def merge(left: Register[Pushed], right: Register[Pushed]) -> Register[Pushed]:
        ctx = {a: max(left.ctx.get(a, 0), right.ctx.get(a, 0)) for a in {*left.ctx, *right.ctx}}
        return Register(ctx, {**left.siblings, **right.siblings})

    patch.setattr(register, "merge", merge)


def _apply_tag_anyhow(
    txn: Transaction, tag: Tag, merged: Register[Pushed], gone: Collection[Dot], op: str
) -> None:
    key = keys.tag(txn.repository, tag)
    txn.unchanged(key)
    before = tag_transactions.register_at(txn.seen, key)
    after = merged.without(gone, txn.dot) if gone else merged
    tag_transactions.put_tag(txn, tag, before, after)
    tag_transactions._tell_hidden(txn, tag, before, after, op)


def tag_before_manifest(patch: Patch) -> None:
    """A tag is applied whether or not its manifest is here."""

    def plan_tag(
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told, *, deletes: bool
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        return plan.Done() if merged == held.register else plan.ApplyTag(merged, frozenset())

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def tag_on_older_push(patch: Patch) -> None:
    """A tag is applied as soon as its manifest is live, though by an earlier push of it."""
    whole = plan.plan_tag

    def plan_tag(
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told, *, deletes: bool
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        live = all(held.manifests[value.digest].live for value in merged.siblings.values())
        if live and merged != held.register:
            return plan.ApplyTag(merged, frozenset())
        return whole(name, change, held, told, deletes=deletes)

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def late_is_deleted(patch: Patch) -> None:
    """A tag's sibling whose manifest is not here yet is taken for deleted."""

    def plan_tag(
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told, *, deletes: bool
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        dead = {d for d, v in merged.siblings.items() if not held.manifests[v.digest].live}
        done = merged == held.register
        return plan.Done() if done else plan.ApplyTag(merged, frozenset(dead))

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def index_before_children(patch: Patch) -> None:
    """An index of a peer is applied whether or not its children are here."""
    whole = reference_transactions.missing

    def missing(seen: Seen, repository: Repository, needs: Needs) -> Needs:
        return Needs(whole(seen, repository, needs).blobs)

    patch.setattr(replica, "missing", missing)
    patch.setattr(reference_transactions, "missing", missing)


def index_pushed_without_redotting(patch: Patch) -> None:
    """A pushed index leaves its children as they were, though deletes of them may be on the way."""
    patch.setattr(reference_transactions, "_redot", lambda *_: None)


def no_keeping(patch: Patch) -> None:
    """A peer's tombstone takes a child from a live index."""
    patch.setattr(plan, "_bury", lambda _name, merged, _held, _told: plan.Bury(merged))


def kept_unasked(patch: Patch) -> None:
    """A child is kept before the source was asked whether its index died first."""

    def bury(
        _name: keys.ManifestName,
        merged: Register[Pushed],
        held: HeldManifest,
        _told: plan.Told,
    ) -> plan.ManifestStep:
        needed = held.register.live and held.parents
        return plan.Keep(merged) if needed else plan.Bury(merged)

    patch.setattr(plan, "_bury", bury)


def _unguarded(patch: Patch, kind: bytes) -> None:
    whole = Transaction.require

    def require(self: Transaction, *guards: Guard) -> None:
        whole(self, *(guard for guard in guards if not guard[0].startswith(kind)))

    patch.setattr(Transaction, "require", require)


def blobs_unguarded(patch: Patch) -> None:
    """A manifest is committed without a guard on the blobs that it was decided on."""
    _unguarded(patch, b"b/")


def parents_unguarded(patch: Patch) -> None:
    """A manifest is deleted without a guard that no index has come to need it."""
    _unguarded(patch, b"r/")


def registers_unguarded(patch: Patch) -> None:
    """What was read of manifests is not guarded."""
    _unguarded(patch, b"M/")


def tags_unguarded(patch: Patch) -> None:
    """A tag is written without a guard that it is still as it was read."""
    _unguarded(patch, b"T/")


def retried_blindly(patch: Patch) -> None:
    """What may have been applied is sent again, and nothing says that it must not be."""
    _unguarded(patch, b"o/")

    async def done(self: Decider, op: str) -> bool:
        return False

    patch.setattr(Decider, "_done", done)


def cursor_passes_what_is_not_applied(patch: Patch) -> None:
    """The cursor passes an item that was not applied, and nothing says so."""

    async def park(
        self: Follower, _repository: Repository, _revision: int
    ) -> Mapping[Repository, object]:
        return await self.parked()

    patch.setattr(Follower, "_park", park)


def park_ends_blindly(patch: Patch) -> None:
    """A park is cleared, whatever was parked while the repository was gone through."""
    whole = Follower._unpark

    async def unpark(self: Follower, repository: Repository, until: int) -> None:
        await whole(self, repository, until + 1000)

    patch.setattr(Follower, "_unpark", unpark)


def untag_takes_all(patch: Patch) -> None:
    """A manifest's delete drops every sibling of its tags, the living too."""

    def untag(txn: Transaction, _digest: Digest, tags: Sequence[Tag]) -> None:
        for tag in tags:
            key = keys.tag(txn.repository, tag)
            before = tag_transactions.register_at(txn.seen, key)
            txn.unchanged(key)
            tag_transactions.put_tag(txn, tag, before, before.delete(txn.dot))

    patch.setattr(manifest_transactions, "untag", untag)


def references_never_cleared(patch: Patch) -> None:
    """What a dead manifest referred to is never let go."""

    async def clear(*_: object) -> None:
        return

    for module in (metadata, replica):
        patch.setattr(module, "clear", clear)


def dots_repeat(patch: Patch) -> None:
    """Dots are numbered by the clock's seconds instead of the KV's revision."""
    whole = Transaction.__init__

    def init(self: Transaction, seen: Seen, repository: Repository, stamp: object) -> None:
        whole(self, seen, repository, stamp)  # type: ignore[arg-type]  # passed on as it is
        self.dot = Dot(self.dot.actor, self.stamp.now_ms // 100_000)

    patch.setattr(Transaction, "__init__", init)


def children_not_asked_for(patch: Patch) -> None:
    """A child that is dead here passes, as its body is still pinned."""
    media_types = frozenset[str]()
    patch.setattr(reference_transactions, "MEDIA_TYPES", media_types)


MUTANTS: Sequence[Callable[[Patch], None]] = (
    wall_clock_wins,
    delete_removes_the_key,
    delete_forgets,
    merge_without_context,
    tag_before_manifest,
    tag_on_older_push,
    late_is_deleted,
    index_before_children,
    index_pushed_without_redotting,
    no_keeping,
    kept_unasked,
    blobs_unguarded,
    parents_unguarded,
    registers_unguarded,
    tags_unguarded,
    retried_blindly,
    cursor_passes_what_is_not_applied,
    park_ends_blindly,
    untag_takes_all,
    dots_repeat,
    children_not_asked_for,
    resolved_without_the_manifest_s_dot,
    resolved_unseen,
    resolved_with_the_dead,
    *STAGE_MUTANTS,
    *ARCHIVE_MUTANTS,
    *SAMENESS_MUTANTS,
)


# Where the bug bites only in a rare turn of events: histories that lean to it.
PROFILES: Mapping[Callable[[Patch], None], Profile] = {
    **dict.fromkeys(ARCHIVE_MUTANTS, Profile(kept_from=AN_ARCHIVE)),
    blobs_unguarded: Profile(
        {"push": 6, "collect": 6, "wait": 4}, images="cs", faulty=False, strides=(1, 2, 3, 8)
    ),
    **STAGE_MUTANTS,
}


# Seeds that have caught those which no early story catches: they are played first.
CAUGHT_BY: Mapping[str, int] = {
    "blobs_unguarded": 12,
    "children_not_asked_for": 19,
    "index_before_children": 1,
    "no_keeping": 10,
    "parents_unguarded": 356,
    "resolved_without_the_manifest_s_dot": 3,
    "retried_blindly": 3,
    "stage_goes_first": 1,
    "stage_unguarded": 256,
    "staged_children_go": 27,
    "stages_unseen_by_deletes": 18,
    "tags_unguarded": 170,
    "untag_takes_all": 3,
}


def _play(mutant: str, profile: Profile) -> None:
    if (seed := CAUGHT_BY.get(mutant)) is not None:
        World(seed, profile).run()
    for story in (*SAMENESS_STORIES, *DELETES, *ARCHIVE, *STORIES):
        story()
    for seed in range(_SEEDS):
        World(seed, profile).run()


# The ways to lose or to revive something that come first to mind are found first.
_FIRST = frozenset(
    {
        wall_clock_wins,
        delete_removes_the_key,
        cursor_passes_what_is_not_applied,
        index_pushed_without_redotting,
        no_keeping,
        tag_before_manifest,
    }
)
_FIRST_CPU_S = 30.0


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_catches_the_mutant(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """Each of these bugs breaks a promise that the simulation checks, some within seconds."""
    mutant(monkeypatch)
    began_s = process_time()
    with pytest.raises((Violation, RegisterRemoved)):
        _play(mutant.__name__, PROFILES.get(mutant, Profile()))
    assert mutant not in _FIRST or process_time() - began_s < _FIRST_CPU_S
