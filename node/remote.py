"""Another registry over HTTP: the bytes of blobs and manifests, from any offset.

An answer is taken only if it says what was asked for: the right status, range and length.  Whether
the bytes are the right ones is for the caller to verify, who hashes them as they pass.  There is no
limit on how long a blob takes, only on how long nothing comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class RemoteBlob:
    """A blob as a registry sends it: its whole size in bytes, and what was asked for of it."""

    size: int
    chunks: AsyncIterator[bytes]


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
        self, repository: Repository, digest: Digest, start: int = 0
    ) -> AsyncIterator[RemoteBlob]:
        """The bytes of a blob from an offset to its end; none where it ends there.

        How long it is, is the registry's to say: what a manifest says of it, its pusher made up.
        The iterator raises `PeerUnavailable` if the connection is cut, or brings nothing for 30 s.

        Raises:
            BlobUnknown: The registry does not have it, or does not show it.
            PeerLied: Its blob of that name is shorter than the offset.
            PeerUnavailable: No answer, or one that makes no sense.
        """
        async with self._get(f"/v2/{repository}/blobs/{digest}", start) as answer:
            match answer.status:
                case 200 if not start and answer.content_length is not None:
                    yield RemoteBlob(answer.content_length, self._chunks(answer))
                case 206 if start:
                    yield RemoteBlob(self._whole_size(answer, start), self._chunks(answer))
                case 404:
                    raise BlobUnknown(str(digest))
                case 416 if answer.headers.get("Content-Range") == f"bytes */{start}":
                    yield RemoteBlob(start, _nothing())
                case 416:
                    raise PeerLied(self._site, str(digest), f"fewer than {start} bytes")
                case status:
                    raise PeerUnavailable(self._site, f"answered {status} from byte {start}")

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """The body of a manifest, verified.

        Raises:
            ManifestUnknown: The registry does not have it.
            PeerLied: It sent something else.
            PeerUnavailable: No answer, or one that makes no sense.
        """
        async with self._get(f"/v2/{repository}/manifests/{digest}", 0) as answer:
            match answer.status:
                case 200 if answer.content_length == size:
                    pass
                case 200:
                    raise PeerLied(self._site, str(digest), f"{answer.content_length} bytes")
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
            raise PeerUnavailable(self._site, _reason(err), reached=False) from err
        try:
            yield answer
        finally:
            if answer.content.at_eof():
                answer.release()
            else:
                answer.close()  # nobody wants the rest

    def _whole_size(self, answer: aiohttp.ClientResponse, start: int) -> int:
        """The size in the answer to a range, which must be the range that was asked for."""
        said = answer.headers.get("Content-Range", "")
        size = said.rpartition("/")[2]
        if (
            not size.isascii()
            or not size.isdigit()
            or said != f"bytes {start}-{int(size) - 1}/{size}"
        ):
            raise PeerUnavailable(self._site, f"sent {said or 'no range'} from byte {start}")
        return int(size)

    async def _chunks(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise PeerUnavailable(self._site, _reason(err)) from err


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    return str(error) or type(error).__name__
