"""The admin API under /api/v1: what this site is, and how its peers are doing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

from aiohttp import web

from gateway.headers import Answer
from gateway.routes import Target
from node import keys
from node.config_models import Peer
from node.kv import KV, Range, only
from node.records import SiteRecord
from node.telemetry import VERSION
from node.wire import codec

_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Admin:
    """The handlers."""

    def __init__(self, record: SiteRecord, kv: KV, peers: Sequence[Peer]) -> None:
        self._record = record
        self._kv = kv
        self._peers = tuple(peers)

    async def site(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """Which site this is, in which life."""
        return _json(
            {
                "site": self._record.name,
                "incarnation": self._record.incarnation,
                "version": VERSION,
                "peers": [peer.site for peer in self._peers],
            }
        )

    async def peers(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """How far each peer is applied here, and how far it has applied this site."""
        return _json({"peers": [await self._peer(peer.site) for peer in self._peers]})

    async def _peer(self, site: str) -> dict[str, object]:
        ranges: list[Range] = [
            only(keys.cursor(site)),
            keys.all_parked(site),
            only(keys.ack(site)),
        ]
        cursors, parked, acks = (await self._kv.read(ranges)).ranges
        cursor = codec.decode_cursor(cursors[0].value).revision if cursors else None
        acked = codec.decode_ack(acks[0].value).revision if acks else None
        reasons = [codec.decode_parked(entry.value).reason for entry in parked]
        return {
            "site": site,
            "state": "parked" if parked else "unknown" if cursor is None else "following",
            "lag_keys": None,
            "lag_s": None,
            "parked": len(parked),
            "last_error": reasons[-1] if reasons else None,
            "cursor": cursor,
            "acked": acked,
        }


def _json(content: object) -> Answer:
    return Answer(200, _JSON, json.dumps(content).encode())
