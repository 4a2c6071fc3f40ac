"""Uploads that nobody finishes: which are ended, and what is left of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

import pytest

from node import keys
from node.blobs import SessionId
from node.config import Config
from node.digest import Digest
from node.election import Candidate, Leadership
from node.errors import MetadataUnavailable, StorageFailed, UploadUnknown
from node.kv import Delete, Guard, Ok, Op, Outcome, Put, Unknown
from node.records import SiteRecord
from node.reference import Repository
from node.site import Site, assembled
from node.upload import Upload
from replicator import sweep as sweep_module
from replicator.former_peers import FormerPeers
from replicator.sweep import Sweep
from tests.blob_calls import once, put_piece
from tests.clock import Clock
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV

APP: Final = Repository("team/app")
CONTENT: Final = b"0123456789" * 10
WEEK_MS: Final = 7 * 24 * 3600 * 1000
ORPHAN: Final = SessionId("nobody-s")


class World:
    """A site whose time the test moves, and the duty that sweeps it."""

    def __init__(self, kv: MemoryKV) -> None:
        self.kv = kv
        self.blobs = MemoryBlobs()
        self.clock = Clock()
        self.site: Site = assembled(
            Config(), SiteRecord("fra", "life"), kv, self.blobs, clock_ms=self.clock
        )
        self.sweep = Sweep(
            kv,
            self.blobs,
            self.site.staging,
            FormerPeers(kv, ["nyc"]),
            every_s=3600,
            clock_ms=self.clock,
        )

    async def begun(self, target: Digest | None = None) -> Upload:
        """A session with some bytes."""
        upload = await self.site.uploads.start(APP, target)
        return await self.site.uploads.append(upload, once(CONTENT))

    async def lead(self) -> Leadership:
        """The leadership of the duty."""
        return await Candidate(self.kv, "sweep", "worker", await self.kv.grant(60)).enter()

    async def stored(self) -> set[SessionId]:
        """Of which sessions there are bytes."""
        return set(await self.blobs.sessions())


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A site that answers."""
    found = World(MemoryKV())
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(found.site.reads.run())
        yield found
        reading.cancel()


@pytest.mark.parametrize("row", ["U13"])
@pytest.mark.parametrize("target", [None, Digest.of(CONTENT)], ids=["a client's", "a fetch"])
async def test_a_session_ends_a_week_after_its_last_byte(
    world: World, target: Digest | None, row: str
) -> None:
    """Until then it stays with all its bytes; then both go, whoever began it."""
    upload, leadership = await world.begun(target), await world.lead()
    world.clock.advance(WEEK_MS - 1)
    await world.sweep.sweep(leadership)
    assert await world.stored() == {upload.session_id}
    await world.site.uploads.resume(APP, upload.session_id)
    world.clock.advance(1)
    await world.sweep.sweep(leadership)
    assert await world.stored() == set()
    assert keys.session(upload.session_id) not in world.kv.entries()


async def test_a_session_that_goes_on_is_young_again(world: World) -> None:
    """The week begins with the last bytes, not with the first."""
    upload, leadership = await world.begun(), await world.lead()
    world.clock.advance(WEEK_MS - 1)
    grown = await world.site.uploads.append(upload, once(CONTENT))
    world.clock.advance(WEEK_MS - 1)
    await world.sweep.sweep(leadership)
    await world.site.uploads.finish(grown, Digest.of(CONTENT * 2))
    assert await world.stored() == set()


async def test_who_writes_in_that_moment_wins() -> None:
    """A session that was added to after it was read stays, with its bytes."""

    class Late(MemoryKV):
        upload: Upload | None = None

        async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
            upload, self.upload = self.upload, None
            if upload is not None and list(ops) == [Delete(keys.session(upload.session_id))]:
                (entry,) = (await self.read([keys.SESSIONS])).ranges[0]
                await super().txn([], [Put(entry.key, entry.value)])
            return await super().txn(guards, ops)

    kv = Late()
    world = World(kv)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(world.site.reads.run())
        upload, leadership = await world.begun(), await world.lead()
        kv.upload = upload
        world.clock.advance(WEEK_MS)
        await world.sweep.sweep(leadership)
        reading.cancel()
    assert await world.stored() == {upload.session_id}
    assert keys.session(upload.session_id) in kv.entries()


