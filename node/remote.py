"""Another registry over HTTP: the bytes of blobs and manifests, from any offset.

An answer is taken only if it says what was asked for: the right status, range and length.  Whether
the bytes are the right ones is for the caller to verify, who hashes them as they pass.  There is no
limit on how long a blob takes, only on how long nothing comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp

from node.digest import Digest
from node.errors import BlobUnknown, ManifestUnknown, PeerLied, PeerUnavailable
from node.manifest import MEDIA_TYPES
from node.reference import Repository

CONNECT_S: Final = 5.0
IDLE_S: Final = 30.0
_CHUNK_BYTES: Final = 256 << 10


def new_session() -> aiohttp.ClientSession:
    """The connections to all other registries; the caller closes it."""
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=IDLE_S),
        # How many blobs are in flight is decided elsewhere, where it is fair.
        connector=aiohttp.TCPConnector(limit=0),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        read_bufsize=_CHUNK_BYTES,
    )


class Remote:
    """One other registry: `site` is what errors call it, `url` its scheme, host and port."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        site: str,
        url: str,
        headers: Mapping[str, str],
    ) -> None:
        self._site = site
        self._session = session
        self._url = url
        self._headers = headers

    @property
    def site(self) -> str:
        """What errors call it."""
        return self._site

    @asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, size: int, start: int = 0
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a blob from an offset to its end.

        The iterator raises `PeerUnavailable` if the connection is cut, or brings nothing for 30 s.

        Raises:
            BlobUnknown: The registry does not have it, or does not show it.
            PeerLied: It has a blob of another length by that name.
            PeerUnavailable: No answer, or one that makes no sense.
        """
        async with self._get(f"/v2/{repository}/blobs/{digest}", start) as answer:
            match answer.status:
                case 200 | 206:
                    self._check_length(answer, digest, size, start)
                case 404:
                    raise BlobUnknown(str(digest))
                case 416:
                    raise PeerLied(self._site, str(digest), f"fewer than {size} bytes")
                case status:
                    raise PeerUnavailable(self._site, f"answered {status} for a blob")
            yield self._chunks(answer)

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """The body of a manifest, verified.

        Raises:
            ManifestUnknown: The registry does not have it.
            PeerLied: It sent something else.
            PeerUnavailable: No answer, or one that makes no sense.
        """
        async with self._get(f"/v2/{repository}/manifests/{digest}", 0) as answer:
            match answer.status:
                case 200:
                    self._check_length(answer, digest, size, 0)
                case 404:
                    raise ManifestUnknown(str(digest))
                case status:
                    raise PeerUnavailable(self._site, f"answered {status} for a manifest")
            body = bytearray()
            async for chunk in self._chunks(answer):
                body += chunk
        found = Digest.of(body, digest.algorithm)
        if found != digest:
            raise PeerLied(self._site, str(digest), str(found))
        return bytes(body)

    @asynccontextmanager
    async def _get(self, path: str, start: int) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**self._headers, "Accept": ", ".join(sorted(MEDIA_TYPES))}
        if start:
            headers["Range"] = f"bytes={start}-"
        try:
            answer = await self._session.get(
                self._url + path, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise PeerUnavailable(self._site, _reason(err)) from err
        try:
            yield answer
        finally:
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()  # nobody wants the rest

    def _check_length(
        self, answer: aiohttp.ClientResponse, digest: Digest, size: int, start: int
    ) -> None:
        if start and answer.status == 206:
            said = answer.headers.get("Content-Range", "")
            if said != f"bytes {start}-{size - 1}/{size}":
                raise PeerUnavailable(self._site, f"sent {said or 'no range'} from byte {start}")
        elif start or answer.status == 206:
            raise PeerUnavailable(self._site, f"answered {answer.status} from byte {start}")
        elif answer.content_length != size:
            raise PeerLied(self._site, str(digest), f"{answer.content_length} bytes")

    async def _chunks(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise PeerUnavailable(self._site, _reason(err)) from err


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
