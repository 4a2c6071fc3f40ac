"""Pages of long ranges of an etcd: what they cost it, and that they are right all the same."""

from __future__ import annotations

import random

import pytest

from node.kv import Delete, Put, Range, prefix
from node.kv_etcd_landmarks import Landmarks
from tests.bench.bulk import put_all
from tests.etcd import Etcd, opened
from tests.fake_kv import MemoryKV

pytestmark = pytest.mark.slow


def _key(number: int) -> bytes:
    return b"k/%04d" % number


async def test_a_long_range_is_gone_through_once_for_a_page(
    etcd: Etcd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page of 5,000 keys costs etcd all of them; the next time it costs the page."""
    passed: list[int] = []
    learn = Landmarks.learn

    def watched(self: Landmarks, end: bytes, keys: int) -> None:
        passed.append(keys)
        learn(self, end, keys)

    monkeypatch.setattr(Landmarks, "learn", watched)
    async with opened(*etcd.endpoints) as kv:
        await put_all(kv, [Put(_key(number), b"") for number in range(5_000)])
        pages = [(await kv.read([prefix(b"k/", 10)])).ranges[0] for _ in range(3)]
    assert pages[0] == pages[1] == pages[2]
    assert [entry.key for entry in pages[0]] == [_key(number) for number in range(10)]
    assert passed == [5_000]


async def test_what_comes_and_goes_around_landmarks_is_found(etcd: Etcd) -> None:
    """With a landmark at the end of every page, all pages are those of a store without any."""
    dice = random.Random(0)
    memory = MemoryKV()
    async with opened(*etcd.endpoints) as kv:
        kv._landmarks = Landmarks(far=1, most=20)
        for _ in range(300):
            keys = [_key(number) for number in dice.sample(range(100), 12)]
            ops = [Put(key, b"") if dice.random() < 0.6 else Delete(key) for key in keys]
            ranges = [
                Range(_key(dice.randrange(100)), _key(dice.randrange(100)), limit)
                for limit in (0, 0, 1, 3, 10, dice.randrange(100))
            ]
            for store in (kv, memory):
                await store.txn([], ops)
            found, expected = [
                [[entry.key for entry in one] for one in (await store.read(ranges)).ranges]
                for store in (kv, memory)
            ]
            assert found == expected
