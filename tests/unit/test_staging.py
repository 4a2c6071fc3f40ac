"""Manifests that refer to more than one transaction can write: staged, and all or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from node import keys
from node.digest import Digest
from node.errors import (
    InUse,
    ManifestReferencesUnknown,
    ManifestUnknown,
    MetadataUnavailable,
)
from node.keys import ManifestName
from node.kv import Guard, Op, Put, Range, Snapshot, only
from node.manifest import OCI_INDEX, parse_manifest
from node.reference import Reference, Tag
from node.register import merge
from node.replica import Landed, Replica
from node.wire import codec
from tests.fake_kv import Crash, Fault, MemoryKV
from tests.model import REPOSITORY, Model, image_body, index_body
from tests.scenario.checker import check_site

V1: Final = Tag("v1")
LAYERS: Final = 7


class Killed(Exception):
    """The process is killed."""


@pytest.fixture
def model() -> Model:
    """A site whose transactions hold three guards, and three operations."""
    return Model(MemoryKV(), chunk=3)


async def _blobs(model: Model) -> tuple[Digest, list[Digest]]:
    config = await model.upload(b"{}")
    return config, [await model.upload(f"layer {n}".encode()) for n in range(LAYERS)]


async def _image(model: Model, *tags: str) -> tuple[Digest, bytes]:
    config, layers = await _blobs(model)
    body = image_body(config, *layers)
    return await model.push(body, *tags), body


async def _shows(model: Model, reference: Reference) -> Digest | None:
    try:
        return (await model.metadata.resolve(REPOSITORY, reference)).digest
    except ManifestUnknown:
        return None


def _kinds(model: Model, kind: bytes) -> list[bytes]:
    return [key for key in model.kv.entries() if key.startswith(kind + b"/")]


def _check(model: Model, *bodies: bytes, quiet: bool = True) -> None:
    known = {Digest.of(body): parse_manifest(body, None) for body in bodies}
    check_site(model.kv.entries(), known.__getitem__, quiet=quiet)


class _At:
    """A fault at the n-th transaction that touches the stage, or a reference."""

    def __init__(self, n: int, fault: Fault | Crash) -> None:
        self.left = n
        self.fault = fault

    def __call__(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Fault | Crash | None:
        if not any(guard[0].startswith(b"g/") for guard in guards):
            return None
        self.left -= 1
        return self.fault if self.left == 0 else None


async def test_a_large_manifest_becomes_visible_at_once(model: Model) -> None:
    """No reference is missing when its tag appears, and no stage is left."""
    seen: list[bool] = []

    def watch(_guards: Sequence[Guard], ops: Sequence[Op]) -> None:
        puts = [op.key for op in ops if isinstance(op, Put)]
        if any(key.startswith(b"T/") for key in puts):
            seen.append(len(_kinds(model, b"r")) == LAYERS + 1)

    model.kv.faults = watch
    digest, body = await _image(model, "v1")
    assert await _shows(model, V1) == digest
    assert seen == [True]
    _check(model, body)


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST, Fault.GHOST])
@pytest.mark.parametrize("n", range(1, 7))
async def test_a_reply_is_lost(model: Model, n: int, fault: Fault) -> None:
    """Whichever step's outcome is unknown, the push ends well, once."""
    config, layers = await _blobs(model)
    body = image_body(config, *layers)
    model.kv.faults = _At(n, fault)
    digest = await model.push(body, "v1")
    while model.kv.ghosts:
        model.kv.land(0)
    assert await _shows(model, V1) == digest
    assert len(_kinds(model, b"ev")) == 1
    await model.staging.sweep(model.time_ms + 1)
    _check(model, body)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("n", range(1, 7))
