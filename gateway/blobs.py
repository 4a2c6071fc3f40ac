"""Blobs over HTTP: GET, HEAD and DELETE /v2/<name>/blobs/<digest>."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

from aiohttp import web

from gateway.answers import Answer
from gateway.bodies import describe_blob, send_blob
from gateway.headers import etag, parse_condition
from gateway.ranges import choose_spans
from gateway.registry import Registry
from gateway.routes import Target
from gateway.stale import headers_of, shown_anyway
from node.condition import Condition
from node.digest import Digest

_YEAR_S = 365 * 24 * 3600


class Blobs:
    """The handlers; `threads` are the store's, `always` the headers of every response."""

    def __init__(self, registry: Registry, threads: Executor, always: Mapping[str, str]) -> None:
        self._registry = registry
        self._threads = threads
        self._always = always

    async def get(self, request: web.BaseRequest, target: Target) -> Answer | web.StreamResponse:
        """end-2: the bytes, whole or in ranges."""
        repository, digest = target.repository, target.digest
        headers = _headers(digest)
        condition = parse_condition(request.headers, digest)
        if request.method == "HEAD":
            with shown_anyway() as shown:
                stat = await self._registry.stat_blob(repository, digest)
            headers |= headers_of(shown)
            if _is_known(condition, digest):
                return Answer(304, headers)
            return describe_blob(stat.record.size, {**self._always, **headers})
        with shown_anyway() as shown:
            blob = await self._registry.open_blob(repository, digest)
        headers |= headers_of(shown)
        try:
            if _is_known(condition, digest):
                return Answer(304, headers)
            head = {**self._always, **headers}
            spans = choose_spans(
                request.headers.get("Range"),
                request.headers.get("If-Range"),
                etag=head["ETag"],
                size=blob.size,
            )
            return await send_blob(request, blob, head=head, threads=self._threads, spans=spans)
        finally:
            blob.close()

    async def delete(self, _request: web.BaseRequest, target: Target) -> Answer:
        """end-10: 202, and gone from this repository at once."""
        await self._registry.delete_blob(target.repository, target.digest)
        return Answer(202, {})


def _is_known(condition: Condition | None, digest: Digest) -> bool:
    """Whether the client has the blob already.

    Raises:
        PreconditionFailed: It wants another one.
    """
    if condition is None:
        return False
    condition.require_wanted(digest)
    return not condition.allows(digest)


def _headers(digest: Digest) -> dict[str, str]:
    return {
        "Content-Type": "application/octet-stream",
        "Docker-Content-Digest": str(digest),
        "ETag": etag(digest),
        # Content never changes; who may see it may, so only the client's own cache.
        "Cache-Control": f"private, max-age={_YEAR_S}, immutable",
    }
