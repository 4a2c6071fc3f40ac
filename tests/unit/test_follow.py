"""Following a peer: what is remembered, what is acknowledged, and what is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

import pytest

from node import keys
from node.kv import Delete, Put
from node.records import Cursor
from node.reference import Tag
from node.site import now_ms
from node.wire import codec
from replicator import follow as follow_module
from replicator.follow import Follow
from replicator.measures import State
from tests.feeds import babbling, dialled, peer_at
from tests.following import Here, There
from tests.model import REPOSITORY
from tests.waiting import eventually

DEADLINE_S = 120.0


@pytest.fixture(autouse=True)
def _saves_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between saves is too long for tests."""
    monkeypatch.setattr(follow_module, "_SAVE_S", 0.01)


async def test_all_that_is_and_all_that_comes_is_applied() -> None:
    """First the state, then each change; the cursor is saved and acknowledged behind them."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer):
        await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the state is applied")
        await there.model.image("v2", layer=b"other")
        pushed = await there.revision()
        await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "the change is applied")
        await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "it is acknowledged")
        cursor = here.cursor()
        assert cursor is not None
        assert cursor.incarnation == "1"
        assert cursor.revision >= pushed
        status = await here.status(there.peer)
    assert (status.state, status.parked, status.last_error) == ("following", 0, None)
    assert status.cursor == cursor.revision


async def test_what_was_pushed_after_a_pause_is_acknowledged_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of it with the first ack, long before the next save is due: somebody may wait for it."""
    here, there = Here(), There()

    async def compared() -> bool:
        return (await here.status(there.peer)).in_sync

    async with there.up(), here.following(there.peer) as follow:
        await eventually(compared, DEADLINE_S, "there is nothing to write")
        for name in ("_SAVE_S", "_SETTLES_S"):
            monkeypatch.setattr(follow_module, name, 10 * DEADLINE_S)
        here.most = len(here.applied)
        await there.model.image("v1")
        pushed = await there.revision()
        await eventually(lambda: follow._head >= pushed, DEADLINE_S, "it is being applied")
        here.go_on.set()
        await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "it is acknowledged")


async def test_a_follower_goes_on_where_the_one_before_it_was() -> None:
    """Nothing is told twice to the next leader."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up():
        async with here.following(there.peer):
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the first is applied")
        await there.model.image("v2", layer=b"other")
        async with here.following(there.peer):
            await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "the second")


async def test_a_peer_that_did_nothing_for_us_is_not_behind() -> None:
    """A follower that takes over says so: the peer's own writes are no lag, once passed."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up():
        async with here.following(there.peer):
            await eventually(here.passed, DEADLINE_S, "all is applied")
        for n in range(5):
            await there.model.kv.txn([], [Put(b"local", str(n).encode())])

        async def level() -> bool:
            assert (status := await here.status(there.peer)).state == "following"
            assert status.lag_keys == 0
            return True

        await here.kv.txn([], [Delete(keys.status("fra"))])
        async with here.following(there.peer):
            await eventually(level, DEADLINE_S, "nothing is behind")


async def test_what_is_parked_is_not_acknowledged() -> None:
    """The cursor passes it, the ack stays below it; when it is caught up the ack follows."""
    here, there = Here(failing="no blob"), There()
    async with there.up(), here.following(there.peer):
        await eventually(here.cursor, DEADLINE_S, "the empty state is taken")
        await there.model.image("v1")
        await eventually(lambda: here.parks, DEADLINE_S, "the repository is parked")
        (entry,) = (await here.kv.read([keys.all_parked("fra")])).ranges[0]
        record = codec.decode_parked(entry.value)
        assert keys.parked_repository(entry.key) == REPOSITORY
        assert record.reason == "no blob"
        cursor = here.cursor()
        assert cursor is not None
        assert cursor.revision >= record.last
        assert there.acked() < record.first
        status = await here.status(there.peer)
        assert (status.state, status.parked, status.last_error) == ("parked", 1, "no blob")
        here.failing = ""
        await eventually(lambda: not here.parks, DEADLINE_S, "it has caught up")
        await eventually(lambda: there.acked() >= record.last, DEADLINE_S, "it is acknowledged")
    assert here.tags == ["v1"]


async def test_a_peer_that_is_away_is_followed_when_it_is_back() -> None:
    """Unreachable meanwhile, and nothing is told twice."""
    here, there = Here(), There()

    async def state(expected: str) -> None:
        async def reached() -> bool:
            status = await here.status(there.peer)
            assert status.state == expected, status
            return True

        assert await eventually(reached, DEADLINE_S, expected)

    async with here.following(there.peer):
        await state("unreachable")
        async with there.up():
            await there.model.image("v1")
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "it is followed")
            await state("following")
        await state("unreachable")
        await there.model.image("v2", layer=b"other")
        async with there.up():
            await eventually(lambda: here.tags == ["v1", "v2"], DEADLINE_S, "and again")


