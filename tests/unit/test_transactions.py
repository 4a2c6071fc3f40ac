"""The transactions as decisions: what they rely on is guarded, and nothing is written twice."""

from __future__ import annotations

import pytest

from node import keys
from node.blob_transactions import Copy, finish_upload, hide, mount
from node.blobs import Generation, SessionId
from node.clearing import clear, forget
from node.digest import Digest
from node.errors import (
    BlobUnknown,
    InUse,
    ManifestReferencesUnknown,
    MetadataUnavailable,
    UploadUnknown,
)
from node.keys import ManifestName, TagName
from node.kv import Absent, Empty, Exists, Modified, Ok, Put, Range, only
from node.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from node.manifest_transactions import Push
from node.records import Action, BlobRecord, Pin, Pushed
from node.reference import Tag
from node.register import Dot, Register, merge
from node.replica import Landed, Replica
from node.tag_transactions import apply_tag
from node.transaction import Seen, gaps
from node.wire import codec
from tests.fake_kv import Fault, MemoryKV, once
from tests.model import OTHER, REPOSITORY, Model, image_body, index_body

NONE: frozenset[Generation] = frozenset()
T = Tag("t")


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


async def _see(model: Model, *ranges: Range) -> Seen:
    return await model.decider.look(ranges)


def _tag(model: Model, tag: Tag = T) -> Register[Pushed]:
    entry = model.kv.entries().get(keys.tag(REPOSITORY, tag))
    return Register() if entry is None else codec.decode_register(entry)


def _register(model: Model, digest: Digest) -> Register[Pushed]:
    entry = model.kv.entries().get(keys.manifest(REPOSITORY, digest))
    return Register() if entry is None else codec.decode_register(entry)


def _events(model: Model, action: Action) -> list[Digest]:
    events = [codec.decode_event(v) for k, v in model.kv.entries().items() if k[:3] == b"ev/"]
    return [event.digest for event in events if event.action is action]


# --- what was seen


def test_a_key_that_was_not_read_is_a_bug() -> None:
    """ "Not read" must never look like "not there"."""
    with pytest.raises(KeyError):
        Seen({}, 1).entry(b"k")


def test_gaps_leave_room_for_what_is_known_and_for_nothing_else() -> None:
    """Between, before and behind the known keys nothing may have come."""
    assert gaps(Range(b"a", b"z"), [b"k", b"b"]) == [
        Empty(b"a", b"b"),
        Empty(b"b\0", b"k"),
        Empty(b"k\0", b"z"),
    ]


async def test_a_dot_is_never_used_twice(model: Model) -> None:
    """A dot's number is the revision of the read + 1, and the key is guarded as it was read."""
    await model.image("t")
    first = _tag(model)
    await model.image("t")
    (dot,) = _tag(model).siblings
    assert dot.n > first.ctx[dot.actor]


# --- T1, T2, T6


async def test_an_upload_without_its_session_names_no_file(model: Model) -> None:
    """The reaper may have taken the file of a session that is gone (5.2)."""
    digest = Digest.of(b"x")
    copy = Copy(SessionId("gone"), Generation("gone"), 1)
    seen = await _see(model, only(keys.session(copy.session)), only(keys.blob(digest)))
    txn = await model.decider.begin(seen, REPOSITORY)
    with pytest.raises(UploadUnknown):
        finish_upload(txn, digest, copy, NONE, "op")


async def test_a_mount_relies_on_what_makes_the_blob_visible(model: Model) -> None:
    """A pin is guarded as it was, a reference for as long as it stands."""
    digest = await model.upload(b"x")
    ranges = [
        keys.references(digest, REPOSITORY, 1),
        only(keys.pin(digest, REPOSITORY)),
        only(keys.blob(digest)),
    ]
    seen = await _see(model, *ranges)
    txn = await model.decider.begin(seen, OTHER)
    mount(txn, digest, REPOSITORY)
    assert {type(guard) for guard in txn.guards} == {Modified}
    await model.push(image_body(digest))
    txn = await model.decider.begin(await _see(model, *ranges), OTHER)
    mount(txn, digest, REPOSITORY)
    assert Exists in {type(guard) for guard in txn.guards}


async def test_a_mount_of_what_the_source_does_not_see_is_refused(model: Model) -> None:
    """A digest that is known grants nothing (I19)."""
    digest = await model.upload(b"x", OTHER)
    with pytest.raises(BlobUnknown):
        await model.content.mount(REPOSITORY, REPOSITORY, digest)


async def test_a_blob_in_use_is_not_hidden(model: Model) -> None:
    """T6 refuses while a manifest of the repository needs the blob."""
    await model.image("t", layer=b"x")
    digest = Digest.of(b"x")
    ranges = [
        keys.references(digest, REPOSITORY, 1),
        only(keys.pin(digest, REPOSITORY)),
        only(keys.blob(digest)),
    ]
    txn = await model.decider.begin(await _see(model, *ranges), REPOSITORY)
    with pytest.raises(InUse):
        hide(txn, digest, "op")


# --- T3: what an index's child may be