async def test_what_a_crash_leaves_is_swept(model: Model, n: int, applied: bool) -> None:
    """Whichever step a process dies at, the next sweep leaves all of it or nothing."""
    config, layers = await _blobs(model)
    body = image_body(config, *layers)
    model.kv.faults = _At(n, Crash(Killed(), applied))
    with pytest.raises(Killed):
        await model.push(body, "v1")
    _check(model, body, quiet=False)
    assert await model.staging.sweep(model.time_ms) == 0
    await model.staging.sweep(model.time_ms + 1)
    _check(model, body)
    whole = await _shows(model, V1) is not None
    assert len(_kinds(model, b"r")) == (LAYERS + 2 if whole else 0)
    pinned = {Digest.take(key, 2)[0] for key in _kinds(model, b"u")}
    assert pinned >= {config, *layers}
    assert await model.push(body, "v1") == await _shows(model, V1)


async def test_a_sweep_leaves_a_stage_that_has_ended(model: Model) -> None:
    """What was pushed and deleted since the sweep listed it is cleared by its own delete."""
    config, layers = await _blobs(model)
    body = image_body(config, *layers)
    digest, manifest = Digest.of(body), parse_manifest(body, None)
    model.kv.faults = _At(4, Crash(Killed(), applied=True))
    with pytest.raises(Killed):
        await model.push(body, "v1")
    model.kv.faults = lambda *_: None
    begun: list[str] = []

    async def meanwhile() -> None:
        """When the sweep has listed its page: a push goes through, and a delete begins."""
        if not begun:
            begun.append("push")
            await model.push(body, "v1")
            await model.metadata.delete_manifest(REPOSITORY, digest, manifest)

    reader = model.kv.read

    async def read(ranges: Sequence[Range], *, may_be_stale: bool = False) -> Snapshot:
        snapshot = await reader(ranges, may_be_stale=may_be_stale)
        await meanwhile()
        return snapshot

    model.kv.read = read  # type: ignore[method-assign]  # a moment between two calls
    assert await model.staging.sweep(model.time_ms + 1) == 0
    assert begun
    _check(model, body)


async def test_what_is_missing_is_told_and_nothing_stays(model: Model) -> None:
    """A manifest whose last layer is unknown is refused, and leaves no reference."""
    config, layers = await _blobs(model)
    absent = Digest.of(b"nobody has this")
    body = image_body(config, *layers, absent)
    with pytest.raises(ManifestReferencesUnknown) as caught:
        await model.push(body, "v1")
    assert caught.value.digests == (str(absent),)
    assert _kinds(model, b"g") == _kinds(model, b"r") == []


async def test_a_final_that_lands_late_finds_its_stage_void(model: Model) -> None:
    """Undoing a stage first takes it over, so what was sent under it can't land half-way (I2)."""
    source = Model(MemoryKV(), site="nyc#1")
    digest, body = await _image(source, "v1")
    theirs = await Replica(source.decider, source.staging, new_id=source.new_id).manifest(
        ManifestName(REPOSITORY, digest), None
    )
    await _blobs(model)
    await model.upload(body)
    here = Replica(model.decider, model.staging, new_id=model.new_id)
    name = ManifestName(REPOSITORY, digest)
    held = await here.manifest(name, parse_manifest(body, None))
    model.kv.faults = _At(6, Fault.GHOST)
    assert await here.apply_manifest(name, held, theirs.register) is Landed.STALE
    while model.kv.ghosts:
        model.kv.land(0)
    assert await _shows(model, digest) is None
    _check(model, body)


async def test_a_stage_that_is_taken_over_begins_again(model: Model) -> None:
    """Who loses its stage, even to a sweep that undoes it, writes all of it again."""
    config, layers = await _blobs(model)
    body = image_body(config, *layers)
    digest = Digest.of(body)
    losses = 0

    class Thief:
        """Sweeps when the pusher waits for its third part."""

        def __init__(self) -> None:
            self.left = 4

        async def __call__(self) -> None:
            nonlocal losses
            if _kinds(model, b"g") and not losses:
                self.left -= 1
                if self.left == 0:
                    losses += 1
                    await model.staging.sweep(model.time_ms + 1)

    model.kv._pause = Thief()
    assert await model.push(body, "v1") == digest
    assert losses == 1
    _check(model, body)


