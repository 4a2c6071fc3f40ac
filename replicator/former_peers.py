"""What a site still knows of peers that were taken out of its configuration, and forgets.

A cursor and parks that stay would be believed when the peer comes back, however much of it was
missed meanwhile by a changed filter or a restore; an old ack would count as its word.  So all of
it goes in one transaction, and a peer that is configured again is read from its beginning.

A replicator whose configuration is newer may follow the peer already: then it stands for that
duty, and the transaction is refused.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from node import keys
from node.election import Leadership
from node.kv import KV, Delete, DeleteRange, Empty, Guard, Ok, Op
from replicator.duties import following

_log = structlog.stdlib.get_logger(__name__)


class FormerPeers:
    """Forgets all peers but those of these names."""

    def __init__(self, kv: KV, configured: Collection[str]) -> None:
        self._kv = kv
        self._configured = frozenset(configured)

    async def forget(self, leadership: Leadership) -> None:
        """Forget them, as leader; what is refused or unknown is tried by the next call.

        Raises:
            MetadataUnavailable: The KV did not answer.
        """
        found = (await self._kv.read(keys.PEERS)).ranges
        known = {keys.peer_name(entry.key) for entries in found for entry in entries}
        for name in sorted(known - self._configured):
            if await self._forget(name, leadership):
                _log.info("a former peer is forgotten", peer=name)

    async def _forget(self, name: str, leadership: Leadership) -> bool:
        standing, parked = keys.candidates(following(name)), keys.all_parked(name)
        guards: list[Guard] = [leadership.guard, Empty(standing.start, standing.end)]
        ops: list[Op] = [
            *(Delete(key(name)) for key in (keys.cursor, keys.ack, keys.status, keys.request)),
            DeleteRange(parked.start, parked.end),
        ]
        return isinstance(await self._kv.txn(guards, ops), Ok)
