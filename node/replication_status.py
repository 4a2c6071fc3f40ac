"""How replication with each peer goes, as `status`, the admin API and metrics show it.

What is shown was written by the peer's follower when something changed, under its lease: where
nobody follows there is no such record.  Numbers are about revisions of the peer's KV: each is one
of its writes, of whatever kind, so the lag is an upper bound of the keys that are missing here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from node import keys
from node.config_models import Peer
from node.kv import KV, Entry, Range, only
from node.records import Ack
from node.wire import codec, feed_codec
from node.wire.feed_codec import FollowRecord


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer, from here.

    `state` is following, scanning, parked, unreachable, refused, starting, or off where this site
    is configured not to follow it.  `lag_s` is the age of the oldest change that is known and not
    applied, in seconds.  `cursor` is the peer's revision up to which all is applied or parked here,
    `acked` this site's revision up to which all is applied there.
    """

    site: str
    state: str
    lag_keys: int
    lag_s: float
    parked: int
    last_error: str | None
    cursor: int
    acked: int


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
        site, *parts = (await kv.read(ranges)).ranges
        incarnation = codec.decode_site(site[0].value).incarnation if site else ""
        for n, peer in enumerate(some):
            found.append(_status(peer, parts[4 * n : 4 * n + 4], incarnation, clock_ms()))
    return found


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
    record = feed_codec.decode_follow(told[0].value) if told else FollowRecord("starting")
    ack = codec.decode_ack(acks[0].value) if acks else Ack("", 0, 0)
    return PeerStatus(
        site=peer.site,
        state=record.state if peer.follow else "off",
        lag_keys=max(0, record.head - record.revision),
        lag_s=max(0, now_ms - record.oldest_ms) / 1000 if record.oldest_ms else 0.0,
        parked=len(parked),
        last_error=record.last_error or None,
        cursor=codec.decode_cursor(cursors[0].value).revision if cursors else 0,
        # An ack of another life of this site is void.
        acked=ack.revision if ack.incarnation == incarnation else 0,
    )
