"""Uploads over HTTP: POST /v2/<name>/blobs/uploads/, then PATCH, PUT, GET and DELETE the session.

A session's URL holds its id and no state, so an old one stays valid (PROTOCOL U23); what the client
believes is in its `Content-Range`, and where that is wrong the answer says where to go on.
"""

from __future__ import annotations

from aiohttp import web

from gateway.answers import Answer
from gateway.headers import (
    blob_path,
    parse_content_range,
    upload_headers,
    upload_path,
)
from gateway.incoming import Incoming
from gateway.registry import Registry
from gateway.routes import Target
from node.digest import Algorithm, Digest
from node.errors import (
    DigestInvalid,
    DigestUnsupported,
    NameInvalid,
    SizeMismatch,
    UploadOutOfOrder,
)
from node.reference import Repository, parse_repository
from node.upload import Upload

_EMPTY = frozenset({Digest.of(b"", algorithm) for algorithm in Algorithm})


class Uploads:
    """The handlers; `public_url` is what the registry is called outside, or nothing."""

    def __init__(self, registry: Registry, public_url: str) -> None:
        self._registry = registry
        self._public_url = public_url

    async def start(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-4 and end-11: a session (202), or at once a blob (201) by its bytes or by a mount."""
        repository = target.repository
        digest = target.digest_parameter("digest")
        mounted = await self._mount(repository, target)
        if mounted is not None:
            return self._created(repository, mounted)
        # U5: a digest without bytes announces an upload, unless it is nothing's.
        if digest is None or not (request.can_read_body or digest in _EMPTY):
            return self._accepted(202, await self._registry.start_upload(repository))
        await self._registry.put_blob(repository, digest, Incoming(request))
        return self._created(repository, digest)

    async def _mount(self, repository: Repository, target: Target) -> Digest | None:
        """The blob that was mounted; None wherever it can't be: the client then uploads (U7)."""
        source = target.parameter("from")
        if source is None:
            return None
        try:
            digest = target.digest_parameter("mount")
            if digest and await self._registry.mount_blob(
                repository, parse_repository(source), digest
            ):
                return digest
        except (DigestInvalid, DigestUnsupported, NameInvalid):
            pass
        return None

    async def append(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-5: 202; the bytes are kept, also those of a request that is cut."""
        upload = await self._registry.find_writable(target.repository, target.last)
        body = Incoming(request, _promised(request, upload))
        return self._accepted(202, await self._registry.append(upload, body))

    async def finish(self, request: web.BaseRequest, target: Target) -> Answer:
        """end-6: 201 once the blob is durable."""
        upload = await self._registry.find_writable(target.repository, target.last)
        digest = target.digest_parameter("digest")
        if digest is None:
            raise DigestInvalid("")
        promised = _promised(request, upload)
        body = Incoming(request, promised) if request.can_read_body or promised else None
        await self._registry.finish(upload, digest, body)
        return self._created(upload.repository, digest)

    async def get(self, _request: web.BaseRequest, target: Target) -> Answer:
        """end-13: 204, and where to go on."""
        upload = await self._registry.find_upload(target.repository, target.last)
        return self._accepted(204, upload)

    async def cancel(self, _request: web.BaseRequest, target: Target) -> Answer:
        """end-14: 204, and nothing is left of it."""
        upload = await self._registry.find_writable(target.repository, target.last)
        await self._registry.cancel(upload)
        return Answer(204, {})

    def _accepted(self, status: int, upload: Upload) -> Answer:
        location = self._public_url + upload_path(upload.repository, upload.session_id)
        return Answer(status, upload_headers(location, upload.session_id, upload.offset))

    def _created(self, repository: Repository, digest: Digest) -> Answer:
        return Answer(
            201,
            {
                "Location": self._public_url + blob_path(repository, digest),
                "Docker-Content-Digest": str(digest),
            },
        )


def _promised(request: web.BaseRequest, upload: Upload) -> int | None:
    """The length of the chunk by its Content-Range; None if it has none.

    Raises:
        UploadOutOfOrder: It does not begin where the session ends, or can't be read.
        SizeMismatch: It is not the length that the request has.
    """
    text = request.headers.get("Content-Range")
    if text is None:
        return None
    chunk = parse_content_range(text)
    if chunk is None or chunk[0] != upload.offset:
        raise UploadOutOfOrder(upload.session_id, upload.offset)
    promised = chunk[1] - chunk[0] + 1
    length = request.content_length
    if length is not None and length != promised:
        raise SizeMismatch(promised, length)
    return promised
