"""Decide what a peer's change needs next, without doing any of it.

A change, what this site holds and what the source has told go in; one step comes out.  Whoever
performs it (replicator/apply.py) looks again and asks again, until a step says that nothing is left
to do.  Nothing here awaits, reads a clock or opens a socket, so every interleaving that a network
can produce is a plain function call in a test.

The order is the promise (P3): a manifest's body, its blobs, its children, the manifest; a tag last.
A tombstone never takes a child from a live index (RELIABILITY 5.5), and "not here yet" is never
taken for "deleted".  Of a source whose deletes are not taken no change makes anything dead that is
live here (docs/adr/0017).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from node.change import Change
from node.digest import Digest
from node.keys import ManifestName, Name, TagName
from node.manifest import MEDIA_TYPES, Descriptor
from node.records import Pushed
from node.reference import Repository
from node.register import Dot, Register, merge, taken
from node.replica import HeldManifest, HeldTag

# What the source answered when it was asked for names, while this change was in work; None: it
# has no register of that name.
Told: TypeAlias = Mapping[Name, Change | None]


@dataclass(frozen=True, slots=True)
class Done:
    """The change says nothing that is to be applied here, or not any more."""


@dataclass(frozen=True, slots=True)
class FetchBody:
    """The manifest's body is to be here, and to be read."""

    digest: Digest
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """These blobs are to be visible in the repository."""

    descriptors: tuple[Descriptor, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """The source is to be asked for these registers, and what it tells is to be applied first."""

    names: tuple[Name, ...]


@dataclass(frozen=True, slots=True)
class ApplyManifest:
    """All that the manifest needs is here: it goes live."""

    merged: Register[Pushed]


@dataclass(frozen=True, slots=True)
class Bury:
    """The manifest is dead."""

    merged: Register[Pushed]


@dataclass(frozen=True, slots=True)
class Keep:
    """The manifest would be dead, but a live index here needs it."""

    merged: Register[Pushed]


@dataclass(frozen=True, slots=True)
class Clear:
    """The manifest is dead here, and some of its tags or references are left to let go."""


@dataclass(frozen=True, slots=True)
class ApplyTag:
    """The tag is moved, without the siblings that are gone."""

    merged: Register[Pushed]
    gone: frozenset[Dot]


@dataclass(frozen=True, slots=True)
class Wait:
    """It can't be applied yet; what it waits for comes as a change of its own, or not at all."""

    reason: str


ManifestStep: TypeAlias = (
    Done | FetchBody | Transfer | Ask | ApplyManifest | Bury | Keep | Clear | Wait
)
TagStep: TypeAlias = Done | Ask | ApplyTag | Wait
Step: TypeAlias = ManifestStep | TagStep


def is_known(change: Change, held: Register[Pushed]) -> bool:
    """Whether nothing is to be done for a change; of what is dead here something may be left."""
    return held.live and merge(held, change.register) == held


def plan_manifest(
    name: ManifestName, change: Change, held: HeldManifest, told: Told, *, deletes: bool
) -> ManifestStep:
    """The next step for a change of a manifest."""
    merged = merge(held.register, change.register)
    if merged == held.register:
        return Clear() if held.uncleared else Done()
    shown = merged.shown()
    if shown is None:
        end = _bury if deletes else _outlive
        return end(name, merged, held, told)
    if held.manifest is None or not held.body_here:
        return FetchBody(name.digest, shown.media_type, shown.size)
    if held.missing_blobs:
        return Transfer(held.missing_blobs)
    if held.missing_children:
        return _children(name, held.missing_children, told)
    return ApplyManifest(merged)


def _bury(
    name: ManifestName, merged: Register[Pushed], held: HeldManifest, told: Told
) -> ManifestStep:
    """The keeping rule: ask whether the indexes died before their child; if not, it lives on."""
    if not held.register.live or not held.parents:
        return Bury(merged)
    # Their author may have deleted them first, and that change may come to us second.
    return _unasked(name.repository, held.parents, told) or Keep(merged)


def _outlive(
    name: ManifestName, merged: Register[Pushed], held: HeldManifest, told: Told
) -> ManifestStep:
    """What the source deletes stays as it is; but where an index needs it that the source has not
    deleted, it is to live on at all sites, or they could not have the index.
    """
    if not held.register.live:
        return Clear() if held.uncleared else Done()
    ask = _unasked(name.repository, held.parents, told)
    if ask is not None:
        return ask
    outlived = {
        parent
        for parent, register in held.parents.items()
        if (answer := told[ManifestName(name.repository, parent)]) is not None
        and register.live
        and not merge(register, answer.register).live
    }
    return Keep(merged) if held.parents.keys() - outlived else Done()


def _children(name: ManifestName, children: tuple[Descriptor, ...], told: Told) -> ManifestStep:
    unasked = _unasked(name.repository, [child.digest for child in children], told)
    if unasked is not None:
        return unasked
    # A child that was told and that is not here is a blob, or can't be applied yet.
    blobs = tuple(child for child in children if _is_blob(name, child, told))
    if blobs:
        return Transfer(blobs)
    return Wait(f"child {children[0].digest} is not live here")


def _is_blob(name: ManifestName, child: Descriptor, told: Told) -> bool:
    answer = told[ManifestName(name.repository, child.digest)]
    known = answer is not None and answer.register.live
    return child.media_type not in MEDIA_TYPES and not known


def plan_tag(name: TagName, change: Change, held: HeldTag, told: Told, *, deletes: bool) -> TagStep:
    """The next step for a change of a tag."""
    merged = taken(held.register, change.register, deletes=deletes)
    if merged == held.register:
        return Done()
    gone = set()
    unseen = set()
    for dot, value in merged.siblings.items():
        manifest = held.manifests[value.digest]
        # A push writes its tag and its manifest under one dot.  A manifest that has not seen the
        # dot is late; one that has, and is dead, was deleted by somebody who had seen the push.
        # Where the source's deletes are not taken, what it has just deleted is late too, until it
        # has let the tag go: were it pushed again before, the tag would show it again.
        if not manifest.has_seen(dot):
            unseen.add(value.digest)
        elif not manifest.live:
            gone.add(dot)
    if unseen:
        late = f"the push of manifest {min(unseen)} is not here yet"
        return _unasked(name.repository, unseen, told) or Wait(late)
    if (misfit := _misfit(change, held)) is not None:
        return Wait(misfit)
    return ApplyTag(merged, frozenset(gone))


def _misfit(change: Change, held: HeldTag) -> str | None:
    """What a tag says of a manifest that is here, and that is not so."""
    for value in change.register.siblings.values():
        shown = held.manifests[value.digest].shown()
        if shown is not None and shown.size != value.size:
            return f"it says that {value.digest} has {value.size} bytes, not {shown.size}"
    return None


def _unasked(repository: Repository, digests: Iterable[Digest], told: Told) -> Ask | None:
    names = [ManifestName(repository, digest) for digest in sorted(digests)]
    unasked = tuple(name for name in names if name not in told)
    return Ask(unasked) if unasked else None
