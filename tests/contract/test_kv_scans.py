"""Scanning a KV while others write: what was added up is said to be exact only where it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from node import keys, scans
from node.globs import Filter
from node.keys import TagName
from node.kv import KV, Delete, Put
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Register
from node.roots import BUCKETS, Sum, hash_of
from node.scans import Scans, untouched
from node.wire import codec
from tests import fake_kv
from tests.kv_calls import commit

R = TypeVar("R")

ALL = (Filter(),)
APP = Repository("app")
TAGS = [TagName(APP, Tag(f"v{n}")) for n in range(7)]


def _register(n: int) -> Register[Pushed]:
    return Register({"fra#1": n + 1}, {})


async def _write(kv: KV, *tags: TagName, n: int = 0) -> int:
    value = codec.encode_register(_register(n))
    return await commit(kv, *(Put(keys.register(tag), value) for tag in tags))


class _Meanwhile:
    """Runs what a scan asks for, and after its n-th page something else first."""

    def __init__(self, page: int, what: Callable[[], Awaitable[object]]) -> None:
        self._page = page
        self._what = what
        self.pages = 0

    async def __call__(self, work: Callable[[], R], /) -> R:
        self.pages += 1
        done = work()
        if self.pages == self._page:
            await self._what()
        return done


async def test_a_scan_of_a_site_at_rest_is_exact(kv: KV) -> None:
    """The sums are those of all registers, as of the newest revision, tombstones too."""
    await _write(kv, *TAGS)
    newest = await commit(kv, Put(b"local", b""))
    expected = Sum()
    for tag in TAGS:
        expected.add(tag, _register(0))
    scanned = await Scans(kv, page=2).roots(ALL)
    assert scanned.exact
    assert scanned.revision >= newest
    assert scanned.roots == expected.roots
    assert scanned.roots.tombstones == len(TAGS)


@pytest.mark.parametrize("page", [1, 2, 3, 4])
@pytest.mark.parametrize("tag", [TAGS[0], TAGS[-1]], ids=["first", "last"])
async def test_a_write_while_it_scans_is_noticed(
    kv: KV, another: KV, page: int, tag: TagName
) -> None:
    """Whether the scan has passed the key or not, and whoever wrote it."""
    await _write(kv, *TAGS)
    meanwhile = _Meanwhile(page, lambda: _write(another, tag, n=5))
    scanned = await Scans(kv, page=2, in_thread=meanwhile).roots(ALL)
    assert meanwhile.pages == 4
    # After the last page it is too late for the sums: they are still those of a moment.
    assert scanned.exact == (page == 4)


async def test_what_is_not_replicated_disturbs_no_scan(kv: KV, another: KV) -> None:
    """Uploads, cursors and the like go on while sites are compared."""
    await _write(kv, *TAGS)
    meanwhile = _Meanwhile(2, lambda: commit(another, Put(b"s/upload", b""), Put(b"L/x", b"")))
    assert (await Scans(kv, page=2, in_thread=meanwhile).roots(ALL)).exact


async def test_a_scan_is_kept_until_something_is_written(kv: KV, another: KV) -> None:
    """Two sites at rest are compared without reading all they have, and never by old sums."""
    await _write(kv, *TAGS)
    pages = _Meanwhile(0, asyncio.Event().wait)
    held = Scans(kv, page=2, in_thread=pages)
    first = await held.roots(ALL)
    took_s = held.spent_s
    assert took_s > 0
    await commit(another, Put(b"local", b""))
    second = await held.roots(ALL)
    assert (pages.pages, held.spent_s) == (4, took_s)
    assert second.roots == first.roots
    assert second.revision > first.revision
    assert await held.still(first)
    await _write(another, TAGS[3], n=5)
    assert not await held.still(first)
    assert not await held.still(second)
    third = await held.roots(ALL)
    assert third.exact
    assert third.roots.differing(first.roots) != []


async def test_what_went_without_a_trace_is_missed_when_all_is_read_again(
    kv: KV, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change tells of a key that somebody removed: after a time, or if asked, all is read."""
    monkeypatch.setattr(fake_kv, "_check_kept", lambda *_: None)
    await _write(kv, *TAGS)
    now = [0.0]
    held = Scans(kv, page=2, clock=lambda: now[0])
    first = await held.roots(ALL)
    await commit(kv, Delete(keys.register(TAGS[1])))
    assert (await held.roots(ALL)).roots == first.roots
    assert (await held.roots(ALL, anew=True)).roots.registers == len(TAGS) - 1
    await commit(kv, Delete(keys.register(TAGS[2])))
    now[0] += scans.KEPT_S
    assert (await held.roots(ALL)).roots.registers == len(TAGS) - 2


async def test_a_register_that_cannot_be_read_makes_no_sum_exact(kv: KV) -> None:
    """Nobody may say that two sites are the same where one can't be read."""
    await _write(kv, *TAGS)
    await commit(kv, Put(keys.register(TAGS[2]), b"\xff"))
    scanned = await Scans(kv, page=2).roots(ALL)
    assert not scanned.exact
    assert scanned.roots.registers == len(TAGS) - 1


async def test_filters_say_what_is_added_up(kv: KV) -> None:
    """Two sites compare what both take, each by its own keys."""
    other = TagName(Repository("other"), Tag("v1"))
    await _write(kv, *TAGS, other)
    scanned = await Scans(kv, page=2).roots((Filter(("app",)), Filter(tags=("v1", "v2"))))
    assert scanned.roots.registers == 2


async def test_the_names_of_buckets_are_all_that_is_in_them(kv: KV) -> None:
    """Each name with its hash, of the buckets that were asked for."""
    await _write(kv, *TAGS)
    held = Scans(kv, page=2)
    found = {}
    for bucket in range(BUCKETS):
        async for page in held.names(ALL, [bucket]):
            found.update(page)
    assert found == {tag: hash_of(tag, _register(0)) for tag in TAGS}


async def test_untouched_says_what_was_written_when(kv: KV, another: KV) -> None:
    """Between two revisions, by anybody; a later write of a key may hide an earlier one."""
    before = await _write(kv, *TAGS)
    local = await commit(another, Put(b"local", b""))
    assert await untouched(kv, before, before)
    assert await untouched(kv, before, local)
    written = await _write(another, TAGS[1], n=7)
    await _write(kv, TAGS[1], n=8)
    assert not await untouched(kv, before, written)
    assert not await untouched(kv, local, written)
    assert await untouched(kv, written, written)
    assert not await untouched(kv, written + 1000, written + 1001)
