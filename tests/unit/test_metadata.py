"""Tags and manifests of a site: what is shown, what a delete takes, what a lost reply does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest

from node import keys
from node.digest import Algorithm, Digest
from node.errors import (
    BlobUnknown,
    InUse,
    ManifestReferencesUnknown,
    ManifestUnknown,
    MetadataUnavailable,
    NameUnknown,
)
from node.kv import Guard, Op, Outcome, Put, Range, Snapshot, Unknown
from node.manifest import OCI_INDEX, OCI_MANIFEST, parse_manifest
from node.manifest_transactions import Push
from node.reference import Reference, Tag
from node.register import Dot, Register
from node.stamps import Decider
from node.transaction import Transaction
from node.wire import codec
from tests.fake_kv import Fault, MemoryKV, once
from tests.model import OTHER, REPOSITORY, Model, descriptor, image_body, index_body

V1 = Tag("v1")
V2 = Tag("v2")


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


async def _shows(model: Model, reference: Reference) -> Digest | None:
    try:
        return (await model.metadata.resolve(REPOSITORY, reference)).digest
    except ManifestUnknown:
        return None


def _events(model: Model) -> list[str]:
    return [
        str(codec.decode_event(value).action)
        for key, value in model.kv.entries().items()
        if key.startswith(b"ev/")
    ]


async def test_a_push_shows_its_manifest_by_tag_and_by_digest(model: Model) -> None:
    """What was pushed is what is resolved, with the type and size of its headers."""
    digest, body = await model.image("v1")
    for reference in (V1, digest):
        resolved = await model.metadata.resolve(REPOSITORY, reference)
        assert (resolved.digest, resolved.media_type, resolved.size) == (
            digest,
            OCI_MANIFEST,
            len(body),
        )
    with pytest.raises(ManifestUnknown):
        await model.metadata.resolve(OTHER, digest)
    assert await model.content.read(digest) == body


async def test_a_tag_moves_and_the_old_manifest_stays(model: Model) -> None:
    """Retagging replaces what the tag shows and nothing else."""
    old, _ = await model.image("v1", layer=b"old")
    new, _ = await model.image("v1", layer=b"new")
    assert await _shows(model, V1) == new
    assert await _shows(model, old) == old
    assert keys.tagged(REPOSITORY, old, V1) not in model.kv.entries()


async def test_a_manifest_without_its_blobs_is_refused_whole(model: Model) -> None:
    """Every missing digest is named, and nothing is stored."""
    config = await model.upload(b"{}")
    absent = Digest.of(b"never pushed")
    with pytest.raises(ManifestReferencesUnknown) as refused:
        await model.push(image_body(config, absent), "v1")
    assert refused.value.digests == (str(absent),)
    assert await _shows(model, V1) is None
    assert not any(key[:2] in (b"M/", b"T/") for key in model.kv.entries())


async def test_a_known_digest_steals_nothing(model: Model) -> None:
    """A blob of another repository can't be referred to (I19)."""
    layer = await model.upload(b"secret", OTHER)
    config = await model.upload(b"{}")
    with pytest.raises(ManifestReferencesUnknown):
        await model.push(image_body(config, layer), "v1")


async def test_a_push_of_equal_content_writes_fresh_dots(model: Model) -> None:
    """Re-pushing must beat a concurrent delete, so it is never taken for nothing (P9)."""
    digest, body = await model.image("v1")
    before = codec.decode_register(model.kv.entries()[keys.manifest(REPOSITORY, digest)])
    await model.push(body, "v1")
    after = codec.decode_register(model.kv.entries()[keys.manifest(REPOSITORY, digest)])
    assert after.siblings.keys().isdisjoint(before.siblings)
    assert _events(model) == ["push"], "what is shown did not change the second time"


async def test_several_tags_in_one_push(model: Model) -> None:
    """All tags of a push appear with it."""
    digest, _ = await model.image("v1", "v2")
    assert await _shows(model, V1) == await _shows(model, V2) == digest


async def test_the_index_keeps_its_children(model: Model) -> None:
    """A child of a live index can't be deleted; when the index is gone it can."""
    child, body = await model.image()
    index = await model.push(index_body([child]), "v1", media_type=OCI_INDEX)
    with pytest.raises(InUse):
        await model.metadata.delete_manifest(REPOSITORY, child, None)
    document = parse_manifest(index_body([child]), OCI_INDEX)
    await model.metadata.delete_manifest(REPOSITORY, index, document)
    await model.metadata.delete_manifest(REPOSITORY, child, parse_manifest(body, None))
    assert await _shows(model, child) is None