async def test_what_is_fetched_is_said_while_it_is() -> None:
    """In bytes, down to none, though nothing else moves meanwhile."""
    here, there = Here(), There()
    async with there.up(), here.following(there.peer) as follow:

        async def to_go(expected: int) -> bool:
            return (await here.status(there.peer)).bytes_to_go == expected

        with follow._progress.fetching(5_000):
            await there.model.image("v1")
            await eventually(partial(to_go, 5_000), DEADLINE_S, "it is to go")
        await eventually(partial(to_go, 0), DEADLINE_S, "nothing is")


async def test_a_peer_says_how_far_it_knows_of_us() -> None:
    """Before the first change, so that a site that went back in time hears of it."""
    here, there = Here(), There()
    await there.model.image("v1")
    known = codec.encode_cursor(Cursor("life of nyc", 7))
    await there.model.kv.txn([], [Put(keys.cursor("nyc"), known)])
    async with there.up(), here.following(there.peer):
        await eventually(here.passed, DEADLINE_S, "all is applied")
    assert here.known[0] == 7


async def test_what_a_peer_knows_of_another_life_is_of_no_use() -> None:
    """Its revisions are not those of this one."""
    here, there, known = Here(), There(), codec.encode_cursor(Cursor("an older life", 7))
    await there.model.kv.txn([], [Put(keys.cursor("nyc"), known)])
    async with there.up(), here.following(there.peer):
        await eventually(lambda: bool(here.known), DEADLINE_S, "it is met")
    assert here.known[0] == 0


async def test_a_new_life_of_the_source_is_told_from_the_beginning() -> None:
    """A restored site's revisions mean nothing to an old cursor."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with here.following(there.peer):
        async with there.up():
            await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "the first life")
        there.incarnation = "2"
        async with there.up():
            await eventually(lambda: here.tags == ["v1", "v1"], DEADLINE_S, "the next")
    cursor = here.cursor()
    assert cursor is not None
    assert cursor.incarnation == "2"


@pytest.mark.parametrize("side", ["source", "receiver"])
async def test_a_wider_filter_brings_what_the_cursor_has_passed(side: str) -> None:
    """What existed before is told too, once, whichever of the two sites let go of its filter."""
    here, there = Here(), There()
    narrow: Mapping[str, Sequence[str]] = {"tags": ("v*",)}
    ours, theirs = (narrow, {}) if side == "receiver" else ({}, narrow)
    for tag in ("v1", "x1"):
        await there.model.image(tag)
    async with there.up(**theirs), here.following(peer_at(there.port, "fra", None, **ours)):
        await eventually(lambda: here.tags == ["v1"], DEADLINE_S, "what passes both is applied")
        await eventually(here.passed, DEADLINE_S, "the cursor is behind it")
    for _ in range(2):
        async with there.up(), here.following(there.peer):
            await eventually(lambda: here.tags == ["v1", "v1", "x1"], DEADLINE_S, "all is told")
            await eventually(here.passed, DEADLINE_S, "the cursor is behind it")


async def test_deletes_that_were_not_taken_are_told_again() -> None:
    """The cursor has passed them: whoever takes them from now on hears of all of them, once."""
    here, there = Here(), There()
    await there.model.image("v1")
    await there.model.metadata.delete_tag(REPOSITORY, Tag("v1"))
    for deletes, times in ((False, 1), (True, 2), (True, 2)):
        peer = there.peer.model_copy(update={"deletes": deletes})

        def told(times: int = times) -> bool:
            return here.tags == ["v1"] * times and here.passed()

        async with there.up(), here.following(peer):
            await eventually(told, DEADLINE_S, "it is told")
    assert here.tags == ["v1", "v1"]


async def test_a_scan_tells_how_far_it_has_come() -> None:
    """From the first of what the peer has, counted by the peer, until all of it is applied."""
    here, there = Here(most=5), There()
    await there.model.image(*(f"v{n}" for n in range(9)))
    async with there.up(), here.following(there.peer):

        async def halfway() -> bool:
            status = await here.status(there.peer)
            assert status.progress is not None, status
            assert status.state == "scanning", status
            assert (status.progress.items_done, status.progress.items) == (5, 10), status
            return True

        await eventually(halfway, DEADLINE_S, "half of it is applied")
        here.go_on.set()

        async def over() -> bool:
            status = await here.status(there.peer)
            return status.state == "following" and status.progress is None

        await eventually(over, DEADLINE_S, "the scan is over")


async def test_a_deposed_follower_stops() -> None:
    """When somebody else leads its save is refused, and it applies no more."""
    here, there = Here(), There()
    async with there.up(), dialled(there.peer) as client:
        leadership = await here.leads()
        follow = here.follower(client, leadership)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(_quietly(follow))
            await eventually(here.cursor, DEADLINE_S, "it follows")
            await here.kv.revoke(leadership.lease)
            await there.model.image("v1")
            await eventually(running.done, DEADLINE_S, "it has stopped")


async def test_a_feed_that_makes_no_sense_is_refused() -> None:
    """Nothing of it is applied, no cursor moves, and the status says who sent it."""
    here = Here()
    async with babbling() as client, asyncio.TaskGroup() as group:
        follow = here.follower(client, await here.leads())
        running = group.create_task(follow.run())

        async def refused() -> bool:
            status = await here.status(peer_at(1, "fra"))
            assert status.state == "refused", status
            assert "fra" in (status.last_error or "")
            return True

        assert await eventually(refused, DEADLINE_S, "it is refused")
        running.cancel()
    assert here.applied == []
    assert here.cursor() == Cursor("", 0)


async def test_what_does_not_concern_us_writes_nothing() -> None:
    """The peer's own writes are passed in memory: two idle sites keep each other no busier."""
    here, there = Here(), There()
    await there.model.image("v1")
    async with there.up(), here.following(there.peer) as follow:
        pushed = await there.revision()
        await eventually(lambda: there.acked() >= pushed, DEADLINE_S, "all is told")

        async def level() -> bool:
            return (await here.status(there.peer)).in_sync

        await eventually(level, DEADLINE_S, "both are compared")
        before = (await here.kv.read([])).revision
        for n in range(5):
            await there.model.kv.txn([], [Put(b"local", str(n).encode())])
            newest = await there.revision()
            await eventually(partial(_heard, follow, newest), DEADLINE_S, "it is heard of")
        assert (await here.kv.read([])).revision == before