async def test_who_no_longer_leads_ends_nothing(world: World) -> None:
    """A worker that was paused wakes after another took over, and touches no session."""
    upload, leadership = await world.begun(), await world.lead()
    await world.kv.txn([], [Delete(leadership.guard.key)])
    world.clock.advance(WEEK_MS)
    await world.sweep.sweep(leadership)
    assert await world.stored() == {upload.session_id}


async def test_files_without_a_session_go(world: World) -> None:
    """What a crash left between the end of a session and its files goes with the next sweep."""
    upload, leadership = await world.begun(), await world.lead()
    await put_piece(world.blobs, ORPHAN, 0, CONTENT)
    await world.sweep.sweep(leadership)
    assert await world.stored() == {upload.session_id}


async def test_pages_leave_none_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many sessions each that expired is ended, and each that did not stays."""
    monkeypatch.setattr(sweep_module, "_PAGE", 3)
    old = [await world.begun() for _ in range(7)]
    world.clock.advance(WEEK_MS)
    young = {(await world.begun()).session_id for _ in range(6)}
    await world.sweep.sweep(await world.lead())
    assert await world.stored() == young
    for upload in old:
        with pytest.raises(UploadUnknown):
            await world.site.uploads.resume(APP, upload.session_id)


async def test_what_is_not_known_to_be_ended_keeps_its_files() -> None:
    """A reply that was lost ends nothing here; the next sweep finds out."""

    class Lossy(MemoryKV):
        losing = False

        async def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
            outcome = await super().txn(guards, ops)
            return Unknown("lost") if self.losing and isinstance(outcome, Ok) else outcome

    kv = Lossy()
    world = World(kv)
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(world.site.reads.run())
        upload, leadership = await world.begun(), await world.lead()
        world.clock.advance(WEEK_MS)
        kv.losing = True
        await world.sweep.sweep(leadership)
        assert await world.stored() == {upload.session_id}
        kv.losing = False
        await world.sweep.sweep(leadership)
        assert await world.stored() == set()
        reading.cancel()


async def test_a_store_that_refuses_keeps_no_other_session(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session's files that can't be removed stay, the others go."""
    leadership, abort = await world.lead(), world.blobs.abort
    await put_piece(world.blobs, ORPHAN, 0, CONTENT)
    await put_piece(world.blobs, SessionId("another"), 0, CONTENT)

    async def refusing(session: SessionId) -> None:
        if session == ORPHAN:
            raise StorageFailed("no")
        await abort(session)

    monkeypatch.setattr(world.blobs, "abort", refusing)
    await world.sweep.sweep(leadership)
    assert await world.stored() == {ORPHAN}


async def test_a_record_that_cannot_be_read_keeps_its_files(world: World) -> None:
    """Damage is not age: nothing is removed of what nobody understands."""
    leadership = await world.lead()
    await put_piece(world.blobs, ORPHAN, 0, CONTENT)
    await world.kv.txn([], [Put(keys.session(ORPHAN), b"\xff")])
    await world.sweep.sweep(leadership)
    assert await world.stored() == {ORPHAN}


async def test_a_kv_that_is_away_ends_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the sessions nothing can be said of the files."""
    leadership = await world.lead()
    await put_piece(world.blobs, ORPHAN, 0, CONTENT)

    async def away(*_: object, **__: object) -> object:
        raise MetadataUnavailable("away")

    monkeypatch.setattr(world.kv, "read", away)
    with pytest.raises(MetadataUnavailable):
        await world.sweep.sweep(leadership)
    assert await world.stored() == {ORPHAN}


async def test_it_sweeps_at_once_and_then_by_the_clock(world: World) -> None:
    """One sweep, one pause of the interval, and again."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        assert await world.stored() == set()
        await put_piece(world.blobs, ORPHAN, 0, CONTENT)
        if len(pauses) == 3:
            raise TimeoutError

    sweep = Sweep(
        world.kv,
        world.blobs,
        world.site.staging,
        FormerPeers(world.kv, []),
        every_s=7,
        clock_ms=world.clock,
        sleep=sleep,
    )
    with pytest.raises(TimeoutError):
        await sweep.run(await world.lead())
    assert pauses == [7, 7, 7]