async def test_a_crash_after_the_indexs_tombstone_does_not_block_its_child(model: Model) -> None:
    """References of the dead are no parents (ADR 9)."""
    child, body = await model.image()
    index = await model.push(index_body([child]), media_type=OCI_INDEX)
    # Without its body nobody clears the references: as after a crash.
    await model.metadata.delete_manifest(REPOSITORY, index, None)
    assert keys.reference(child, REPOSITORY, index) in model.kv.entries()
    await model.metadata.delete_manifest(REPOSITORY, child, parse_manifest(body, None))


async def test_an_index_redots_its_children(model: Model) -> None:
    """A delete elsewhere that has not seen the index can't take its child (5.5)."""
    child, _ = await model.image()
    key = keys.manifest(REPOSITORY, child)
    before = codec.decode_register(model.kv.entries()[key])
    await model.push(index_body([child]), media_type=OCI_INDEX)
    after = codec.decode_register(model.kv.entries()[key])
    assert after.siblings.keys().isdisjoint(before.siblings)


async def test_an_index_may_list_blobs(model: Model) -> None:
    """BuildKit's cache indexes name layers as manifests; a missing one is refused."""
    layer = await model.upload(b"cache")
    layer_type = "application/vnd.oci.image.layer.v1.tar+gzip"
    await model.push(index_body([layer], layer_type), "cache", media_type=OCI_INDEX)
    absent = index_body([Digest.of(b"absent")], layer_type)
    with pytest.raises(ManifestReferencesUnknown):
        await model.push(absent, "cache", media_type=OCI_INDEX)


async def test_deleting_a_tag_leaves_its_manifest(model: Model) -> None:
    """Only the tag goes, and a second delete says that it is gone."""
    digest, _ = await model.image("v1", "v2")
    await model.metadata.delete_tag(REPOSITORY, V1)
    assert await _shows(model, V1) is None
    assert await _shows(model, V2) == await _shows(model, digest) == digest
    assert await model.metadata.tags(REPOSITORY, None, 10) == (["v2"], False)
    with pytest.raises(ManifestUnknown):
        await model.metadata.delete_tag(REPOSITORY, V1)


@pytest.mark.parametrize("count", [1, 57])
async def test_deleting_a_manifest_takes_all_its_tags(model: Model, count: int) -> None:
    """However many tags name it, none does afterwards, and the repository is empty."""
    digest, body = await model.image(*(f"v{n}" for n in range(count)))
    await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    entries = model.kv.entries()
    assert not any(key.startswith((b"l/", b"tr/", b"r/", b"c/", b"f/")) for key in entries)
    with pytest.raises(NameUnknown):
        await model.metadata.tags(REPOSITORY, None, 10)
    with pytest.raises(ManifestUnknown):
        await model.metadata.delete_manifest(REPOSITORY, digest, None)


async def test_blobs_of_a_deleted_manifest_are_pinned(model: Model) -> None:
    """A delete lets go of blobs by pins, so collection finds them and a re-push is quick."""
    digest, body = await model.image("v1", layer=b"layer")
    await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    layer = await model.content.stat(REPOSITORY, Digest.of(b"layer"))
    assert not layer.referenced
    await model.push(body, "v1")
    assert (await model.content.stat(REPOSITORY, Digest.of(b"layer"))).referenced


async def test_deleting_one_sibling_leaves_the_other(model: Model) -> None:
    """Of two concurrent pushes to a tag, deleting the shown one shows the other."""
    first, body = await model.image("v1", layer=b"first")
    second, _ = await model.image("v2", layer=b"second")
    key = keys.tag(REPOSITORY, V1)
    mine = codec.decode_register(model.kv.entries()[key])
    other = codec.decode_register(model.kv.entries()[keys.tag(REPOSITORY, V2)])
    (value,) = other.siblings.values()
    both = Register({**mine.ctx, "nyc#1": 7}, {**mine.siblings, Dot("nyc#1", 7): value})
    tagged = keys.tagged(REPOSITORY, second, V1)
    await model.kv.txn([], [Put(key, codec.encode_register(both)), Put(tagged, b"")])
    resolved = await model.metadata.resolve(REPOSITORY, V1)
    assert resolved.siblings == 2
    parsed = parse_manifest(body, None)
    await model.metadata.delete_manifest(REPOSITORY, first, parsed)
    assert await _shows(model, V1) == second


