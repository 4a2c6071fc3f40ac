"""Bugs that a site could have had, put in on purpose: the simulation must catch every one.

A suite that catches none proves nothing.  Each mutant is patched into the code under simulation,
and stories and seeds are played until one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from node import (
    keys,
    manifest_transactions,
    metadata,
    register,
    replica,
    tag_transactions,
)
from node.change import Change
from node.digest import Digest
from node.kv import Guard
from node.manifest import Descriptor, Manifest
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register
from node.replica import HeldManifest, HeldTag
from node.transaction import Seen, Transaction
from replicator import apply, plan
from tests.scenario.checker import Violation
from tests.scenario.follower import Follower
from tests.scenario.profile import Profile
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

    patch.setattr(plan, "merge", merge)


def delete_forgets(patch: Patch) -> None:
    """A delete leaves an empty register that knows nothing, as a removed key does."""
    patch.setattr(Register, "delete", lambda self, dot: Register({dot.actor: dot.n}, {}))


def merge_without_context(patch: Patch) -> None:
    """Merging keeps every sibling of both sides."""

    def merge(left: Register[Pushed], right: Register[Pushed]) -> Register[Pushed]:
        ctx = {a: max(left.ctx.get(a, 0), right.ctx.get(a, 0)) for a in {*left.ctx, *right.ctx}}
        return Register(ctx, {**left.siblings, **right.siblings})

    patch.setattr(plan, "merge", merge)


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
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        return plan.Done() if merged == held.register else plan.ApplyTag(merged, frozenset())

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def tag_on_older_push(patch: Patch) -> None:
    """A tag is applied as soon as its manifest is live, though by an earlier push of it."""
    whole = plan.plan_tag

    def plan_tag(
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        live = all(held.manifests[value.digest].live for value in merged.siblings.values())
        if live and merged != held.register:
            return plan.ApplyTag(merged, frozenset())
        return whole(name, change, held, told)

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def late_is_deleted(patch: Patch) -> None:
    """A tag's sibling whose manifest is not here yet is taken for deleted."""

    def plan_tag(
        name: keys.TagName, change: Change, held: HeldTag, told: plan.Told
    ) -> plan.TagStep:
        merged = register.merge(held.register, change.register)
        dead = {d for d, v in merged.siblings.items() if not held.manifests[v.digest].live}
        done = merged == held.register
        return plan.Done() if done else plan.ApplyTag(merged, frozenset(dead))

    patch.setattr(apply, "plan_tag", plan_tag)
    patch.setattr(replica, "apply_tag", _apply_tag_anyhow)


def index_before_children(patch: Patch) -> None:
    """An index of a peer is applied whether or not its children are here."""
    whole = manifest_transactions.missing

    def missing(
        seen: Seen, repository: Repository, manifest: Manifest
    ) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
        return whole(seen, repository, manifest)[0], ()

    patch.setattr(replica, "missing", missing)
    patch.setattr(manifest_transactions, "missing", missing)


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


def parked_is_forgotten(patch: Patch) -> None:
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
    patch.setattr(manifest_transactions, "MEDIA_TYPES", media_types)


MUTANTS: Sequence[Callable[[Patch], None]] = (
    wall_clock_wins,
    delete_forgets,
    merge_without_context,
    tag_before_manifest,
    tag_on_older_push,
    late_is_deleted,
    index_before_children,
    no_keeping,
    kept_unasked,
    blobs_unguarded,
    parents_unguarded,
    registers_unguarded,
    parked_is_forgotten,
    park_ends_blindly,
    untag_takes_all,
    dots_repeat,
    children_not_asked_for,
)


# Where the bug bites only in a rare turn of events: histories that lean to it.
PROFILES: Mapping[Callable[[Patch], None], Profile] = {
    blobs_unguarded: Profile(
        {"push": 6, "collect": 6, "wait": 4}, images="cs", faulty=False, strides=(1, 2, 3, 8)
    ),
}


def _play(profile: Profile) -> None:
    for story in STORIES:
        story()
    for seed in range(_SEEDS):
        World(seed, profile).run()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_the_simulation_catches_the_mutant(
    mutant: Callable[[Patch], None], monkeypatch: Patch
) -> None:
    """Each of these bugs breaks a promise that the simulation checks."""
    mutant(monkeypatch)
    with pytest.raises(Violation):
        _play(PROFILES.get(mutant, Profile()))
