"""The admin API under /api/v1: what this site is, and how its peers are doing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Final

from aiohttp import web

from gateway.answers import Answer
from gateway.routes import Target
from node import keys
from node.config_models import Peer
from node.config_values import Address
from node.errors import MetadataUnavailable, PeerUnknown, RequestInvalid
from node.kv import KV, only
from node.records import SiteRecord
from node.replication_status import ask_to_compare, peers_status
from node.telemetry import VERSION
from node.weather import Weather

_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Admin:
    """The handlers."""

    def __init__(
        self,
        record: SiteRecord,
        kv: KV,
        peers: Sequence[Peer],
        health: Sequence[Address],
        weather: Weather,
    ) -> None:
        self._record = record
        self._kv = kv
        self._weather = weather
        self._peers = tuple(peers)
        self._health = [str(address) for address in health]

    async def site(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """Which site this is, in which life, how far its metadata has come, where to watch it.

        Who asks what is wrong with its store gets an answer also where that has no majority, and
        where it answers nobody: then its revision is null.
        """
        revision: int | None = None
        with suppress(MetadataUnavailable):
            revision = (await self._kv.read([only(keys.SITE)], may_be_stale=True)).revision
        return _json(
            {
                "site": self._record.name,
                "incarnation": self._record.incarnation,
                "version": VERSION,
                "revision": revision,
                "peers": [peer.site for peer in self._peers],
                "health": self._health,
                "store": self._weather.report,
            }
        )

    async def peers(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """How far each peer is applied here, and how far it has applied this site."""
        statuses = await peers_status(self._kv, self._peers)
        return _json({"peers": [asdict(status) for status in statuses]})

    async def reconcile(self, _request: web.BaseRequest, target: Target) -> Answer:
        """Have a peer compared with at once, or all applied anew that it has (`full=true`).

        The answer is 202: the comparison is done when the peer's `compared` has at least the
        `revision` of the answer, or says why there is none.
        """
        followed = tuple(peer.site for peer in self._peers if peer.follow)
        if target.name not in followed:
            raise PeerUnknown(target.name, followed)
        full = target.parameter("full") or "false"
        if full not in {"true", "false"}:
            raise RequestInvalid("full: true or false")
        revision = await ask_to_compare(self._kv, target.name, full=full == "true")
        return _json({"site": target.name, "revision": revision}, 202)


def _json(content: object, status: int = 200) -> Answer:
    return Answer(status, _JSON, json.dumps(content).encode())
