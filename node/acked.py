"""What a peer has of this site, as far as it has said so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from node import keys
from node.config_models import Peer
from node.globs import Filter
from node.kv import KV, Compacted, Entry, following
from node.records import Ack, ParkedThere, Report
from node.reference import Repository
from node.roots import passes
from node.wire import codec

# More is not counted.
MOST: Final = 1000
_COUNTED_S: Final = 2.0


def let_through(peer: Peer) -> Filter:
    """What this site tells a peer of."""
    return Filter(peer.repositories, peer.tags)


def read_ack(entry: Entry | None) -> Ack | None:
    """The ack of an entry; None where there is none, or it is damaged: the next one heals it."""
    try:
        return None if entry is None else codec.decode_ack(entry.value)
    except ValueError:
        return None


def acked(peer: Peer, ack: Ack | None, incarnation: str) -> int:
    """This site's revision up to which all is applied at a peer, by its last ack; 0 if none is.

    An ack of another life of this site is void, and so is one for what it let through before.
    """
    if ack is None or ack.report.incarnation != incarnation:
        return 0
    return ack.report.revision if ack.ours == let_through(peer).fingerprint else 0


def park_of(report: Report, repository: Repository) -> ParkedThere | None:
    """What a peer said of a repository that it left out; None if it did not name it."""
    return next((park for park in report.parked if park.repository == repository), None)


def applied(report: Report, repository: Repository) -> int:
    """This site's revision up to which all of one repository is applied at a peer.

    What a peer has left out holds back no other repository, where it could name all of that.
    """
    park = park_of(report, repository)
    if park is None and len(report.parked) < report.parked_count:
        return report.revision
    passed = max(report.revision, report.cursor)
    return passed if park is None else min(passed, max(0, park.first - 1))


async def behind(kv: KV, peer: Peer, ack: Ack, until: int) -> int | None:
    """How many tags and manifests were written here after an ack, up to a revision, that the peer
    takes and has not said to have; `MOST` if they are so many or more, None where the KV can't
    tell in time.
    """
    ours = let_through(peer)

    def lacks(entry: Entry) -> bool:
        name = keys.parse_register(entry.key)
        if name is None or not passes(name, (ours, ack.theirs)):
            return False
        return entry.modified > applied(ack.report, name.repository)

    with suppress(Compacted, TimeoutError):
        async with asyncio.timeout(_COUNTED_S):
            return await _count(kv, lacks, ack.report.revision, until)
    return None


async def _count(kv: KV, counts: Callable[[Entry], bool], after: int, until: int) -> int | None:
    if after >= until:
        return 0
    found = 0
    async with following(kv, keys.REPLICATED, after) as stream:
        async for news in stream:
            found += sum(entry.modified <= until and counts(entry) for entry in news.entries)
            if found >= MOST or news.revision >= until:
                return min(found, MOST)
    return None
