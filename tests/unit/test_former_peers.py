"""What a site knows of peers that it no longer has: all of it goes, and nothing else."""

from __future__ import annotations

from typing import Final

import pytest

from node import keys
from node.election import Candidate, Leadership
from node.kv import Put
from node.records import Ack, Cursor, Parked, Report
from node.reference import Repository
from node.wire import codec
from replicator.duties import following
from replicator.former_peers import FormerPeers
from tests.fake_kv import MemoryKV

APPS: Final = (Repository("team/app"), Repository("team/other"))


@pytest.fixture
def kv() -> MemoryKV:
    """A site's metadata."""
    return MemoryKV()


async def _lead(kv: MemoryKV, duty: str = "sweep") -> Leadership:
    return await Candidate(kv, duty, "worker", await kv.grant(60)).enter()


def _of(peer: str) -> set[bytes]:
    parks = {keys.parked(peer, repository) for repository in APPS}
    return {key(peer) for key in (keys.cursor, keys.ack, keys.status, keys.request)} | parks


async def _know(kv: MemoryKV, peer: str) -> None:
    await kv.txn(
        [],
        [
            Put(keys.cursor(peer), codec.encode_cursor(Cursor("life", 9))),
            Put(keys.ack(peer), codec.encode_ack(Ack(Report("life", 9), 1))),
            Put(keys.status(peer), b""),
            Put(keys.request(peer), b""),
            *(Put(keys.parked(peer, r), codec.encode_parked(Parked(1, 2, 1, "", 0))) for r in APPS),
        ],
    )


def _known(kv: MemoryKV) -> set[bytes]:
    kinds = (b"cur/", b"ack/", b"st/", b"park/", b"do/")
    return {key for key in kv.entries() if key.startswith(kinds)}


async def test_only_former_peers_are_forgotten(kv: MemoryKV) -> None:
    """Also where one name begins with another; of those that stay nothing goes."""
    for peer in ("nyc", "nyc-2", "n", "fra"):
        await _know(kv, peer)
    await FormerPeers(kv, ["nyc", "fra"]).forget(await _lead(kv))
    assert _known(kv) == _of("nyc") | _of("fra")


async def test_one_that_only_acked_is_forgotten(kv: MemoryKV) -> None:
    """A peer that this site never followed leaves its ack alone."""
    await kv.txn([], [Put(keys.ack("ber"), codec.encode_ack(Ack(Report("life", 9), 1)))])
    await FormerPeers(kv, []).forget(await _lead(kv))
    assert _known(kv) == set()


async def test_one_whom_another_replicator_follows_stays(kv: MemoryKV) -> None:
    """Its configuration is newer: its cursor may have passed what its parks hold."""
    await _know(kv, "nyc")
    follower, leadership = await _lead(kv, following("nyc")), await _lead(kv)
    await FormerPeers(kv, []).forget(leadership)
    assert _known(kv) == _of("nyc")
    await kv.revoke(follower.lease)
    await FormerPeers(kv, []).forget(leadership)
    assert _known(kv) == set()


async def test_who_leads_no_more_forgets_nothing(kv: MemoryKV) -> None:
    """A deposed leader's configuration is nobody's."""
    await _know(kv, "nyc")
    leadership = await _lead(kv)
    await kv.revoke(leadership.lease)
    await FormerPeers(kv, []).forget(leadership)
    assert _known(kv) == _of("nyc")
