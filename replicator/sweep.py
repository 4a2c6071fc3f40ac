"""The duty that ends what nobody finishes, uploads and stages, and removes what they leave.

A session that has expired is ended first, guarded by its being as it was read: whoever goes on with
it in that moment wins, and it stays.  Its files go after that, so a crash in between leaves files
without a session; those are nobody's, because a session stands before its first byte is stored and
its id is never used twice.  They go with the next sweep.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Final

import structlog

from node import keys
from node.blobs import BlobStore, SessionId
from node.election import Leadership
from node.errors import StorageFailed
from node.kv import KV, Delete, Entry, Guard, Modified, Ok
from node.staging import Staging
from node.wire import codec
from replicator.former_peers import FormerPeers

_PAGE: Final = 500
# RELIABILITY 5.4: whoever took a stage is done with it, or dead, long before.
_STAGE_MS: Final = 15 * 60_000

_log = structlog.stdlib.get_logger(__name__)


class Sweep:
    """Sweeps the upload sessions of a site, those of its replicators too, stages, former peers.

    `clock_ms` is the wall clock, in milliseconds since the epoch, by which sessions expire.
    """

    def __init__(
        self,
        kv: KV,
        blobs: BlobStore,
        staging: Staging,
        former_peers: FormerPeers,
        *,
        every_s: float,
        clock_ms: Callable[[], int],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._kv = kv
        self._blobs = blobs
        self._staging = staging
        self._former_peers = former_peers
        self._every_s = every_s
        self._clock_ms = clock_ms
        self._sleep = sleep

    async def run(self, leadership: Leadership) -> None:
        """Sweep at once and every so many seconds, until cancelled.

        Raises:
            MetadataUnavailable: The KV did not answer; what was not read yet stays.
        """
        while True:
            await self.sweep(leadership)
            await self._sleep(self._every_s)

    async def sweep(self, leadership: Leadership) -> None:
        """End what has expired, remove what no session stands for, forget former peers.

        Raises:
            MetadataUnavailable: The KV did not answer; what was not read yet stays.
        """
        await self._former_peers.forget(leadership)
        # Needs no leader's guard: whoever takes a stage over voids what anybody else does under it.
        stages = await self._staging.sweep(self._clock_ms() - _STAGE_MS)
        # Before the sessions are read: what is stored by then has, or had, one.
        stored = set(await self._blobs.sessions())
        ended = 0
        async for entry in self._sessions():
            session = keys.session_id(entry.key)
            if _expired(entry, self._clock_ms()) and await self._end(entry, leadership):
                ended += 1
                stored.add(session)
            else:
                stored.discard(session)
        removed = await self._remove(stored)
        if ended or removed or stages:
            _log.info("swept", uploads=ended, folders=removed, stages=stages)

    async def _sessions(self) -> AsyncIterator[Entry]:
        """Every session that stands all the while, page by page."""
        within = keys.SESSIONS._replace(limit=_PAGE)
        while True:
            (page,) = (await self._kv.read([within])).ranges
            for entry in page:
                yield entry
            if len(page) < _PAGE:
                return
            within = within._replace(start=page[-1].key + b"\0")

    async def _end(self, entry: Entry, leadership: Leadership) -> bool:
        """Whether the session is ended; if nobody knows, the next sweep does."""
        guards: list[Guard] = [leadership.guard, Modified(entry.key, entry.modified)]
        return isinstance(await self._kv.txn(guards, [Delete(entry.key)]), Ok)

    async def _remove(self, sessions: Iterable[SessionId]) -> int:
        """How many sessions' files were removed; one that can't be keeps no other."""
        removed = 0
        for session in sessions:
            try:
                await self._blobs.abort(session)
            except StorageFailed as err:
                _log.warning("an upload's files stay", session=session, reason=str(err))
            else:
                removed += 1
        return removed


def _expired(entry: Entry, now_ms: int) -> bool:
    try:
        return codec.decode_session(entry.value).expires_ms <= now_ms
    except ValueError:
        _log.warning("a session can't be read", session=keys.session_id(entry.key))
        return False
