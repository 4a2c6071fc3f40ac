"""A link's bandwidth: kept over any time, in fair shares."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest

from replicator.bandwidth import Bucket, Throttle

RATE = 1_000_000


@dataclass
class _Time:
    """Time that passes when somebody sleeps."""

    now: float = 0.0

    def clock(self) -> float:
        """The seconds that have passed."""
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Let them pass."""
        self.now += seconds
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [16_384, 65_536, 250_000])
async def test_the_rate_is_kept_within_a_twentieth(size: int) -> None:
    """Over a minute, whatever comes at once."""
    time = _Time()
    throttle = Throttle(RATE, clock=time.clock, sleep=time.sleep)
    passed = 0
    while time.now < 60:
        await throttle.passed("a", size)
        passed += size
    assert passed / time.now == pytest.approx(RATE, rel=0.05)


def test_what_was_not_used_makes_no_flood() -> None:
    """After an hour of silence no second brings two seconds' worth."""
    bucket = Bucket(RATE, 0.0)
    bucket.take(1, 0.0)
    now, passed = 3600.0, 0
    while now <= 3601.0:
        now += bucket.take(50_000, now)
        passed += 50_000
    assert passed < 2 * RATE


async def test_the_first_second_brings_a_seconds_worth() -> None:
    """A process that has just begun owes the link nothing and is owed nothing."""
    time = _Time()
    throttle = Throttle(RATE, clock=time.clock, sleep=time.sleep)
    await throttle.passed("a", RATE)
    assert time.now == pytest.approx(1.0)


async def test_each_key_has_the_same_share() -> None:
    """A repository with a hundred blobs gets no more than one with one."""
    time, passed = _Time(), Counter[str]()
    throttle = Throttle(RATE, clock=time.clock, sleep=time.sleep)

    async def fetch(key: str) -> None:
        while time.now < 10:
            await throttle.passed(key, 10_000)
            passed[key] += 10_000 if time.now < 10 else 0

    async with asyncio.TaskGroup() as group:
        for key in ["many"] * 100 + ["one"]:
            group.create_task(fetch(key))
    assert passed["one"] == pytest.approx(passed["many"], rel=0.05)


async def test_without_a_limit_nobody_waits() -> None:
    """None is no limit: nothing is counted and nobody has to take turns."""
    time = _Time()
    throttle = Throttle(None, clock=time.clock, sleep=time.sleep)
    await throttle.passed("a", 1 << 40)
    assert list(throttle.parts(b"x" * RATE)) == [b"x" * RATE]
    assert throttle.asked is None
    assert time.now == 0


def test_parts_are_the_chunk() -> None:
    """What is cut for the link arrives as it was."""
    content = bytes(range(256)) * 4000
    parts = list(Throttle(RATE).parts(content))
    assert b"".join(parts) == content
    assert max(map(len, parts)) <= RATE // 4
