"""Which blobs are lost: there is a record of their copy, and no file of its length.

Metadata can't tell: a live manifest has references to blobs with records, and a file that is taken
away, or cut short, leaves all of that as it was.  So now and then the store is asked for every copy
that a record names; what is found lost is asked for again until it is back.  Whether the bytes are
the right ones is not looked at.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from node import keys
from node.blobs import BlobStore, Copy, Generation
from node.kv import KV, Entry, Range, only
from node.wire import codec

PAGE: Final = 500
# What is known is believed for so long, and longer where looking takes more of the time than this.
KEPT_S: Final = 600.0
_SHARE: Final = 50
# A read of the KV takes 128 ranges.
_ASKED: Final = 100


class Losses:
    """Counts the lost blobs of a site; one count runs at a time. `clock` is monotonic."""

    def __init__(
        self,
        kv: KV,
        blobs: BlobStore,
        *,
        clock: Callable[[], float] = time.monotonic,
        page: int = PAGE,
    ) -> None:
        self._kv = kv
        self._blobs = blobs
        self._clock = clock
        self._page = page
        self._counting = asyncio.Lock()
        self._lost: list[Copy] = []
        self._until = -math.inf
        # How far a count has come that is not at its end: whoever asked may have gone, and the next
        # one goes on with it.
        self._next: bytes | None = None
        self._looked_at = -math.inf
        self._found: list[Copy] = []
        self._spent_s = 0.0

    async def count(self, *, anew: bool = False) -> int:
        """How many blobs are lost, as of some ten minutes ago at the most; `anew`: as of now.

        Where looking takes long it is older, by fifty times as long as that takes.

        Raises:
            MetadataUnavailable, StorageFailed: They did not answer.
        """
        async with self._counting:
            if not anew and self._clock() < self._until:
                self._lost = await self._still(self._lost)
                return len(self._lost)
            if anew or self._next is None or self._clock() - self._looked_at > KEPT_S:
                self._next, self._found, self._spent_s = keys.BLOBS.start, [], 0.0
            while self._next is not None:
                self._next = await self._count_page(self._next)
            self._lost = await self._still(self._found)  # some may have come back meanwhile
            self._until = self._clock() + max(KEPT_S, _SHARE * self._spent_s)
            return len(self._lost)

    async def _count_page(self, start: bytes) -> bytes | None:
        """Look at some records from there on; where the next begin, None behind the last."""
        began = self._clock()
        (page,) = (await self._kv.read([Range(start, keys.BLOBS.end, self._page)])).ranges
        found = await self._still(await self._blobs.missing(_copies(page)))
        self._found += found
        self._looked_at = self._clock()
        self._spent_s += self._looked_at - began
        return page[-1].key + b"\0" if len(page) == self._page else None

    async def _still(self, copies: Sequence[Copy]) -> list[Copy]:
        """Those that their records still name, and that are not there.

        A record may have come to name another copy, as where a push has brought the blob back.
        """
        found: list[Copy] = []
        for start in range(0, len(copies), _ASKED):
            some = copies[start : start + _ASKED]
            held = await self._kv.read([only(keys.blob(copy.digest)) for copy in some])
            named = _copies([entry for entries in held.ranges for entry in entries])
            found += await self._blobs.missing([copy for copy in some if copy in named])
        return found


def _copies(entries: Sequence[Entry]) -> list[Copy]:
    """The copies that records name; those in quarantine are known to be of no use."""
    found = []
    for entry in entries:
        try:
            digest = keys.blob_digest(entry.key)
        except ValueError:
            continue  # nobody asks for what has no digest
        try:
            record = codec.decode_blob(entry.value)
        except ValueError:
            found.append(Copy(digest, Generation(""), 0))  # a name that no copy ever has
            continue
        if not record.quarantined:
            found.append(Copy(digest, record.generation, record.size))
    return found