async def test_the_pinned_body_of_a_dead_child_is_no_child(model: Model) -> None:
    """An index of a deleted image is refused although its body is still pinned: P3."""
    child, body = await model.image()
    manifest = parse_manifest(body, None)
    await model.metadata.delete_manifest(REPOSITORY, child, manifest)
    with pytest.raises(ManifestReferencesUnknown):
        await model.push(index_body([child]), media_type=OCI_INDEX)


async def test_nothing_is_refused_that_may_yet_land(model: Model) -> None:
    """A push whose fate is unknown is not answered by what a later look would refuse."""
    layer = await model.upload(b"layer")
    body = image_body(layer)
    copy = await model.uploads.stage(REPOSITORY, Digest.of(body), body)
    push = Push(REPOSITORY, Digest.of(body), len(body), parse_manifest(body, None), (T,), "op")
    hidden = codec.encode_pin(Pin(expires_ms=0, hidden=True))

    def faults(_guards: object, _ops: object) -> Fault:
        model.kv.faults = once()
        model.kv._stored.put(Put(keys.pin(layer, REPOSITORY), hidden), 99)
        return Fault.GHOST

    await model.decider.stamps.now()
    model.kv.faults = faults
    with pytest.raises(MetadataUnavailable):
        await model.metadata.commit(push, copy)
    assert isinstance(model.kv.land(), Ok)


# --- clearing


async def test_clearing_leaves_the_living_alone(model: Model) -> None:
    """It looks itself: a manifest that was pushed again keeps its tags and references."""
    digest, body = await model.image("t")
    before = model.kv.entries()
    await clear(model.decider, REPOSITORY, digest, parse_manifest(body, None))
    assert model.kv.entries() == before


async def test_clearing_goes_on_where_a_crash_left_it(model: Model) -> None:
    """A delete that died behind its tombstone is finished, and pins keep what it referred to."""
    digest, body = await model.image(*(f"t{n}" for n in range(50)))
    manifest = parse_manifest(body, None)
    faults = iter([None, Fault.REFUSED])
    model.kv.faults = lambda _guards, _ops: next(faults, Fault.REFUSED)
    with pytest.raises(Exception, match="refused"):
        await model.metadata.delete_manifest(REPOSITORY, digest, manifest)
    model.kv.faults = once()
    assert any(key.startswith(b"tr/") for key in model.kv.entries())
    await clear(model.decider, REPOSITORY, digest, manifest)
    left = {key.split(b"/")[0] for key in model.kv.entries()}
    assert left.isdisjoint({b"tr", b"l", b"r", b"c"})
    for needed in (digest, *(blob.digest for blob in manifest.blobs)):
        assert keys.pin(needed, REPOSITORY) in model.kv.entries()


async def test_a_repository_with_a_live_manifest_is_not_forgotten(model: Model) -> None:
    """Only the last manifest takes its repository along."""
    await model.image("t")
    await forget(model.decider, REPOSITORY)
    assert keys.repository(REPOSITORY) in model.kv.entries()


# --- T3r


@pytest.fixture
def replica(model: Model) -> Replica:
    return Replica(model.decider, model.staging, new_id=model.new_id)


def _theirs(digest: Digest, n: int = 3, ms: int = 0) -> Register[Pushed]:
    value = Pushed(ms, digest, OCI_MANIFEST, 2, f"op{n}")
    return Register({"nyc#1": n}, {Dot("nyc#1", n): value})


async def test_a_peers_register_is_merged_not_replaced(model: Model, replica: Replica) -> None:
    """Both dots stand, none of this site's is new, and the references are written."""
    digest, body = await model.image()
    name = ManifestName(REPOSITORY, digest)
    held = await replica.manifest(name, parse_manifest(body, None))
    merged = merge(held.register, _theirs(digest))
    assert await replica.apply_manifest(name, held, merged) is Landed.APPLIED
    assert _register(model, digest) == merged
    assert len(merged.siblings) == 2


async def test_a_register_that_can_not_be_read_is_nothing_to_know(
    model: Model, replica: Replica
) -> None:
    """It hides no other one; applying a change of it says what is wrong."""
    digest, _ = await model.image("v1")
    damaged, sound = TagName(REPOSITORY, Tag("v1")), ManifestName(REPOSITORY, digest)
    await model.kv.txn([], [Put(keys.register(damaged), b"\xff\xff\xff")])
    held = await replica.registers([damaged, sound])
    assert held == {damaged: Register(), sound: _register(model, digest)}


async def test_what_changed_since_the_look_is_stale(model: Model, replica: Replica) -> None:
    """A write that was planned on an older look does not land."""
    digest, body = await model.image()
    name = ManifestName(REPOSITORY, digest)
    held = await replica.manifest(name, parse_manifest(body, None))
    await model.image()
    merged = merge(held.register, _theirs(digest))
    assert await replica.apply_manifest(name, held, merged) is Landed.STALE


