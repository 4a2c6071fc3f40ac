"""A request's body as it comes in: streamed, bounded in time, honest about being cut.

Nothing is read before somebody iterates, so a request that is refused at once never sees
`100 Continue` (G17).  What ends early, for whatever reason, ends in a `BodyCut`.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

from aiohttp import web

from node.errors import BodyBroken, BodyStalled, ManifestTooLarge, NoRoom, SizeMismatch

# A client that sends nothing for this long has left without saying so.
IDLE_S: Final = 60.0
# A manifest of 4 MiB over a line of half a megabit a second.
WHOLE_S: Final = 120.0
ROOM_BYTES: Final = 64 << 20
# A file's offset has 63 bits; aiohttp takes the largest number of 64 for "no body".
_MOST_BYTES: Final = 2**63 - 1


class Incoming:
    """The bytes of one request, in order; to be iterated once.

    With `promised`, the number of bytes that the client said elsewhere it would send, more or
    fewer are an error.
    """

    def __init__(
        self, request: web.BaseRequest, promised: int | None = None, *, idle_s: float = IDLE_S
    ) -> None:
        self._request = request
        self._promised = promised
        self._idle_s = idle_s
        self._received = 0
        self._asked = request.headers.get("Expect", "").lower() != "100-continue"

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next bytes.

        Raises:
            BodyBroken: The client left, or broke the framing.
            BodyStalled: It has sent nothing for `idle_s` seconds.
            SizeMismatch: It was not the promised number of bytes.
        """
        chunk = await self._next()
        self._received += len(chunk)
        if self._promised is not None and (
            self._received > self._promised or (not chunk and self._received != self._promised)
        ):
            raise SizeMismatch(self._promised, self._received)
        if not chunk:
            raise StopAsyncIteration
        return chunk

    async def _next(self) -> bytes:
        content = self._request.content
        if not self._request.protocol.connected or content.exception() is not None:
            return self._rest()
        try:
            if not self._asked:
                await self._ask()
            async with asyncio.timeout(self._idle_s):
                return await content.readany()
        except TimeoutError as err:
            raise BodyStalled(self._received) from err
        except (OSError, web.RequestPayloadError) as err:
            raise BodyBroken(self._received) from err

    def _rest(self) -> bytes:
        """What had arrived of a body before it broke off, and then the error."""
        content = self._request.content
        err = content.exception()
        # aiohttp shuts the front door on what it holds as soon as there is an exception.
        rest = content.read_nowait() if err is None else content._read_nowait(-1)  # noqa: SLF001
        if not rest:
            raise BodyBroken(self._received) from err
        return rest

    async def _ask(self) -> None:
        self._asked = True
        writer = self._request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # An interim answer is no part of the answer.
        writer.output_size = 0


def check_framing(request: web.BaseRequest) -> None:
    """Refuse a body of which the parser and we, or a proxy, would read different bytes.

    Raises:
        BodyBroken: It has another transfer coding than `chunked`, or a length that no body has.
    """
    coding = request.headers.get("Transfer-Encoding")
    if coding is not None and coding.lower() != "chunked":
        raise BodyBroken(0)
    if request.content_length is not None and request.content_length > _MOST_BYTES:
        raise BodyBroken(0)


class SmallBodies:
    """Reads bodies that are held in memory, such as manifests; one for all requests of a process.

    Each has at most `limit_bytes`, and all that come in at one moment `room_bytes`: clients that
    begin many and end none take no more.  Each has to be whole within `whole_s` seconds.
    """

    def __init__(
        self, limit_bytes: int, *, room_bytes: int = ROOM_BYTES, whole_s: float = WHOLE_S
    ) -> None:
        self._limit_bytes = limit_bytes
        self._room_bytes = max(room_bytes, limit_bytes)
        self._whole_s = whole_s
        self._held_bytes = 0

    async def read(self, request: web.BaseRequest) -> bytes:
        """The whole of a body, with or without a length.

        Raises:
            ManifestTooLarge: It is over the limit; no more of it was read.
            NoRoom: The bodies of others take all that there is.
            BodyBroken, BodyStalled: It did not come whole.
        """
        if (request.content_length or 0) > self._limit_bytes:
            raise ManifestTooLarge(self._limit_bytes)
        body = bytearray()
        try:
            async with asyncio.timeout(self._whole_s):
                async for chunk in Incoming(request):
                    body += chunk
                    self._held_bytes += len(chunk)
                    self._check(len(body))
        except TimeoutError as err:
            raise BodyStalled(len(body)) from err
        finally:
            self._held_bytes -= len(body)
        return bytes(body)

    def _check(self, size: int) -> None:
        if size > self._limit_bytes:
            raise ManifestTooLarge(self._limit_bytes)
        if self._held_bytes > self._room_bytes:
            raise NoRoom(self._room_bytes)
