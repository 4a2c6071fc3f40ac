"""Blobs of which there is a record and no file are counted, however they went."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from node import keys
from node.blobs import Copy
from node.digest import Digest
from node.kv import Put, only
from node.losses import KEPT_S, Losses
from node.replication_status import ask_to_compare
from node.wire import codec
from tests.fake_kv import MemoryKV
from tests.following import Here, There
from tests.model import Model


class Stock:
    """A site of which blobs are lost, and how many of them are known; `now_s` is its clock."""

    def __init__(self) -> None:
        self.model = Model(MemoryKV())
        self.now_s = 0.0
        self.losses = Losses(self.model.kv, self.model.blobs, clock=lambda: self.now_s, page=2)

    async def lose(self, digest: Digest) -> None:
        """Take a blob's file away."""
        ((entry,),) = (await self.model.kv.read([only(keys.blob(digest))])).ranges
        self.model.blobs.lose(digest, codec.decode_blob(entry.value).generation)


@pytest.fixture
async def stock() -> Stock:
    """A site of seven blobs."""
    found = Stock()
    for number in range(7):
        await found.model.upload(f"{number}".encode())
    return found


async def test_what_is_there_is_not_lost(stock: Stock) -> None:
    """Page after page, and a site without blobs has lost none."""
    assert await stock.losses.count() == 0
    assert await Stock().losses.count() == 0


async def test_a_file_that_is_gone_or_cut_short_is_lost(stock: Stock) -> None:
    """Of any page, the last too."""
    for content in (b"0", b"3", b"6"):
        await stock.lose(Digest.of(content))
    cut = Digest.of(b"4")
    ((entry,),) = (await stock.model.kv.read([only(keys.blob(cut))])).ranges
    stock.model.blobs.damage(cut, codec.decode_blob(entry.value).generation, b"")
    assert await stock.losses.count() == 4


async def test_a_record_that_nobody_can_read_is_a_loss(stock: Stock) -> None:
    """Its blob can't be served."""
    await stock.model.kv.txn([], [Put(keys.blob(Digest.of(b"2")), b"\xff")])
    assert await stock.losses.count() == 1


async def test_what_is_known_is_believed_for_a_while(stock: Stock) -> None:
    """Looking takes a read of every record; whoever wants to know it now can ask for that."""
    assert await stock.losses.count() == 0
    await stock.lose(Digest.of(b"5"))
    stock.now_s += KEPT_S - 1
    assert await stock.losses.count() == 0
    assert await stock.losses.count(anew=True) == 1
    await stock.lose(Digest.of(b"1"))
    stock.now_s += KEPT_S
    assert await stock.losses.count() == 2


async def test_what_is_back_is_no_loss_any_more(stock: Stock) -> None:
    """A push brings it back, in another copy; that is seen at once, and not after a while."""
    for content in (b"0", b"1"):
        await stock.lose(Digest.of(content))
    assert await stock.losses.count() == 2
    await stock.model.upload(b"1")
    assert await stock.losses.count() == 1
    await stock.model.upload(b"0")
    assert await stock.losses.count() == 0


def _shown(here: Here) -> float | None:
    return here.metrics.registry.get_sample_value("entrepot_lost_blobs")


@pytest.mark.parametrize("where", ["here", "there"])
async def test_a_blob_that_is_lost_is_looked_for(where: str) -> None:
    """Tags and manifests tell nothing of it; when it is back, both are in sync again."""
    here, there = Here(), There()
    await there.model.image("v1")
    site = Model(here.kv, here.blobs) if where == "here" else there.model
    digest = await site.upload(b"more")
    ((entry,),) = (await site.kv.read([only(keys.blob(digest))])).ranges
    site.blobs.lose(digest, codec.decode_blob(entry.value).generation)
    async with there.up(), here.following(there.peer):
        status = await here.sees(there.peer, "unknown")
        assert status.compared is not None
        assert status.compared.reason.startswith("blobs are lost")
        assert _shown(here) == (where == "here")
        await site.upload(b"more")
        await ask_to_compare(here.kv, "fra")
        await here.sees(there.peer, "same", in_sync=True)
        assert _shown(here) == 0


async def test_who_asked_may_go_and_the_next_one_goes_on(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that takes longer than anybody waits comes to its end all the same."""
    await stock.lose(Digest.of(b"6"))
    missing, pages = stock.model.blobs.missing, list[Sequence[Copy]]()

    async def gone_at_the_second(copies: Sequence[Copy]) -> Sequence[Copy]:
        pages.append(copies)
        if len(pages) == 2:
            raise asyncio.CancelledError
        return await missing(copies)

    monkeypatch.setattr(stock.model.blobs, "missing", gone_at_the_second)
    with pytest.raises(asyncio.CancelledError):
        await stock.losses.count()
    assert await stock.losses.count() == 1
    assert pages.count(pages[0]) == 1
    assert pages.count(pages[1]) == 2


async def test_what_was_looked_at_long_ago_is_looked_at_again(
    stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A count that nobody went on with for a while says nothing of today."""
    missing, looks = stock.model.blobs.missing, 0

    async def gone_at_the_last(copies: Sequence[Copy]) -> Sequence[Copy]:
        nonlocal looks
        looks += 1
        if looks == 4:
            raise asyncio.CancelledError
        return await missing(copies)

    monkeypatch.setattr(stock.model.blobs, "missing", gone_at_the_last)
    with pytest.raises(asyncio.CancelledError):
        await stock.losses.count()
    for number in range(7):
        await stock.lose(Digest.of(f"{number}".encode()))
    stock.now_s += KEPT_S + 1
    assert await stock.losses.count() == 7


async def test_a_key_that_is_no_digest_is_passed(stock: Stock) -> None:
    """It is nobody's blob, and ends no comparison."""
    await stock.model.kv.txn([], [Put(keys.BLOBS.start + b"?", b"")])
    assert await stock.losses.count() == 0