async def test_an_index_that_came_since_the_look_stops_a_burial(
    model: Model, replica: Replica
) -> None:
    """A tombstone is guarded by every reference to the manifest, seen or new."""
    child, _ = await model.image()
    name = ManifestName(REPOSITORY, child)
    held = await replica.manifest(name, None)
    index = index_body([child])
    digest = Digest.of(index)
    other = Replica(model.decider, model.staging, new_id=model.new_id)
    copy = await model.uploads.stage(REPOSITORY, digest, index)
    await model.kv.txn([], [Put(keys.blob(digest), codec.encode_blob(_record(copy)))])
    parent = ManifestName(REPOSITORY, digest)
    above = await other.manifest(parent, parse_manifest(index, None))
    assert await other.apply_manifest(parent, above, _theirs(digest)) is Landed.APPLIED
    dead = held.register.delete(Dot("nyc#1", 9))
    assert await replica.bury(name, held, dead) is Landed.STALE
    held = await replica.manifest(name, None)
    assert held.parents.keys() == {digest}


def _record(copy: Copy) -> BlobRecord:
    return BlobRecord(copy.generation, copy.size)


async def test_a_kept_child_has_a_dot_that_the_peer_has_not_seen(
    model: Model, replica: Replica
) -> None:
    """The merge of the tombstone is written under a fresh dot, so merging again keeps it live."""
    digest, _ = await model.image()
    name = ManifestName(REPOSITORY, digest)
    held = await replica.manifest(name, None)
    tombstone = held.register.delete(Dot("nyc#1", 9))
    assert await replica.keep(name, held, merge(held.register, tombstone)) is Landed.APPLIED
    kept = _register(model, digest)
    assert kept.live
    assert merge(kept, tombstone) == kept


async def test_a_child_is_not_kept_for_an_index_that_has_died(
    model: Model, replica: Replica
) -> None:
    """A delete of the index between the look and the write: nobody needs the child any more."""
    child, _ = await model.image()
    index = await model.push(index_body([child]), media_type=OCI_INDEX)
    name = ManifestName(REPOSITORY, child)
    held = await replica.manifest(name, None)
    assert held.parents.keys() == {index}
    await model.metadata.delete_manifest(REPOSITORY, index, None)
    merged = merge(held.register, held.register.delete(Dot("nyc#1", 9)))
    assert await replica.keep(name, held, merged) is Landed.STALE
    assert not (await replica.manifest(name, None)).parents


async def test_a_lost_reply_is_resolved_by_looking_again(model: Model, replica: Replica) -> None:
    """T3r needs no operation key: a register that merging would not change is applied."""
    digest, _ = await model.image()
    name = ManifestName(REPOSITORY, digest)
    held = await replica.manifest(name, None)
    dead = merge(held.register, held.register.delete(Dot("nyc#1", 9)))
    await model.decider.stamps.now()
    model.kv.faults = once(Fault.LOST_REPLY)
    assert await replica.bury(name, held, dead) is Landed.STALE
    again = await replica.manifest(name, None)
    assert merge(again.register, dead) == again.register
    assert again.uncleared


async def test_a_tag_is_applied_only_over_the_push_that_it_is_of(
    model: Model, replica: Replica
) -> None:
    """A manifest that is live by another push is not enough (P5)."""
    digest, _ = await model.image()
    name = TagName(REPOSITORY, T)
    theirs = _theirs(digest)
    held = await replica.tag(name, theirs)
    with pytest.raises(ManifestReferencesUnknown):
        await replica.apply_tag(name, held, theirs, frozenset())


async def test_a_hidden_push_raises_its_event_once(model: Model) -> None:
    """Of concurrent pushes each that is not shown is told, and not told again (P5)."""
    first, _ = await model.image("t", layer=b"1")
    second, _ = await model.image(layer=b"2")
    third, _ = await model.image(layer=b"3")

    async def hear(digest: Digest, n: int, ms: int) -> None:
        manifest = keys.manifest(REPOSITORY, digest)
        register = merge(_register(model, digest), _theirs(digest, n, ms))
        await model.kv.txn([], [Put(manifest, codec.encode_register(register))])
        merged = merge(_tag(model), _theirs(digest, n, ms))
        ranges = [only(keys.tag(REPOSITORY, T))]
        ranges += [only(keys.manifest(REPOSITORY, d)) for d in (first, second, third)]
        txn = await model.decider.begin(await _see(model, *ranges), REPOSITORY)
        apply_tag(txn, T, merged, frozenset(), model.new_id())
        await model.decider.attempt(txn)

    await hear(second, 3, 0)
    assert _events(model, Action.CONFLICT) == [second]
    later = _register(model, first).next_ms(model.time_ms) + 1
    await hear(third, 4, later)
    assert sorted(_events(model, Action.CONFLICT)) == sorted([second, first])
    assert keys.conflict(REPOSITORY, T) in model.kv.entries()


async def test_a_decision_that_writes_nothing_sends_nothing(model: Model) -> None:
    """What needs no change takes no transaction."""
    revision = (await model.kv.read([])).revision

    async def read() -> Seen:
        return await _see(model, only(b"k"))

    model.kv.faults = once(Fault.REFUSED)
    await model.decider.decide(REPOSITORY, read, lambda txn: txn.require(Absent(b"k")))
    assert (await model.kv.read([])).revision == revision
