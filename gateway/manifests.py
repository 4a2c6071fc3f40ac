"""Manifests over HTTP: GET, HEAD, PUT and DELETE /v2/<name>/manifests/<reference>."""

from __future__ import annotations

from aiohttp import web

from gateway.answers import Answer
from gateway.headers import etag, manifest_path, parse_condition
from gateway.incoming import SmallBodies
from gateway.registry import Registry
from gateway.routes import Target
from node.digest import Digest
from node.errors import ManifestUnknown, TagInvalid, TooManyTags
from node.metadata import Resolved
from node.reference import Reference, Tag, parse_reference, parse_tag
from node.tag_transactions import MAX_TAGS


class Manifests:
    """The handlers; `public_url` is what the registry is called outside, or nothing."""

    def __init__(self, registry: Registry, public_url: str) -> None:
        self._registry = registry
        self._public_url = public_url
        self._bodies = SmallBodies(registry.manifest_bytes)

    async def get(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-3: the stored bytes, whatever Accept says (MG8)."""
        reference = _known(target)
        resolved, body = await self._registry.get_manifest(target.repository, reference)
        headers = _headers(resolved)
        if (condition := parse_condition(request.headers, reference)) is not None:
            condition.require_wanted(resolved.digest)
            if not condition.allows(resolved.digest):
                return Answer(304, headers)
        # aiohttp leaves the body out of the answer to HEAD and keeps its length.
        return Answer(200, headers, body)

    async def put(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-7: 201 once it is durable; 412 if it has a condition that fails (MP17)."""
        repository, reference = target.repository, parse_reference(target.last)
        by_digest = isinstance(reference, Digest)
        # MP7: all tags are checked before anything is stored; next to a tag they mean nothing.
        tags = _tags(target) if by_digest else []
        body = await self._bodies.read(request)
        stored = await self._registry.put_manifest(
            repository,
            reference,
            body,
            content_type=request.headers.get("Content-Type"),
            extra_tags=tags,
            condition=parse_condition(request.headers, reference),
        )
        headers = {
            "Location": self._public_url + manifest_path(repository, stored.digest),
            "Docker-Content-Digest": str(stored.digest),
        }
        if stored.subject is not None:
            headers["OCI-Subject"] = str(stored.subject)
        if tags:
            headers["OCI-Tag"] = ", ".join(tags)
        return Answer(201, headers)

    async def delete(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-9: 202, and gone at once; 412 if it has a condition that fails."""
        reference = _known(target)
        await self._registry.delete_manifest(
            target.repository, reference, condition=parse_condition(request.headers, reference)
        )
        return Answer(202, {})


def _tags(target: Target) -> list[Tag]:
    """The tags that a push by digest names, each once.

    Raises:
        TagInvalid: One of them is none.
        TooManyTags: They are more than are taken at once.
    """
    tags = list(dict.fromkeys(parse_tag(tag) for tag in target.parameters("tag")))
    if len(tags) > MAX_TAGS:
        raise TooManyTags(MAX_TAGS)
    return tags


def _known(target: Target) -> Reference:
    """A reference to what may be there: what is no tag can't be (MG6)."""
    try:
        return parse_reference(target.last)
    except TagInvalid as err:
        raise ManifestUnknown(target.last) from err


def _headers(resolved: Resolved) -> dict[str, str]:
    headers = {
        "Content-Type": resolved.media_type,
        "Docker-Content-Digest": str(resolved.digest),
        "ETag": etag(resolved.digest),
    }
    if resolved.siblings > 1:
        headers["Entrepot-Conflict"] = str(resolved.siblings)
    return headers