async def test_lists_are_paged_by_name(model: Model) -> None:
    """Pages begin just after a name that need not exist, and say whether more follows."""
    await model.image("a", "b", "b-1", "c")
    assert await model.metadata.tags(REPOSITORY, None, 2) == (["a", "b"], True)
    assert await model.metadata.tags(REPOSITORY, "b", 9) == (["b-1", "c"], False)
    assert await model.metadata.tags(REPOSITORY, "b-0", 1) == (["b-1"], True)
    assert await model.metadata.tags(REPOSITORY, "zz", 9) == ([], False)
    assert await model.metadata.tags(REPOSITORY, "\0\xff\ud800", 9) == (
        ["a", "b", "b-1", "c"],
        False,
    )
    await model.image("x", repository=OTHER)
    assert await model.metadata.repositories(None, 1) == ([OTHER], True)
    assert await model.metadata.repositories(OTHER, 9) == ([REPOSITORY], False)


async def test_referrers_come_and_go_with_their_manifests(model: Model) -> None:
    """A manifest with a subject is listed with what it says of itself, until it is deleted."""
    subject = Digest.of(b"perhaps not here")
    digest, body = await model.image(
        artifactType="application/x",
        subject=descriptor(subject, OCI_MANIFEST),
        annotations={"a": "b"},
    )
    (listed,), _ = await model.metadata.referrers(REPOSITORY, subject, None, 9)
    assert listed.digest == digest
    assert listed.referrer.artifact_type == "application/x"
    assert listed.referrer.annotations == {"a": "b"}
    await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    assert await model.metadata.referrers(REPOSITORY, subject, None, 9) == ([], False)


async def test_referrers_come_by_pages(model: Model) -> None:
    """A page has what it is asked for, in order of digests, from just after one."""
    subject = Digest.of(b"perhaps not here")
    said = descriptor(subject, OCI_MANIFEST)
    pushed = sorted(
        [(await model.image(subject=said, annotations={"n": str(n)}))[0] for n in range(4)]
    )
    found: list[Digest] = []
    more, after = True, None
    while more:
        page, more = await model.metadata.referrers(REPOSITORY, subject, after, 3)
        after = page[-1].digest
        assert len(page) == 3 or not more
        found += [entry.digest for entry in page]
    assert found == pushed


async def test_a_manifest_by_sha512_is_shown_by_it(model: Model) -> None:
    """The digest of a manifest is the one that it was pushed by."""
    body = image_body(await model.upload(b"{}"))
    digest = await model.push(body, "v1", algorithm=Algorithm.SHA512)
    assert await _shows(model, V1) == digest
    assert digest.algorithm == Algorithm.SHA512


async def test_without_a_copy_the_body_must_be_here(model: Model) -> None:
    """A commit that brings no body never shows a manifest that can't be read."""
    body = image_body(await model.upload(b"{}"))
    manifest = parse_manifest(body, None)
    push = Push(REPOSITORY, Digest.of(body), len(body), manifest, (V1,), "op")
    with pytest.raises(BlobUnknown):
        await model.metadata.commit(push)


async def test_a_retry_never_lands_over_a_later_push(model: Model) -> None:
    """A push whose reply was lost is not repeated over somebody's push after it."""
    config = await model.upload(b"{}")
    mine, theirs = image_body(config, annotations={"a": "1"}), image_body(config)
    for body in (mine, theirs):
        await model.push(body)

    async def push(body: bytes, op: str) -> None:
        manifest = parse_manifest(body, None)
        pushed = Push(REPOSITORY, Digest.of(body), len(body), manifest, (V1,), op)
        await model.metadata.commit(pushed)

    model.kv.faults = once(Fault.GHOST)  # my first attempt hangs; the retry is applied
    await push(mine, "mine")
    await push(theirs, "theirs")
    model.kv.land()
    assert await _shows(model, V1) == Digest.of(theirs)


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST])
async def test_lost_replies_change_no_answer(model: Model, fault: Fault) -> None:
    """Pushes and deletes whose reply is lost are done once and acknowledged."""
    config = await model.upload(b"{}")
    body = image_body(config)
    await model.push(body)
    manifest = parse_manifest(body, None)
    model.kv.faults = once(fault)
    push = Push(REPOSITORY, Digest.of(body), len(body), manifest, (V1, V2), "op")
    await model.metadata.commit(push)
    assert _events(model).count("push") == 3
    model.kv.faults = once(fault)
    await model.metadata.delete_tag(REPOSITORY, V1)
    model.kv.faults = once(fault)
    await model.metadata.delete_manifest(REPOSITORY, Digest.of(body), manifest)
    assert await _shows(model, V2) is None


