"""What a peer says it has applied of this site, kept for status and write concern."""

from __future__ import annotations

import asyncio
from typing import Final

from node import keys
from node.errors import MetadataUnavailable
from node.kv import Entry, Ok, Put, only, unchanged
from node.records import Ack, Cursor
from node.site import Site, now_ms
from node.wire import codec

_INTERVAL_S: Final = 1.0


class Acks:
    """Records the acks of one peer's stream, the latest at most once a second.

    Several gateways may do so for one peer at once: an ack never goes back while this site lives
    the same life.
    """

    def __init__(self, site: Site, peer: str) -> None:
        self._site = site
        self._key = keys.ack(peer)
        self._latest = 0
        self._news = asyncio.Event()

    def take(self, ack: Cursor, head: int) -> None:
        """Note an ack; one of another life of this site, or of what it never said, is void."""
        if ack.incarnation == self._site.record.incarnation and self._latest < ack.revision <= head:
            self._latest = ack.revision
            self._news.set()

    async def run(self) -> None:
        """Write down what comes until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                await self._record(self._latest)
            except MetadataUnavailable:
                self._news.set()  # it is no use without the KV, and later ones bring it along
            await asyncio.sleep(_INTERVAL_S)

    async def _record(self, revision: int) -> None:
        entry = (await self._site.decider.look([only(self._key)])).entry(self._key)
        known = None if entry is None else _read(entry)
        incarnation = self._site.record.incarnation
        if known and known.incarnation == incarnation and known.revision >= revision:
            return
        ack = codec.encode_ack(Ack(incarnation, revision, now_ms()))
        # Refused: another gateway wrote; unknown: perhaps applied. The next look shows.
        outcome = await self._site.kv.txn([unchanged(self._key, entry)], [Put(self._key, ack)])
        if not isinstance(outcome, Ok):
            self._news.set()


def _read(entry: Entry) -> Ack | None:
    try:
        return codec.decode_ack(entry.value)
    except ValueError:
        return None  # damaged: the next ack heals it, and must not fail for it
