"""Where an image is, and what is parked here, over HTTP."""

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
from node.kv import Entry
from node.reference import parse_reference, parse_repository
from node.transaction import Reader, look
from node.whereabouts import Whereabouts
from node.wire import codec

_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}
# Of each peer; nobody reads more.
_MOST_PARKED: Final = 1000


class ImagesApi:
    """The handlers."""

    def __init__(self, whereabouts: Whereabouts, reader: Reader, peers: Sequence[Peer]) -> None:
        self._whereabouts = whereabouts
        self._reader = reader
        self._peers = peers

    async def image(self, _request: web.BaseRequest, target: Target) -> Answer:
        """Which sites have the image that a tag or digest shows here, and why the others have not.

        404 if this site has none, with what keeps it from having it.
        """
        repository = parse_repository(target.parameter("repository") or "")
        reference = parse_reference((target.parameter("reference") or "").replace(" ", "+"))
        image = await self._whereabouts.find(repository, reference)
        return _json({**asdict(image), "digest": str(image.digest)})

    async def parked(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """The repositories of each peer that are left out here, by name."""
        ranges = {
            peer.site: keys.all_parked(peer.site)._replace(limit=_MOST_PARKED + 1)
            for peer in self._peers
        }
        seen = await look(self._reader, ranges.values())
        found = []
        for site, within in ranges.items():
            entries = seen.entries(within)
            parked = [_parked(entry) for entry in entries[:_MOST_PARKED]]
            more = len(entries) > _MOST_PARKED
            found.append({"site": site, "parked": parked, "more": more})
        return _json({"peers": found})


def _parked(entry: Entry) -> dict[str, object]:
    record = codec.decode_parked(entry.value)
    return {"repository": keys.parked_repository(entry.key), **asdict(record)}


def _json(content: object) -> Answer:
    return Answer(200, _JSON, json.dumps(content).encode())