def _heard(follow: Follow, revision: int) -> bool:
    return follow._head >= revision and not follow._news.is_set()


async def _quietly(follow: Follow) -> None:
    with pytest.raises(ExceptionGroup):
        await follow.run()


# --- what is said of it


async def test_a_peer_that_is_away_is_the_further_behind_the_longer() -> None:
    """Nobody knows what it has written since it was heard last; once it is back that is over."""
    here, there = Here(time_ms=5_000_000), There()

    async def behind(state: str, lag_s: float) -> None:
        async def said() -> bool:
            status = await here.status(there.peer)
            assert (status.state, status.lag_s) == (state, lag_s), status
            return True

        await eventually(said, DEADLINE_S, f"{state}, {lag_s} s behind")

    async with here.following(there.peer):
        async with there.up():
            await behind("following", 0.0)
            here.time_ms += 60_000
            await behind("following", 0.0)
        await behind("unreachable", 0.0)
        here.time_ms += 90_000
        await behind("unreachable", 90.0)
        async with there.up():
            await behind("following", 0.0)


async def test_what_takes_long_is_said_while_it_does() -> None:
    """The age of a change that is in work counts, though nothing has moved since it came."""
    here, there = Here(time_ms=now_ms(), most=0), There()
    async with there.up(), here.following(there.peer):
        await eventually(here.passed, DEADLINE_S, "the empty state is taken")
        there.model.time_ms = now_ms() - 7_000
        await there.model.image("v1")

        async def late() -> bool:
            status = await here.status(there.peer)
            assert 5.0 <= (status.lag_s or 0) < 60.0, status
            return True

        await eventually(late, DEADLINE_S, "it is late")
        here.go_on.set()

        async def level() -> bool:
            return (await here.status(there.peer)).lag_s == 0.0

        await eventually(level, DEADLINE_S, "nothing is")


async def test_the_lag_of_each_change_is_measured() -> None:
    """From its writing to its being applied, by the source's clock; a scan's are not counted."""
    here, there = Here(time_ms=now_ms() - 3_600_000), There()
    there.model.time_ms = now_ms()
    await there.model.image("old")
    async with there.up(), here.following(there.peer):
        await eventually(here.passed, DEADLINE_S, "the state is taken")
        assert not here.measured("replication_lag_seconds_count")
        there.model.time_ms = now_ms() - 7_000
        await there.model.image("v1", layer=b"another")
        await eventually(
            lambda: here.measured("replication_lag_seconds_count") == 2, DEADLINE_S, "both keys"
        )
        assert 10.0 <= (here.measured("replication_lag_seconds_sum") or 0) < 120.0
        assert 3_590 < (here.measured("clock_offset_seconds") or 0) < 3_700


async def test_metrics_say_how_a_peer_is_followed() -> None:
    """One state is 1, parks are counted, and a worker that does not follow it says nothing."""
    here, there = Here(failing="no blob"), There()

    def states() -> dict[str, float | None]:
        return {state: here.measured("peer_state", state=state) for state in State}

    async with there.up(), here.following(there.peer):
        await eventually(here.cursor, DEADLINE_S, "the empty state is taken")
        await there.model.image("v1")
        await eventually(lambda: here.measured("parked") == 1, DEADLINE_S, "it is counted")
        assert states() == dict.fromkeys(State, 0.0) | {State.PARKED: 1.0}
        assert here.measured("lag_keys") == 0
    assert states() == dict.fromkeys(State)
    assert here.measured("parked") is None
