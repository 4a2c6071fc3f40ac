"""Which life a site is in: metadata that went back in time is noticed, and begins a new one."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path

import pytest

from node.config import ConfigError
from node.errors import MetadataUnavailable, StorageFailed
from node.kv import Put
from node.life import FILE, Life, LifeEnded, Mark, why_not
from node.records import SiteRecord
from tests.fake_kv import Fault, MemoryKV, once

_ids = count(1)


def _life(kv: MemoryKV, root: Path, name: str = "fra") -> Life:
    return Life(kv, root, name, new_id=lambda: f"life-{next(_ids)}")


async def _write(kv: MemoryKV, times: int = 5) -> None:
    for n in range(times):
        await kv.txn([], [Put(b"key", str(n).encode())])


async def test_a_life_goes_on(tmp_path: Path) -> None:
    """A site that starts again is who it was."""
    kv = MemoryKV()
    first = await _life(kv, tmp_path).begin()
    await _write(kv)
    await _life(kv, tmp_path).keep(first)
    assert await _life(kv, tmp_path).begin() == first


async def test_a_folder_without_the_mark_is_not_the_sites(tmp_path: Path) -> None:
    """Where the blobs' disk is away, nothing is served and nothing stored, until it is back."""
    kv = MemoryKV()
    (tmp_path / "blobs").mkdir()
    first = await _life(kv, tmp_path / "blobs").begin()
    (tmp_path / "blobs").rename(tmp_path / "away")
    running = _life(kv, tmp_path / "blobs")
    with pytest.raises(StorageFailed):
        await running.keep(first)
    (tmp_path / "blobs").mkdir()
    for again in (running.keep(first), running.begin()):
        with pytest.raises(StorageFailed, match="these are not the site's blobs"):
            await again
    (tmp_path / "blobs" / "site.lock").unlink()
    (tmp_path / "blobs").rmdir()
    (tmp_path / "away").rename(tmp_path / "blobs")
    await running.keep(first)
    assert await running.begin() == first


async def test_metadata_that_went_back_begins_a_new_life(tmp_path: Path) -> None:
    """A restored backup is not believed, neither at the start nor while a process runs."""
    kv = MemoryKV()
    first = await _life(kv, tmp_path).begin()
    old = kv.copy()
    await _write(kv)
    running = _life(kv, tmp_path)
    await running.keep(first)
    kv.restore(old)
    with pytest.raises(LifeEnded):
        await running.keep(first)
    second = await _life(kv, tmp_path).begin()
    assert second.name == first.name
    assert second.incarnation != first.incarnation
    assert await _life(kv, tmp_path).begin() == second
    with pytest.raises(LifeEnded):
        await running.keep(first)


async def test_a_process_that_starts_without_a_majority_is_of_the_life_that_it_knows(
    tmp_path: Path,
) -> None:
    """It can show what there is; nothing is written, and no other life begins."""
    kv = MemoryKV()
    first = await _life(kv, tmp_path).begin()
    kv.behind = kv.copy()
    assert await _life(kv, tmp_path).begin() == first
    kv.behind = MemoryKV()
    with pytest.raises(MetadataUnavailable):
        await _life(kv, tmp_path).begin()
    kv.behind = kv.copy()
    (tmp_path / FILE).rename(tmp_path / "elsewhere")
    with pytest.raises(MetadataUnavailable):
        await _life(kv, tmp_path).begin()
    (tmp_path / "elsewhere").rename(tmp_path / FILE)
    kv.behind = None
    assert await _life(kv, tmp_path).begin() == first


async def test_metadata_that_is_gone_begins_a_new_life(tmp_path: Path) -> None:
    """A site that lost its metadata and kept its blobs is not who it was."""
    first = await _life(MemoryKV(), tmp_path).begin()
    assert (await _life(MemoryKV(), tmp_path).begin()).incarnation != first.incarnation


async def test_processes_begin_one_life(tmp_path: Path) -> None:
    """However many processes start at once on restored metadata, they agree on its new life."""
    kv = MemoryKV()
    first = await _life(kv, tmp_path).begin()
    old = kv.copy()
    await _write(kv)
    await _life(kv, tmp_path).keep(first)
    kv.restore(old)
    begun = await asyncio.gather(*(_life(kv, tmp_path).begin() for _ in range(5)))
    assert len(set(begun)) == 1
    assert begun[0] != first


async def test_a_peer_knows_more_than_the_site(tmp_path: Path) -> None:
    """A write that a peer has seen and the metadata has not is proof, where no file is one."""
    kv = MemoryKV()
    first = await _life(kv, tmp_path).begin()
    life = _life(kv, tmp_path)
    await _write(kv)
    await life.heard(first, 3)
    for _ in range(2):
        with pytest.raises(LifeEnded):
            await life.heard(first, 1000)
    second = await _life(kv, tmp_path).begin()
    assert second != first
    with pytest.raises(LifeEnded):
        await life.keep(first)


async def test_blobs_of_another_site_are_refused(tmp_path: Path) -> None:
    """Whose blobs, and whose metadata, these are is told."""
    kv = MemoryKV()
    await _life(kv, tmp_path).begin()
    with pytest.raises(ConfigError, match="these blobs are of site fra, not nyc"):
        await _life(MemoryKV(), tmp_path, "nyc").begin()
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="this metadata is of site fra, not nyc"):
        await _life(kv, tmp_path / "other", "nyc").begin()


@pytest.mark.parametrize("fault", [Fault.LOST_REPLY, Fault.LOST_REQUEST])
async def test_a_life_whose_beginning_is_unknown(tmp_path: Path, fault: Fault) -> None:
    """Nobody works for a site whose identity is not certain; the next start settles it."""
    kv = MemoryKV(faults=once(fault))
    with pytest.raises(MetadataUnavailable):
        await _life(kv, tmp_path).begin()
    settled = await _life(kv, tmp_path).begin()
    assert await _life(kv, tmp_path).begin() == settled


@pytest.mark.parametrize("content", ["", "[]", '{"site": "fra"}'])
async def test_a_damaged_mark_is_told(tmp_path: Path, content: str) -> None:
    """A file that can't be read is never taken for none."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(StorageFailed):
        await _life(MemoryKV(), tmp_path).begin()


@pytest.mark.parametrize(
    ("mark", "record", "revision", "believed"),
    [
        (None, None, 1, True),
        (None, SiteRecord("fra", "a"), 1, True),
        (Mark("fra", "a", 5), SiteRecord("fra", "a"), 5, True),
        (Mark("fra", "a", 5), SiteRecord("fra", "a"), 4, False),
        (Mark("fra", "a", 5), SiteRecord("fra", "b"), 6, False),
        (Mark("fra", "a", 5), None, 6, False),
    ],
)
def test_what_is_believed(
    mark: Mark | None, record: SiteRecord | None, revision: int, believed: bool
) -> None:
    """Metadata is believed unless the mark speaks against it."""
    assert (why_not(mark, record, revision) is None) is believed


async def test_the_last_mark_is_exact(tmp_path: Path) -> None:
    """A process that ends in order leaves word of every write before; one that can't, ends."""
    kv = MemoryKV()
    life = _life(kv, tmp_path)
    first = await life.begin()
    old = kv.copy()
    await _write(kv, 1)
    await life.leave(first)
    kv.restore(old)
    await life.leave(first)
    assert await _life(kv, tmp_path).begin() != first
    kv.down = True
    await life.leave(first)