async def _cut_delete(model: Model, digest: Digest, body: bytes) -> None:
    """Delete a manifest, with a KV that goes away right after the deciding transaction."""
    refused: list[Fault | None] = [None, *[Fault.REFUSED] * 5]
    model.kv.faults = once(*refused)
    with pytest.raises(MetadataUnavailable):
        await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    model.kv.faults = once()


async def test_a_delete_that_was_cut_short_is_finished_by_the_next(model: Model) -> None:
    """The client tries again and is told 404, and nothing of the manifest is left."""
    digest, body = await model.image(*(f"v{n}" for n in range(50)))
    await _cut_delete(model, digest, body)
    with pytest.raises(ManifestUnknown):
        await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    entries = model.kv.entries()
    assert not any(key.startswith((b"l/", b"tr/", b"r/", b"c/")) for key in entries)


async def test_a_push_brings_no_deleted_tag_back(model: Model) -> None:
    """After a delete that was cut short, pushing the manifest shows the pushed tag alone (P6)."""
    digest, body = await model.image(*(f"v{n}" for n in range(50)))
    await _cut_delete(model, digest, body)
    await model.push(body, "new")
    assert await model.metadata.tags(REPOSITORY, None, 99) == (["new"], False)


async def test_a_tag_that_always_shows_something_is_never_unknown(model: Model) -> None:
    """A tag that moves between two reads, its old manifest deleted, is read again (P2)."""
    old, old_body = await model.image("v1", layer=b"old")
    new_body = image_body(await model.upload(b"{}"))
    reads = 0

    class _Moving(MemoryKV):
        async def read(self, ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
            nonlocal reads
            reads += 1
            if reads == 2:
                await writer.push(new_body, "v1")
                await writer.metadata.delete_manifest(
                    REPOSITORY, old, parse_manifest(old_body, None)
                )
            return await model.kv.read(ranges)

    writer = Model(model.kv, model.blobs, site="fra#2")
    reader = Model(_Moving(), model.blobs, site="fra#3")
    assert await _shows(reader, V1) == Digest.of(new_body)


class _Overtaken(MemoryKV):
    """A KV over which somebody else acts right after a reply was lost."""

    somebody: Callable[[], Awaitable[object]]

    async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        outcome = await super().txn(guards, ops)
        if isinstance(outcome, Unknown):
            await self.somebody()
        return outcome


@pytest.mark.parametrize("mutant", [False, True], ids=["as it is", "blind retry"])
async def test_a_push_that_landed_is_not_pushed_again(
    mutant: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A push whose reply was lost, and that was pushed over meanwhile, stays overwritten.

    The mutant shows that it is the operation's key that sees to it.
    """
    kv = _Overtaken()
    model, other = Model(kv), Model(kv, site="fra#2")
    other.blobs = model.blobs
    mine = image_body(await model.upload(b"{}"), annotations={"a": "mine"})
    theirs, _ = await model.image(layer=b"theirs")
    manifest = parse_manifest(mine, None)
    await model.push(mine)
    body = await model.content.read(theirs)
    over = Push(REPOSITORY, theirs, len(body), parse_manifest(body, None), (V1,), "theirs")
    kv.somebody = lambda: other.metadata.commit(over)
    if mutant:

        async def never_done(_self: Decider, _op: str) -> bool:
            return False

        monkeypatch.setattr(Decider, "_done", never_done)
        monkeypatch.setattr(Transaction, "once", lambda _self, _op: None)
    kv.faults = once(Fault.LOST_REPLY)
    push = Push(REPOSITORY, Digest.of(mine), len(mine), manifest, (V1,), "mine")
    await model.metadata.commit(push)
    assert await _shows(model, V1) == (Digest.of(mine) if mutant else theirs)
