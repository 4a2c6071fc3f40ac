"""Mutants of `deletes: false`: ways to keep what a peer deletes that lose something, or too little.

An archive may differ from its peers in one thing: what they have deleted is live there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import pytest

from node.change import Change
from node.keys import ManifestName, TagName
from node.records import Pushed
from node.register import Register, merge
from node.replica import HeldManifest, HeldTag
from replicator import apply, plan

Patch = pytest.MonkeyPatch


def archive_takes_deletes_of_tags(patch: Patch) -> None:
    """The manifests are kept, and nobody finds them by their tags."""
    whole = plan.plan_tag

    def plan_tag(
        name: TagName, change: Change, held: HeldTag, told: plan.Told, *, deletes: bool
    ) -> plan.TagStep:
        return whole(name, change, held, told, deletes=True)

    patch.setattr(apply, "plan_tag", plan_tag)


def archive_takes_deletes_of_manifests(patch: Patch) -> None:
    """Only a tag that is deleted alone is kept."""
    patch.setattr(plan, "_outlive", plan._bury)


def archive_revives_what_it_keeps(patch: Patch) -> None:
    """What is kept gets a fresh dot, which the deleting site has not seen, and goes live there."""

    def outlive(
        _name: ManifestName, merged: Register[Pushed], held: HeldManifest, _told: plan.Told
    ) -> plan.ManifestStep:
        return plan.Keep(merged) if held.register.live else plan.Done()

    patch.setattr(plan, "_outlive", outlive)


def archive_keeps_children_to_itself(patch: Patch) -> None:
    """A child is kept without a fresh dot, though others need it for an index that lives."""
    patch.setattr(plan, "_outlive", lambda *_: plan.Done())


def archive_keeps_children_unasked(patch: Patch) -> None:
    """A child is kept for an index of which nobody asked whether it was deleted too."""

    def outlive(
        _name: ManifestName, merged: Register[Pushed], held: HeldManifest, _told: plan.Told
    ) -> plan.ManifestStep:
        return plan.Keep(merged) if held.register.live and held.parents else plan.Done()

    patch.setattr(plan, "_outlive", outlive)


def archive_keeps_what_was_replaced(patch: Patch) -> None:
    """A push at a peer that replaces what is here is taken for a delete of it."""

    def taken(
        mine: Register[Pushed], theirs: Register[Pushed], *, deletes: bool
    ) -> Register[Pushed]:
        merged = merge(mine, theirs)
        return merged if deletes or merged.siblings.keys() >= mine.siblings.keys() else mine

    patch.setattr(plan, "taken", taken)


ARCHIVE_MUTANTS: Final[Sequence[Callable[[Patch], None]]] = (
    archive_takes_deletes_of_tags,
    archive_takes_deletes_of_manifests,
    archive_revives_what_it_keeps,
    archive_keeps_children_to_itself,
    archive_keeps_children_unasked,
    archive_keeps_what_was_replaced,
)
