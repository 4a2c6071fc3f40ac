"""Elections: only one candidate's writes are ever accepted, and somebody leads in the end."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from node import election, keys
from node.election import Candidate, Deposed, Elections, Leadership
from node.errors import MetadataUnavailable
from node.kv import Absent, Failed, Lease, Ok, Put, only
from tests.fake_kv import Fault, MemoryKV, once
from tests.waiting import eventually

DUTY = "follow/nyc"
TTL_S = 5.0


@dataclass
class _Time:
    """Seconds that pass when the test says so."""

    now: float = 0.0
    sleepers: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        async with self.sleepers:
            await self.sleepers.wait_for(lambda: self.now >= until)

    async def advance(self, seconds: float) -> None:
        async with self.sleepers:
            self.now += seconds
            self.sleepers.notify_all()


class _Hanging(MemoryKV):
    """Takes a request to renew a lease, and never answers."""

    async def keep_alive(self, lease: Lease) -> bool:
        """See KV."""
        del lease
        await asyncio.Event().wait()
        return True


async def _enter(kv: MemoryKV, worker: str) -> tuple[Candidate, Leadership]:
    candidate = Candidate(kv, DUTY, worker, await kv.grant(TTL_S))
    return candidate, await candidate.enter()


async def _write(kv: MemoryKV, leadership: Leadership) -> bool:
    outcome = await kv.txn([leadership.guard], [Put(b"written", str(leadership.token).encode())])
    assert isinstance(outcome, Ok | Failed)
    return isinstance(outcome, Ok)


async def test_the_first_who_enters_leads_and_the_second_waits() -> None:
    """Candidates succeed each other in the order in which they entered."""
    kv = MemoryKV()
    first, mine = await _enter(kv, "a")
    second, theirs = await _enter(kv, "b")
    assert await first.is_first(mine)
    assert not await second.is_first(theirs)
    await kv.revoke(mine.lease)
    assert await second.is_first(theirs)


async def test_a_deposed_leaders_write_is_refused() -> None:
    """Once its lease has run out a leader can write nothing, even before it hears of it."""
    clock = _Time()
    kv = MemoryKV(clock=clock)
    _, old = await _enter(kv, "a")
    assert await _write(kv, old)
    await clock.advance(TTL_S)
    candidate, new = await _enter(kv, "b")
    assert await candidate.is_first(new)
    assert not await _write(kv, old)
    assert await _write(kv, new)
    assert not await _write(kv, old)


async def test_a_write_that_arrives_late_is_refused_after_a_newer_leaders() -> None:
    """A write on its way when its leader fell does not land over the next one's."""
    clock = _Time()
    kv = MemoryKV(clock=clock)
    _, old = await _enter(kv, "a")
    kv.faults = once(Fault.GHOST)
    await kv.txn([old.guard], [Put(b"written", b"old")])
    await clock.advance(TTL_S)
    _, new = await _enter(kv, "b")
    assert await _write(kv, new)
    assert isinstance(kv.land(), Failed)
    assert kv.entries()[b"written"] == str(new.token).encode()


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST, Fault.GHOST])
async def test_entering_survives_an_unknown_outcome(fault: Fault) -> None:
    """Whether the put landed or not, the candidate stands once, under the token of its key."""
    kv = MemoryKV(faults=once(fault))
    candidate, mine = await _enter(kv, "a")
    if kv.ghosts:
        kv.land()
    (entry,) = (await kv.read([keys.candidates(DUTY)])).ranges[0]
    assert entry.created == mine.token
    assert await candidate.is_first(mine)


async def test_a_candidate_whose_key_is_gone_is_deposed() -> None:
    """Nobody leads on the strength of having waited."""
    clock = _Time()
    kv = MemoryKV(clock=clock)
    candidate, mine = await _enter(kv, "a")
    await clock.advance(TTL_S)
    with pytest.raises(Deposed):
        await candidate.is_first(mine)


async def test_work_ends_when_the_lease_is_lost_and_the_next_takes_over() -> None:
    """Two workers: the second's work begins when the first has lost its lease, and only then."""
    clock = _Time()
    kv = MemoryKV(clock=clock)
    working: list[str] = []

    def work(worker: str) -> Elections:
        return Elections(kv, worker, ttl_s=TTL_S, clock=clock, sleep=clock.sleep)

    async def hold(worker: str, leadership: Leadership) -> None:
        working.append(worker)
        try:
            await asyncio.Event().wait()
        finally:
            working.remove(worker)
            assert leadership.duty == DUTY

    async with asyncio.TaskGroup() as group:
        first = group.create_task(work("a").lead(DUTY, lambda led: hold("a", led)))
        await eventually(lambda: working == ["a"], 60, "the first leads")
        second = group.create_task(work("b").lead(DUTY, lambda led: hold("b", led)))
        await eventually(
            lambda: len([k for k in kv.entries() if k.startswith(b"L/")]) == 2, 60, "both stand"
        )
        (mine, _) = (await kv.read([keys.candidates(DUTY)])).ranges[0]
        assert mine.value == b"a"
        await kv.revoke(_lease(mine.key))

        async def taken_over() -> bool:
            await clock.advance(0.5)
            return working == ["b"]

        assert await eventually(taken_over, 60, "the second leads")
        assert first.done()
        second.cancel()
    left = [k for k in kv.entries() if k.startswith(b"L/")]
    assert left == [], "whoever ends resigns"


