"""The admin API under /api/v1: what this site is, and how its peers are doing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from aiohttp import web

from gateway.answers import Answer
from gateway.routes import Target
from node import keys
from node.config_models import Peer
from node.kv import KV, only
from node.records import SiteRecord
from node.replication_status import peers_status
from node.telemetry import VERSION

_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Admin:
    """The handlers."""

    def __init__(self, record: SiteRecord, kv: KV, peers: Sequence[Peer]) -> None:
        self._record = record
        self._kv = kv
        self._peers = tuple(peers)

    async def site(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """Which site this is, in which life, and how far its metadata has come."""
        revision = (await self._kv.read([only(keys.SITE)])).revision
        return _json(
            {
                "site": self._record.name,
                "incarnation": self._record.incarnation,
                "version": VERSION,
                "revision": revision,
                "peers": [peer.site for peer in self._peers],
            }
        )

    async def peers(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """How far each peer is applied here, and how far it has applied this site."""
        statuses = await peers_status(self._kv, self._peers)
        return _json({"peers": [asdict(status) for status in statuses]})


def _json(content: object) -> Answer:
    return Answer(200, _JSON, json.dumps(content).encode())
