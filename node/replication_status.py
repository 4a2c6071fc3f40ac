"""How replication with each peer goes, as `status`, the admin API and metrics show it.

What is shown was written by the peer's follower when something changed, under its lease: where
nobody follows there is no such record.  "In sync" is said only of what a comparison has proven and
nothing has overtaken: neither what the follower heard of the peer, nor anything that was written
here, nor a new life of this site: metadata from a backup say nothing of today.

Numbers are about revisions of the peer's KV: each is one of its writes, of whatever kind, so the
lag is an upper bound of the keys that are missing here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from node import keys
from node.acked import acked, behind, read_ack
from node.config_models import Peer
from node.errors import MetadataUnavailable
from node.kv import KV, Entry, Ok, Put, Range, Snapshot, only, unchanged
from node.scans import untouched
from node.wire import codec, follow_codec
from node.wire.follow_codec import Compared, FollowRecord, Progress

# What a request to compare says if all is to be applied anew.
FULL: Final = b"full"
# What is known where no replicator leads: none runs, it has just begun, or its metadata is away.
_NOBODY: Final = FollowRecord("starting", last_error="no replicator follows it")
_ATTEMPTS: Final = 5
# A follower that stands by what it found says so more often.  One that can't write, as where the
# store is full, can't take it back: neither by a write nor by letting its lease end.
FRESH_S: Final = 60.0
# Where it takes longer to see whether anything was written, nothing is said.
_PROOF_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, from here.

    `state` is following, scanning, parked, unreachable, refused, starting, or off where this site
    is configured not to follow it.  `lag_s` is the age of the oldest change that is known and not
    applied, in seconds, or the time for which the peer was not heard if that is more; of what a
    scan tells, which may be old and here already, it is the time since the scan began.  Both lags
    are None where nobody knows.  `cursor` is the peer's revision up to which all is applied or
    parked here, `acked` this site's revision up to which all is applied there (0: unknown),
    `behind` how many tags and manifests of this site it lacks (1000: so many or more; None:
    unknown).  `in_sync`: both sites held the same at one
    moment, and this site knows of nothing that has changed since; `compared` is what the last
    comparison found.  `progress` is that of a scan, None while the peer is followed; `bytes_to_go`
    are those that are still to come of the blobs that are fetched now, `seconds_left` until they
    are here by the speed of the last minute, None where nobody can tell.
    """

    site: str
    state: str
    lag_keys: int | None
    lag_s: float | None
    parked: int
    last_error: str | None
    cursor: int
    acked: int
    behind: int | None
    in_sync: bool
    compared: Compared | None
    progress: Progress | None
    bytes_to_go: int
    seconds_left: int | None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def peers_status(
    kv: KV, peers: Sequence[Peer], *, clock_ms: Callable[[], int] = _now_ms
) -> list[PeerStatus]:
    """The status of each peer, in their order, all as of one moment (of a few peers at a time).

    Raises:
        MetadataUnavailable: No answer in time.
    """
    found: list[PeerStatus] = []
    for start in range(0, len(peers), 20):
        some = peers[start : start + 20]
        ranges = [only(keys.SITE), *(r for peer in some for r in _ranges(peer.site))]
        snapshot = await kv.read(ranges, may_be_stale=True)
        site, *parts = snapshot.ranges
        incarnation = codec.decode_site(site[0].value).incarnation if site else ""
        for n, peer in enumerate(some):
            mine = parts[4 * n : 4 * n + 4]
            status = await _proven(kv, _status(peer, mine, incarnation, clock_ms()), snapshot)
            found.append(await _counted(kv, peer, mine[3], status, snapshot.revision))
    return found


async def ask_to_compare(kv: KV, peer: str, *, full: bool = False) -> int:
    """Have a peer's follower compare, and first apply all that the peer has anew if `full`.

    The revision of the request: what is compared after it is of that revision or a later one.

    Raises:
        MetadataUnavailable: Nothing may have been asked for.
    """
    within = only(keys.request(peer))
    for _ in range(_ATTEMPTS):
        ((*seen,),) = (await kv.read([within])).ranges
        standing = seen[0] if seen else None
        wanted = FULL if full or (standing and standing.value == FULL) else b""
        guard = unchanged(within.start, standing)
        outcome = await kv.txn([guard], [Put(within.start, wanted)])
        if isinstance(outcome, Ok):
            return outcome.revision
    raise MetadataUnavailable("the request could not be written")


async def _counted(
    kv: KV, peer: Peer, acks: Sequence[Entry], status: PeerStatus, newest: int
) -> PeerStatus:
    """The status, with how much of what is here the peer has not said to have."""
    ack = read_ack(acks[0]) if acks and status.acked else None
    return status if ack is None else replace(status, behind=await behind(kv, peer, ack, newest))


async def _proven(kv: KV, status: PeerStatus, snapshot: Snapshot) -> PeerStatus:
    """The status, without what has been overtaken by something that was written here."""
    if not status.in_sync or status.compared is None:
        return status
    stands = False
    if not snapshot.stale:
        with suppress(TimeoutError, MetadataUnavailable):
            async with asyncio.timeout(_PROOF_S):
                stands = await untouched(kv, status.compared.revision, snapshot.revision)
    return replace(status, in_sync=stands)


def _ranges(peer: str) -> tuple[Range, Range, Range, Range]:
    return (
        only(keys.status(peer)),
        only(keys.cursor(peer)),
        keys.all_parked(peer),
        only(keys.ack(peer)),
    )


def _status(
    peer: Peer, parts: Sequence[tuple[Entry, ...]], incarnation: str, now_ms: int
) -> PeerStatus:
    told, cursors, parked, acks = parts
    record = follow_codec.decode_follow(told[0].value) if told else _NOBODY
    ack = read_ack(acks[0]) if acks else None
    stands = record.stands and abs(now_ms - record.ms) <= FRESH_S * 1000
    ours = record.compared is not None and record.compared.incarnation == incarnation
    since_ms = [ms for ms in (record.oldest_ms, record.unheard_since_ms) if ms]
    return PeerStatus(
        site=peer.site,
        state=record.state if peer.follow else "off",
        # What a peer has is not known before it was met; nor how long ago, where nobody follows.
        lag_keys=max(0, record.head - record.revision) if record.head else None,
        lag_s=max(0, now_ms - min(since_ms, default=now_ms)) / 1000 if told else None,
        parked=len(parked),
        last_error=(record.last_error or None) if peer.follow else None,
        cursor=codec.decode_cursor(cursors[0].value).revision if cursors else 0,
        acked=acked(peer, ack, incarnation),
        behind=None,
        in_sync=peer.follow and stands and ours and record.state == "following" and not parked,
        compared=record.compared,
        progress=record.progress,
        bytes_to_go=record.bytes_to_go if peer.follow else 0,
        seconds_left=record.seconds_left if peer.follow else None,
    )
