"""What is measured of following peers: Prometheus metrics, each labelled with the peer.

A worker shows a peer while it leads in following it, so a sum or maximum over a site's replicators
is the site's.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from typing import Final

from node.records import Pushed, site_of
from node.register import Register
from node.telemetry import Metrics
from node.wire.follow_codec import FollowRecord

# Seconds: from a change that is in the same room to one of an hour ago.
_LAGS_S: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)


class State(StrEnum):
    """How following a peer goes."""

    STARTING = "starting"
    SCANNING = "scanning"
    FOLLOWING = "following"
    PARKED = "parked"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


class Measures:
    """The metrics of all peers."""

    def __init__(self, metrics: Metrics) -> None:
        self.lag = metrics.histogram(
            "replication_lag_seconds",
            "From a change's writing to its being applied here, of changes that were followed.",
            "peer",
            buckets=_LAGS_S,
        )
        self.keys = metrics.gauge("lag_keys", "Revisions of a peer that are not applied.", "peer")
        self.parked = metrics.gauge("parked", "Repositories of a peer that are left out.", "peer")
        self.state = metrics.gauge(
            "peer_state", "1 for the state in which following a peer is.", "peer", "state"
        )
        self.clock = metrics.gauge(
            "clock_offset_seconds", "How far a peer's clock is ahead of ours.", "peer"
        )

    def of(self, peer: str) -> PeerMeasures:
        """Those of one peer."""
        return PeerMeasures(self, peer)


class PeerMeasures:
    """The metrics of one peer, while it is followed here."""

    def __init__(self, measures: Measures, peer: str) -> None:
        self._measures = measures
        self._peer = peer

    def show(self, status: FollowRecord, ahead_ms: int) -> None:
        """Say how following goes."""
        self._measures.keys.labels(self._peer).set(max(0, status.head - status.revision))
        self._measures.parked.labels(self._peer).set(status.parked)
        self._measures.clock.labels(self._peer).set(ahead_ms / 1000)
        for state in State:
            self._measures.state.labels(self._peer, state).set(state == status.state)

    def applied(self, register: Register[Pushed], now_ms: int, own_site: str) -> None:
        """Count a change that is applied now; `now_ms` is by the source's clock.

        What this site wrote itself, and hears of again, is no news; nor can be said how old a
        delete is.
        """
        dots = register.siblings
        newest = max(dots, key=lambda dot: dots[dot].ms, default=None)
        if newest is not None and site_of(newest.actor) != own_site:
            lag_ms = max(0, now_ms - dots[newest].ms)
            self._measures.lag.labels(self._peer).observe(lag_ms / 1000)

    def clear(self) -> None:
        """Somebody else follows from now on, or nobody."""
        for gauge in (self._measures.keys, self._measures.parked, self._measures.clock):
            with suppress(KeyError):
                gauge.remove(self._peer)
        for state in State:
            with suppress(KeyError):
                self._measures.state.remove(self._peer, state)
