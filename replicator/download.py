"""The bytes of one blob, from an offset on, as one body: whoever sends them, in however many parts.

A cut costs a connection and no bytes; a source that fails is followed by the next, which is asked
for the rest.  Where others wait for the place that it holds, it lets go of its connection, waits
for its turn and asks for the rest.  All of that is one body, and so one piece of its session.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final

from node.digest import Digest
from node.errors import BodyBroken, PeerLied, PeerUnavailable, StorageFull
from node.reference import Repository
from replicator.fetching import Fetched
from replicator.sources import FAILURES, Failure, Pace, Source, Sources
from replicator.turns import Place

# Up to here what is left of a blob passes those that take longer.
SHORT_BYTES: Final = 16 << 20
# Connections in a row that bring nothing, of a source that is the last, and what lies between them.
FRUITLESS: Final = 3
_PAUSE_S: Final = 0.1
# A body ends after so long: with each that is kept, its session is kept for another week.
_BODY_S: Final = 24 * 3600.0


class Download:
    """Asks the sources in their order; `ensure_room` refuses so many bytes more by StorageFull.

    `fetched` is told of the bytes as they come.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        repository: Repository,
        digest: Digest,
        place: Place,
        *,
        offset: int,
        ensure_room: Callable[[int], Awaitable[None]],
        fetched: Fetched,
    ) -> None:
        self.is_whole = False
        self.offset = offset
        # Of which sites there are bytes in it, and who sent the last of them.
        self.brought: set[str] = set()
        self.last: str | None = None
        self._left = list(sources)
        self._repository = repository
        self._digest = digest
        self._place = place
        self._ensure_room = ensure_room
        self._fetched = fetched
        fetched.begin(offset)
        self._failures: list[Failure] = []
        self._final: StorageFull | PeerLied | None = None
        self._size: int | None = None
        self._until = 0

    @property
    def left(self) -> int:
        """How many bytes are still to come, as far as there was room for them."""
        return max(0, self._until - self.offset)

    def failed(self, sources: Sources) -> StorageFull | Failure:
        """Why the body broke: for lack of room, by a contradiction, or for want of sources."""
        return self._final or sources.failed(self._failures)

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The bytes from the offset on; `is_whole` after its end says whether they were the last.

        Raises:
            BodyBroken: It ended before; `failed` says why.
        """
        began, until = self.offset, asyncio.get_running_loop().time() + _BODY_S
        while self._left:
            source = self._left[0]
            try:
                async with aclosing(self._from(source)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                        if asyncio.get_running_loop().time() >= until:
                            return
            except PeerLied as err:
                # A lie contradicts what is here: this one's, or of another who brought that.
                self._final = err
                break
            except StorageFull as err:
                self._final = err  # but the next may say that it is smaller
                del self._left[0]
            except FAILURES as err:
                self._failures.append(source.did(err, self._digest))
                del self._left[0]
            else:
                self.is_whole = True
                return
        raise BodyBroken(self.offset - began)

    async def _from(self, source: Source) -> AsyncGenerator[bytes, None]:
        """What one source brings, over as many connections as bring anything."""
        fruitless, pace = 0, Pace()
        while True:
            if self._place.is_wanted:
                await self._place.give_way()
            before = self.offset
            try:
                async with aclosing(self._connected(source, pace)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except PeerUnavailable as err:
                fruitless = 0 if self.offset > before else fruitless + 1
                most = FRUITLESS if len(self._left) == 1 else 1
                if not err.reached or fruitless == most:
                    raise
                await asyncio.sleep(fruitless * _PAUSE_S * random.uniform(0.5, 1.5))
            else:
                if self.offset == self._size:
                    return

    async def _connected(self, source: Source, pace: Pace) -> AsyncGenerator[bytes, None]:
        """What one request brings, until it ends or others are waited for.

        On a link that is held to a rate it is not much, and is taken to its end: what had come
        already would come again.
        """
        most = source.most
        async with source.blob(self._repository, self._digest, self.offset, most, pace) as blob:
            self._size = blob.size
            await self._ensure_room(blob.size - self.offset - self.left)
            self._until = blob.size
            if blob.size - self.offset > SHORT_BYTES:
                self._place.is_short = False  # whatever its manifest says
            async for chunk in blob.chunks:
                self.offset += len(chunk)
                self._fetched.got(len(chunk))
                self.brought.add(source.site)
                self.last = source.site
                yield chunk
                if most is None and self._place.is_wanted:
                    return
