"""A request's body as it comes in: streamed, bounded in time, honest about being cut.

Nothing is read before somebody iterates, so a request that is refused at once never sees
`100 Continue` (G17).  What ends early, for whatever reason, ends in `BodyCut`.
"""

from __future__ import annotations

import asyncio
from typing import Final, Self

from aiohttp import web

from node.errors import BodyCut, ManifestTooLarge, SizeMismatch

# A client that sends nothing for this long has left without saying so.
IDLE_S: Final = 60.0


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
            BodyCut: The client left, stalled, or broke the framing.
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
        except (OSError, web.RequestPayloadError) as err:
            # OSError: the connection was lost, or (TimeoutError) nothing came.
            raise BodyCut(self._received) from err

    def _rest(self) -> bytes:
        """What had arrived of a body before it broke off, and then the error."""
        content = self._request.content
        err = content.exception()
        # aiohttp shuts the front door on what it holds as soon as there is an exception.
        rest = content.read_nowait() if err is None else content._read_nowait(-1)  # noqa: SLF001
        if not rest:
            raise BodyCut(self._received) from err
        return rest

    async def _ask(self) -> None:
        self._asked = True
        writer = self._request.writer
        await writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # An interim answer is no part of the answer.
        writer.output_size = 0


async def read_manifest(request: web.BaseRequest, limit_bytes: int) -> bytes:
    """The whole of a small body, with or without a length.

    Raises:
        ManifestTooLarge: It is over the limit; no more of it was read.
        BodyCut: It did not come whole.
    """
    if (request.content_length or 0) > limit_bytes:
        raise ManifestTooLarge(limit_bytes)
    body = bytearray()
    async for chunk in Incoming(request):
        body += chunk
        if len(body) > limit_bytes:
            raise ManifestTooLarge(limit_bytes)
    return bytes(body)
