"""A gRPC proxy before an etcd, that loses the answers it is told to lose, or is late with all.

It passes every call on as it came.  An answer that is lost was given: what it speaks of has
happened, and its caller is told that the connection broke.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import grpc
from grpc import aio

# What etcd's clients send along; the rest is gRPC's own.
_PASSED_ON: Final = {"hasleader", "token"}

Loses = Callable[[str], bool]
Late = Callable[[bool], float]


class _Forwarding(grpc.GenericRpcHandler):
    """Takes every method there is, unary or not: on the wire they are the same."""

    def __init__(self, upstream: aio.Channel, loses: Loses, late_s: Late) -> None:
        self._upstream = upstream
        self._loses = loses
        self._late_s = late_s

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Pass it on as bytes."""
        forward = partial(self._forward, handler_call_details.method)
        return grpc.stream_stream_rpc_method_handler(forward)

    async def _forward(
        self, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[bytes]:
        metadata = [pair for pair in context.invocation_metadata() if pair[0] in _PASSED_ON]
        stub: aio.StreamStreamMultiCallable[bytes, bytes] = self._upstream.stream_stream(method)
        call = stub(requests, metadata=metadata)
        try:
            async for answer in call:
                if self._loses(method):
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
                await asyncio.sleep(self._late_s(("hasleader", "true") in metadata))
                yield answer
        except aio.AioRpcError as err:
            await context.abort(err.code(), err.details())
        finally:
            call.cancel()


@asynccontextmanager
async def lossy(target: str, loses: Loses, late_s: Late = lambda _: 0.0) -> AsyncIterator[str]:
    """The address of a proxy to `target`.

    `loses` is asked of each answer, by its method; each that is not lost comes so much later, by
    whether a member with a leader was asked for.
    """
    async with aio.insecure_channel(target) as upstream:
        server = aio.server()
        server.add_generic_rpc_handlers((_Forwarding(upstream, loses, late_s),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)
