"""Another registry over HTTP: the bytes of blobs and manifests, from any offset.

An answer is taken only if it says what was asked for: the right status, range and length.  Whether
the bytes are the right ones is for the caller to verify, who hashes them as they pass.  There is no
limit on how long a blob takes, only on how long nothing comes; what is less has a time to be there.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
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
# What the other machine's kernel acknowledges nothing of for so long has no way there any more: a
# slow peer still has one.
_DEAD_S: Final = 10
_PROBE_S: Final = 5
# The head of an answer, which could else come byte by byte for ever; a manifest by its size.
HEAD_S: Final = 60.0
_LEAST_BYTES_PER_S: Final = 1024
# Less than a gateway keeps a connection that nobody uses: a push after a pause needs no new one.
_KEPT_S: Final = 60.0
_CHUNK_BYTES: Final = 256 << 10
_SIZE: Final = re.compile(r"[0-9]{1,19}")


def new_session(idle_s: float = IDLE_S) -> aiohttp.ClientSession:
    """The connections to all other registries; the caller closes it.

    One that brings nothing for `idle_s` is given up, and after ten seconds already where no packet
    gets through: a peer that vanished sends no word of it.
    """
    return aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=idle_s),
        # How many blobs are in flight is decided elsewhere, where it is fair.
        connector=aiohttp.TCPConnector(
            limit=0, keepalive_timeout=_KEPT_S, socket_factory=_probing_socket
        ),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
        read_bufsize=_CHUNK_BYTES,
    )


def _probing_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_S)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _DEAD_S)
    return made


@dataclass(frozen=True, slots=True)
class RemoteBlob:
    """A blob as a registry sends it: its whole size in bytes, and what was asked for of it."""

    size: int
    chunks: AsyncIterator[bytes]


class Remote:
    """One other registry: `site` is what errors call it, `url` its scheme, host and port.

    `tls` says whom to trust under https; without it, the authorities of this machine.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        site: str,
        url: str,
        headers: Mapping[str, str],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._site = site
        self._session = session
        self._url = url
        self._headers = headers
        self._tls = tls or True  # aiohttp's word for its default

    @property
    def site(self) -> str:
        """What errors call it."""
        return self._site

    @asynccontextmanager
    async def blob(
        self, repository: Repository, digest: Digest, start: int = 0, most: int | None = None
    ) -> AsyncIterator[RemoteBlob]:
        """The bytes of a blob from an offset, to its end or so many; none where it ends there.

        How long it is, is the registry's to say: what a manifest says of it, its pusher made up.
        The iterator raises `PeerUnavailable` if the connection is cut, or brings nothing for 30 s.

        Raises:
            BlobUnknown: The registry does not have it, or does not show it.
            PeerLied: Its blob of that name is shorter than the offset.
            PeerUnavailable: No answer, or one that makes no sense.
        """
        asked = _range(start, most)
        async with self._get(f"/v2/{repository}/blobs/{digest}", asked) as answer:
            match answer.status:
                case 200 if not asked and answer.content_length is not None:
                    yield RemoteBlob(answer.content_length, self._chunks(answer))
                case 206 if asked:
                    yield RemoteBlob(self._whole_size(answer, start, most), self._chunks(answer))
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
        async with self._get(f"/v2/{repository}/manifests/{digest}", {}) as answer:
            match answer.status:
                case 200 if answer.content_length == size:
                    pass
                case 200:
                    raise PeerLied(self._site, str(digest), f"{answer.content_length} bytes")
                case 404:
                    raise ManifestUnknown(str(digest))
                case status:
                    raise PeerUnavailable(self._site, f"answered {status} for a manifest")
            body = await self._body(answer, HEAD_S + size / _LEAST_BYTES_PER_S)
        found = Digest.of(body, digest.algorithm)
        if found != digest:
            raise PeerLied(self._site, str(digest), str(found))
        return body

    async def _body(self, answer: aiohttp.ClientResponse, limit_s: float) -> bytes:
        try:
            async with asyncio.timeout(limit_s):
                return b"".join([chunk async for chunk in self._chunks(answer)])
        except TimeoutError as err:
            raise PeerUnavailable(self._site, "no answer in time") from err

    @asynccontextmanager
    async def _get(
        self, path: str, asked: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**self._headers, **asked, "Accept": ", ".join(sorted(MEDIA_TYPES))}
        try:
            async with asyncio.timeout(HEAD_S):
                answer = await self._session.get(
                    self._url + path, headers=headers, allow_redirects=False, ssl=self._tls
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

    def _whole_size(self, answer: aiohttp.ClientResponse, start: int, most: int | None) -> int:
        """The size in the answer to a range, which must be the range that was asked for."""
        said = answer.headers.get("Content-Range", "")
        digits = said.rpartition("/")[2]
        size = int(digits) if _SIZE.fullmatch(digits) else 0
        end = size if most is None else min(size, start + most)
        if size <= start or said != f"bytes {start}-{end - 1}/{digits}":
            raise PeerUnavailable(self._site, f"sent {said or 'no range'} from byte {start}")
        return size

    async def _chunks(self, answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as err:
            raise PeerUnavailable(self._site, _reason(err)) from err


def _range(start: int, most: int | None) -> dict[str, str]:
    if most is not None:
        return {"Range": f"bytes={start}-{start + most - 1}"}
    return {"Range": f"bytes={start}-"} if start else {}


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""


def _reason(error: BaseException) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.strerror:
        return f"no connection: {error.os_error.strerror}"  # its own words show Python's objects
    return str(error) or type(error).__name__
