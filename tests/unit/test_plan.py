"""The planner: a change, what is held and what was told go in, the next step comes out."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from node.change import Change
from node.digest import Digest
from node.keys import ManifestName, TagName
from node.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, Manifest
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register, merge
from node.replica import HeldManifest, HeldTag
from node.transaction import Seen
from replicator.plan import (
    ApplyManifest,
    ApplyTag,
    Ask,
    Bury,
    Clear,
    Done,
    FetchBody,
    Keep,
    ManifestStep,
    Told,
    Transfer,
    Wait,
    plan_manifest,
    plan_tag,
)

REPOSITORY = Repository("app")
IMAGE, CHILD, PARENT, LAYER = (Digest.of(name) for name in (b"image", b"child", b"parent", b"l"))
NAME, CHILD_NAME, PARENT_NAME = (ManifestName(REPOSITORY, d) for d in (IMAGE, CHILD, PARENT))
TAG = TagName(REPOSITORY, Tag("t"))
NEVER: Register[Pushed] = Register()
NOTHING = Seen({}, 0)
BODY = Manifest(OCI_MANIFEST)
BLOB = Descriptor("application/octet-stream", LAYER, 1)
MANIFEST_CHILD = Descriptor(OCI_MANIFEST, CHILD, 1)


def pushed(
    digest: Digest, actor: str = "a", n: int = 1, before: Register[Pushed] = NEVER
) -> Register[Pushed]:
    """The register after a push that saw `before`."""
    return before.push(Dot(actor, n), Pushed(n, digest, OCI_INDEX, 7, f"{actor}{n}"))


def change(name: ManifestName | TagName, register: Register[Pushed]) -> Change:
    """What a source tells."""
    return Change(name, register, 1)


HERE = pushed(IMAGE)
DELETED = HERE.delete(Dot("b", 9))
READY = HeldManifest(
    register=NEVER,
    parents={},
    uncleared=False,
    body_here=True,
    manifest=BODY,
    missing_blobs=(),
    missing_children=(),
    seen=NOTHING,
)


@dataclass(frozen=True)
class Row:
    """One decision about a manifest."""

    promise: str
    step: ManifestStep
    theirs: Register[Pushed] = HERE
    held: HeldManifest = READY
    told: Told | None = None


_ALIVE = replace(READY, register=HERE)
_NEEDED = replace(_ALIVE, parents={PARENT: pushed(PARENT)})
_CHILDLESS = replace(READY, missing_children=(MANIFEST_CHILD,))
_LAYERLESS = replace(READY, missing_children=(replace(MANIFEST_CHILD, media_type="x/layer"),))

ROWS = (
    Row("what says nothing new is done", Done(), held=_ALIVE),
    Row("an older register is done", Done(), held=replace(READY, register=DELETED)),
    Row(
        "what a crash left of a delete is cleared",
        Clear(),
        held=replace(READY, register=DELETED, uncleared=True),
    ),
    Row(
        "first the body is read",
        FetchBody(IMAGE, OCI_INDEX, 7),
        held=replace(READY, manifest=None),
    ),
    Row(
        "a body that is no longer here is fetched again",
        FetchBody(IMAGE, OCI_INDEX, 7),
        held=replace(READY, body_here=False),
    ),
    Row(
        "then its blobs come, before its children",
        Transfer((BLOB,)),
        held=replace(_CHILDLESS, missing_blobs=(BLOB,)),
    ),
    Row("children are asked for, never invented", Ask((CHILD_NAME,)), held=_CHILDLESS),
    Row(
        "a child that was told and is not live here is waited for",
        Wait(f"child {CHILD} is not live here"),
        held=_CHILDLESS,
        told={CHILD_NAME: change(CHILD_NAME, pushed(CHILD))},
    ),
    Row(
        "a child of a manifest's type is never taken for a blob",
        Wait(f"child {CHILD} is not live here"),
        held=_CHILDLESS,
        told={CHILD_NAME: None},
    ),
    Row(
        "a child that is no manifest at the source is a blob",
        Transfer((replace(MANIFEST_CHILD, media_type="x/layer"),)),
        held=_LAYERLESS,
        told={CHILD_NAME: None},
    ),
    Row("with all that it needs it goes live", ApplyManifest(HERE)),
    Row(
        "a re-push beats a delete that had not seen it",
        ApplyManifest(merge(DELETED, pushed(IMAGE, n=2, before=HERE))),
        theirs=pushed(IMAGE, n=2, before=HERE),
        held=replace(READY, register=DELETED),
    ),
    Row("a tombstone buries", Bury(DELETED), theirs=DELETED, held=_ALIVE),
    Row("a tombstone of what never was here is kept in mind", Bury(DELETED), theirs=DELETED),
    Row(
        "a tombstone under a live index asks whether the index is dead",
        Ask((PARENT_NAME,)),
        theirs=DELETED,
        held=_NEEDED,
    ),
    Row(
        "a live index keeps its child",
        Keep(DELETED),
        theirs=DELETED,
        held=_NEEDED,
        told={PARENT_NAME: None},
    ),
    Row(
        "what is dead here is not brought back for an index",
        Bury(merge(DELETED, HERE.delete(Dot("c", 4)))),
        theirs=HERE.delete(Dot("c", 4)),
        held=replace(_NEEDED, register=DELETED),
    ),
)


_OTHER = HERE.delete(Dot("c", 4))
_REPLACED = pushed(IMAGE, actor="b", n=9, before=HERE)
_PARENT_HERE = pushed(PARENT)
_PARENT_DEAD = change(PARENT_NAME, _PARENT_HERE.delete(Dot("b", 8)))
_STAGED = replace(_ALIVE, parents={PARENT: NEVER})

ARCHIVE_ROWS = (
    Row("what lives here lives on, as it is", Done(), theirs=DELETED, held=_ALIVE),
    Row("a tombstone of what never was here is not kept", Done(), theirs=DELETED),
    Row(
        "what was deleted here is dead, and tombstones add nothing",
        Done(),
        theirs=DELETED,
        held=replace(READY, register=_OTHER),
    ),
    Row(
        "what a crash left of a delete made here is cleared",
        Clear(),
        theirs=DELETED,
        held=replace(READY, register=_OTHER, uncleared=True),
    ),
    Row("a push that replaces is taken", ApplyManifest(_REPLACED), theirs=_REPLACED, held=_ALIVE),
    Row(
        "a delete that left another push is taken",
        ApplyManifest(merge(DELETED, pushed(IMAGE, actor="c"))),
        theirs=merge(DELETED, pushed(IMAGE, actor="c")),
        held=_ALIVE,
    ),
    Row(
        "where an index needs it, the source is asked whether that is dead",
        Ask((PARENT_NAME,)),
        theirs=DELETED,
        held=_NEEDED,
    ),
    Row(
        "with its index deleted too, nobody else needs it",
        Done(),
        theirs=DELETED,
        held=_NEEDED,
        told={PARENT_NAME: _PARENT_DEAD},
    ),
    Row(
        "under an index that lives it lives on for all",
        Keep(DELETED),
        theirs=DELETED,
        held=_NEEDED,
        told={PARENT_NAME: change(PARENT_NAME, _PARENT_HERE)},
    ),
    Row(
        "under an index that the source has not heard of it lives on for all",
        Keep(DELETED),
        theirs=DELETED,
        held=_NEEDED,
        told={PARENT_NAME: None},
    ),
    Row(
        "under an index that was pushed again it lives on for all",
        Keep(DELETED),
        theirs=DELETED,
        held=replace(_ALIVE, parents={PARENT: pushed(PARENT, n=7)}),
        told={PARENT_NAME: _PARENT_DEAD},
    ),
    Row(
        "under an index that is being pushed it lives on for all",
        Keep(DELETED),
        theirs=DELETED,
        held=_STAGED,
        told={PARENT_NAME: _PARENT_DEAD},
    ),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.promise)
def test_the_next_step_of_a_manifest(row: Row) -> None:
    """Body, blobs, children, manifest; and a tombstone takes no child from a live index."""
    told = row.told or {}
    step = plan_manifest(NAME, change(NAME, row.theirs), row.held, told, deletes=True)
    assert step == row.step


@pytest.mark.parametrize("row", ARCHIVE_ROWS, ids=lambda row: row.promise)
def test_the_next_step_where_the_peers_deletes_are_not_taken(row: Row) -> None:
    """Nothing dies of what the peer says, and nothing is told to it that it has deleted."""
    told = row.told or {}
    step = plan_manifest(NAME, change(NAME, row.theirs), row.held, told, deletes=False)
    assert step == row.step


def _tag(
    theirs: Register[Pushed],
    manifest: Register[Pushed],
    mine: Register[Pushed] = NEVER,
    told: Told | None = None,
    *,
    deletes: bool = True,
) -> object:
    held = HeldTag(mine, {IMAGE: manifest, CHILD: pushed(CHILD)}, NOTHING)
    return plan_tag(TAG, change(TAG, theirs), held, told or {}, deletes=deletes)


def test_a_tag_comes_last() -> None:
    """A tag is applied over the manifest that its push made live."""
    assert _tag(HERE, HERE) == ApplyTag(HERE, frozenset())


def test_a_tag_that_is_known_is_done() -> None:
    """Hearing twice changes nothing."""
    assert _tag(HERE, HERE, mine=HERE) == Done()


def test_a_tags_manifest_is_asked_for_once() -> None:
    """A manifest that is not here is late: it is asked for, then waited for."""
    assert _tag(HERE, NEVER) == Ask((NAME,))
    late = Wait(f"the push of manifest {IMAGE} is not here yet")
    assert _tag(HERE, NEVER, told={NAME: change(NAME, HERE)}) == late
    assert _tag(HERE, NEVER, told={NAME: None}) == late


def test_a_tag_never_stands_on_an_earlier_push() -> None:
    """A manifest that is live by another push may die of a delete that has not seen this one."""
    assert _tag(pushed(IMAGE, n=5), HERE) == Ask((NAME,))


def test_a_tag_of_a_dead_manifest_is_late_unless_the_delete_had_seen_the_push() -> None:
    """ "Not here yet" is never taken for "deleted", and what was deleted is not waited for."""
    assert _tag(pushed(IMAGE, n=5), DELETED) == Ask((NAME,))
    assert _tag(HERE, DELETED) == ApplyTag(HERE, frozenset({Dot("a", 1)}))


def test_a_deleted_tag_needs_nothing() -> None:
    """A tag without siblings is applied at once."""
    assert _tag(DELETED, HERE, mine=HERE) == ApplyTag(DELETED, frozenset())


def test_concurrent_pushes_to_a_tag_both_stay() -> None:
    """Of a conflict both sides are kept, whichever is shown."""
    mine, theirs = HERE, pushed(IMAGE, actor="b")
    held = Register({"a": 1, "b": 1}, {**mine.siblings, **theirs.siblings})
    assert _tag(theirs, held, mine=mine) == ApplyTag(held, frozenset())


def test_a_tag_that_the_peer_has_deleted_stays() -> None:
    """Where its deletes are not taken, a tombstone is not applied, here or never here."""
    assert _tag(DELETED, HERE, mine=HERE, deletes=False) == Done()
    assert _tag(DELETED, HERE, deletes=False) == Done()


def test_a_tag_that_the_peer_has_moved_moves() -> None:
    """Keeping deletes out keeps no push out, of one sibling or of several."""
    moved = pushed(IMAGE, n=2, before=HERE)
    assert _tag(moved, moved, mine=HERE, deletes=False) == ApplyTag(moved, frozenset())
    both = Register({"a": 1, "b": 1}, {**HERE.siblings, **pushed(IMAGE, actor="b").siblings})
    one = both.without([Dot("a", 1)], Dot("c", 9))
    assert _tag(one, both, mine=both, deletes=False) == ApplyTag(one, frozenset())


def test_a_tag_of_what_the_peer_has_just_deleted_is_late() -> None:
    """It is about to let the tag go; what the tag shows here is not touched before."""
    moved = pushed(IMAGE, n=2, before=HERE)
    told: Told = {NAME: change(NAME, moved.delete(Dot("b", 9)))}
    late = Wait(f"the push of manifest {IMAGE} is not here yet")
    assert _tag(moved, HERE, mine=HERE, told=told, deletes=False) == late
    assert _tag(moved, NEVER, mine=HERE, told=told, deletes=False) == late
