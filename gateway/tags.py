"""Lists over HTTP: tags of a repository, repositories of the site, referrers of a manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from aiohttp import web

from gateway.answers import Answer
from gateway.headers import link, parse_page
from gateway.routes import Target
from gateway.stale import require_some
from node.digest import Digest
from node.manifest import OCI_INDEX
from node.metadata import Metadata, ReferrerEntry

# R6: containerd and crane read the first page only, and clients cap one at 4 MiB.
PAGE_BYTES: Final = 3 << 20

# TL8: where the client names no number.
_CATALOG_PAGE: Final = 100

# Referrers in one read: each may bring long annotations.
_BATCH: Final = 100

_JSON: Final = {"Content-Type": "application/json"}


class Lists:
    """The handlers; `page` is the most names on one page, `page_bytes` the most of referrers."""

    def __init__(self, metadata: Metadata, page: int, *, page_bytes: int = PAGE_BYTES) -> None:
        self._metadata = metadata
        self._page = page
        self._page_bytes = page_bytes

    async def tags(self, _request: web.BaseRequest, target: Target) -> Answer:
        """end-8: the tags in byte order."""
        repository, n = target.repository, parse_page(target.parameter("n"), self._page)
        names, more = await self._metadata.tags(repository, target.parameter("last"), n)
        on = _next(f"/v2/{repository}/tags/list", names, n, more=more)
        return _json({"name": repository, "tags": names}, on)

    async def repositories(self, _request: web.BaseRequest, target: Target) -> Answer:
        """The catalog: repositories that hold a manifest, in byte order."""
        n = parse_page(target.parameter("n"), self._page, _CATALOG_PAGE)
        names, more = await self._metadata.repositories(target.parameter("last"), n)
        return _json({"repositories": names}, _next("/v2/_catalog", names, n, more=more))

    async def referrers(self, _request: web.BaseRequest, target: Target) -> Answer:
        """end-12: an index of the manifests with this subject; never 404 (R2).

        An empty one says that nothing signs the subject, so it is never a stale one.
        """
        repository, subject = target.repository, target.digest
        wanted = {media_type for media_type in target.media_types("artifactType") if media_type}
        headers = {"Content-Type": OCI_INDEX}
        if wanted:
            headers["OCI-Filters-Applied"] = "artifactType"
        shown, last = await self._referrers(target, wanted)
        require_some(shown)
        if last is not None:
            filters = [("artifactType", media_type) for media_type in sorted(wanted)]
            path = f"/v2/{repository}/referrers/{subject}"
            headers |= link(path, [*filters, ("last", str(last))])
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": shown}
        return Answer(200, headers, json.dumps(index).encode())

    async def _referrers(
        self, target: Target, wanted: AbstractSet[str]
    ) -> tuple[list[dict[str, object]], Digest | None]:
        """The descriptors that fit on the page, one at the least; where it ends if more follow."""
        repository, subject = target.repository, target.digest
        shown: list[dict[str, object]] = []
        after, more, room = target.digest_parameter("last"), True, self._page_bytes
        while more:
            entries, more = await self._metadata.referrers(repository, subject, after, _BATCH)
            for entry in entries:
                if not wanted or _comparable(entry) in wanted:
                    descriptor = _descriptor(entry)
                    room -= len(json.dumps(descriptor)) + 2
                    if room < 0 and shown:
                        return shown, after
                    shown.append(descriptor)
                after = entry.digest
        return shown, None


def _next(path: str, names: Sequence[str], n: int, *, more: bool) -> dict[str, str]:
    # n=0 asks for nothing, and a link to it would lead nowhere (TL3).
    return link(path, {"last": names[-1], "n": n}) if more and names else {}


def _json(content: object, headers: Mapping[str, str]) -> Answer:
    return Answer(200, {**_JSON, **headers}, json.dumps(content).encode())


def _comparable(entry: ReferrerEntry) -> str:
    # A query's blanks are read as pluses, so a type that has one is too (G20).
    return (entry.referrer.artifact_type or "").replace(" ", "+")


def _descriptor(entry: ReferrerEntry) -> dict[str, object]:
    said = entry.referrer
    descriptor: dict[str, object] = {
        "mediaType": said.media_type,
        "digest": str(entry.digest),
        "size": said.size,
    }
    if said.artifact_type is not None:
        descriptor["artifactType"] = said.artifact_type
    if said.annotations:
        descriptor["annotations"] = dict(said.annotations)
    return descriptor
