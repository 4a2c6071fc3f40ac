"""A peer that knows more of this site than the site does: the metadata was put back."""

from __future__ import annotations

import pytest

from node.errors import PeerUnavailable
from node.life import LifeEnded
from node.records import Cursor
from tests.fake_kv import MemoryKV
from tests.feeds import dialled, peer_at, served, site_of, told
from tests.model import Model
from tests.ports import free_port


@pytest.mark.parametrize("ahead", [1, 1000])
async def test_a_cursor_beyond_the_metadata_ends_the_life(ahead: int) -> None:
    """Nothing is told by it: what is written up to there now, the peer would never hear of."""
    model, port, heard = Model(MemoryKV()), free_port(), list[int]()
    await model.image("v1")

    async def begin_anew(revision: int) -> None:
        heard.append(revision)
        raise LifeEnded

    revision = (await model.kv.read([])).revision + ahead
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port, begin_anew),
        dialled(peer_at(port, "fra")) as client,
        told(client, Cursor("1", revision)) as (_, batches),
    ):
        with pytest.raises(PeerUnavailable):
            await anext(batches)
    assert heard == [revision]


@pytest.mark.parametrize(("life", "ahead"), [("1", 0), ("another", 1000), ("", 0)])
async def test_other_cursors_end_nothing(life: str, ahead: int) -> None:
    """That of the newest revision, and any of another life."""
    model, port = Model(MemoryKV()), free_port()
    await model.image("v1")
    cursor = Cursor(life, (await model.kv.read([])).revision + ahead)
    async with (
        served(site_of(model), [peer_at(1, "nyc")], port),
        dialled(peer_at(port, "fra")) as client,
        told(client, cursor) as (_, batches),
    ):
        await model.image("v2")
        async for batch in batches:
            if batch.changes:
                break