async def test_a_leader_that_cannot_renew_stops_before_its_lease_runs_out() -> None:
    """With the KV silent the work is cancelled while the lease may still stand."""
    clock = _Time()
    kv = MemoryKV(clock=clock)
    began = asyncio.Event()

    async def work(_: Leadership) -> None:
        began.set()
        await asyncio.Event().wait()

    elections = Elections(kv, "a", ttl_s=TTL_S, clock=clock, sleep=clock.sleep)
    async with asyncio.TaskGroup() as group:
        leading = group.create_task(elections.lead(DUTY, work))
        await began.wait()
        kv.down = True

        async def stopped() -> bool:
            if not leading.done():
                await clock.advance(0.1)
            return leading.done()

        assert await eventually(stopped, 60, "the work is cancelled")
    assert clock.now < TTL_S


async def test_a_kv_that_hangs_does_not_keep_a_leader_beyond_its_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An answer that never comes is waited for until the margin begins, and no longer."""
    monkeypatch.setattr(election, "_MARGIN_S", 5.0)
    began = asyncio.Event()

    async def work(_: Leadership) -> None:
        began.set()
        await asyncio.Event().wait()

    clock = asyncio.get_running_loop().time
    started, ttl_s = clock(), 6.0
    await Elections(_Hanging(), "a", ttl_s=ttl_s, clock=clock).lead(DUTY, work)
    assert began.is_set()
    assert clock() - started < ttl_s


async def test_work_that_fails_is_told_and_the_duty_resigned() -> None:
    """An error of the work reaches whoever asked for it, and the next worker need not wait."""
    kv = MemoryKV()

    async def work(_: Leadership) -> None:
        raise MetadataUnavailable("of the work")

    with pytest.raises(ExceptionGroup) as caught:
        await Elections(kv, "a").lead(DUTY, work)
    assert isinstance(caught.value.exceptions[0], MetadataUnavailable)
    assert kv.entries() == {}


@pytest.mark.parametrize("seed", range(100))
async def test_no_interleaving_lets_an_older_leader_write_after_a_newer(seed: int) -> None:
    """The model's adversary: leases end at any time, writes come late, puts lose their replies."""
    await _interleave(seed)


async def test_a_deposed_leader_without_its_guard_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The adversary finds a leader whose writes rely on a key that is nobody's."""
    monkeypatch.setattr(Leadership, "guard", Absent(b"never written"))

    async def all_seeds() -> None:
        for seed in range(100):
            await _interleave(seed)

    with pytest.raises(AssertionError, match="a deposed leader's write was accepted"):
        await all_seeds()


async def _interleave(seed: int) -> None:
    chance = random.Random(seed)
    clock = _Time()
    kv = MemoryKV(clock=clock)
    newest = 0
    stand: list[tuple[Candidate, Leadership, bool]] = []
    leases: list[Lease] = []
    for _ in range(100):
        match chance.choice(("enter", "lead", "lead", "expire", "late", "write", "give up")):
            case "enter" if len(stand) < 3:
                kv.faults = once(chance.choice((None, Fault.LOST_REPLY, Fault.GHOST)))
                stand.append((*await _enter(kv, "w"), False))
                leases.append(stand[-1][1].lease)
            case "lead" if stand:
                at = chance.randrange(len(stand))
                candidate, mine, leads = stand[at]
                try:
                    leads = await candidate.is_first(mine)
                    stand[at] = (candidate, mine, leads)
                except Deposed:
                    del stand[at]
            case "expire" if leases:
                # Often the oldest's, who leads: also of one that gave up, and would stand for ever.
                await kv.revoke(leases.pop(chance.choice((0, 0, -1))))
            case "late" if kv.ghosts:
                with suppress(MetadataUnavailable):  # its lease may be gone
                    kv.land(chance.randrange(len(kv.ghosts)))
            case "write" if any(leads for _, _, leads in stand):
                _, mine, _ = chance.choice([one for one in stand if one[2]])
                if chance.random() < 0.3:
                    kv.faults = once(Fault.GHOST)
                    await kv.txn([mine.guard], [Put(b"written", str(mine.token).encode())])
                else:
                    await _write(kv, mine)
            case "give up" if stand:
                del stand[chance.randrange(len(stand))]
            case _:
                continue
        written = (await kv.read([only(b"written")])).ranges[0]
        token = int(written[0].value) if written else 0
        assert token >= newest, "a deposed leader's write was accepted"
        newest = token


def _lease(key: bytes) -> Lease:
    return Lease(int(key.rpartition(b"\0")[2], 16))