async def test_children_of_what_is_on_its_way_stay(model: Model) -> None:
    """A child can't be deleted while an index that refers to it is staged (5.5)."""
    children = []
    for n in range(4):
        config = await model.upload(f"config {n}".encode())
        children.append(await model.push(image_body(config)))
    body = index_body(children)
    model.kv.faults = _At(4, Crash(Killed(), applied=True))
    with pytest.raises(Killed):
        await model.push(body, "v1", media_type=OCI_INDEX)
    model.kv.faults = lambda *_: None
    with pytest.raises(InUse, match="which is being pushed"):
        await model.metadata.delete_manifest(REPOSITORY, children[0], None)
    await model.staging.sweep(model.time_ms + 1)
    await model.metadata.delete_manifest(REPOSITORY, children[0], None)
    assert await _shows(model, children[0]) is None


async def test_a_delete_lets_go_of_nothing_that_a_stage_wrote(model: Model) -> None:
    """A manifest that is pushed again while its delete ends is whole."""
    digest, body = await _image(model, "v1")
    key = keys.manifest(REPOSITORY, digest)
    begun: list[str] = []

    async def push_again() -> None:
        if not begun and not codec.decode_register(model.kv.entries()[key]).live:
            begun.append("v2")
            await model.push(body, "v2")

    model.kv._pause = push_again
    await model.metadata.delete_manifest(REPOSITORY, digest, parse_manifest(body, None))
    model.kv._pause = _nothing
    assert begun
    assert await _shows(model, Tag("v2")) == digest
    _check(model, body)


@pytest.mark.parametrize(
    ("again", "n"), [*((False, n) for n in range(1, 12)), *((True, n) for n in range(1, 30, 2))]
)
async def test_a_manifest_dies_while_its_stage_is_cleared(
    model: Model, again: bool, n: int
) -> None:
    """Its delete leaves the references to whoever clears the stage, who leaves none.

    `again`: it was dead, is pushed again and deleted again.
    """
    digest, body = await _image(model, "v1")
    manifest = parse_manifest(body, None)
    model.kv.faults = _At(4, Crash(Killed(), applied=True))
    with pytest.raises(Killed):
        await model.push(body, "v2")
    model.kv.faults = lambda *_: None
    if again:
        await model.metadata.delete_manifest(REPOSITORY, digest, manifest)
    left = n

    async def at_last() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            if again:
                await model.push(body, "v3")
            await model.metadata.delete_manifest(REPOSITORY, digest, manifest)

    model.kv._pause = at_last
    await model.staging.sweep(model.time_ms + 1)
    assert left < 0, "it was swept before anything was done"
    model.kv._pause = _nothing
    await model.staging.sweep(model.time_ms + 1)
    assert await _shows(model, digest) is None
    _check(model, body)


async def test_a_peers_large_manifest_is_staged_without_dots(model: Model) -> None:
    """T3r goes the same way, and its register is the peer's."""
    source = Model(MemoryKV(), site="nyc#1")
    digest, body = await _image(source, "v1")
    replica = Replica(source.decider, source.staging, new_id=source.new_id)
    name = ManifestName(REPOSITORY, digest)
    theirs = (await replica.manifest(name, None)).register
    await _blobs(model)
    await model.upload(body)
    here = Replica(model.decider, model.staging, new_id=model.new_id)
    held = await here.manifest(name, parse_manifest(body, None))
    merged = merge(held.register, theirs)
    assert await here.apply_manifest(name, held, merged) is Landed.APPLIED
    assert (await here.manifest(name, None)).register == theirs
    assert await here.apply_manifest(name, held, merged) is Landed.STALE
    _check(model, body)


async def test_too_many_contenders(model: Model) -> None:
    """Who can't keep its stage says so in the end, and nothing of it is visible."""
    config, layers = await _blobs(model)
    body = image_body(config, *layers)

    async def steal() -> None:
        within = only(keys.stage(REPOSITORY, Digest.of(body)))
        if (entry := model.kv.entries().get(within.start)) is not None:
            model.kv._pause = _nothing
            await model.kv.txn([], [Put(within.start, entry)])
            model.kv._pause = steal

    model.kv._pause = steal
    with pytest.raises(MetadataUnavailable):
        await model.push(body, "v1")
    model.kv._pause = _nothing
    assert await _shows(model, V1) is None


async def _nothing() -> None:
    return
