"""Bytes of another registry over HTTP: what is taken of its answers, and what is not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from node import remote as remotes
from node.digest import Digest
from node.errors import BlobUnknown, ManifestUnknown, PeerLied, PeerUnavailable
from node.reference import Repository
from node.remote import Remote, new_session
from tests.ports import free_port

CONTENT = b"0123456789" * 1000
DIGEST = Digest.of(CONTENT)
SIZE = len(CONTENT)
REPOSITORY = Repository("team/app")

Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def _peer(answer: Answer) -> AsyncIterator[Remote]:
    runner = web.ServerRunner(web.Server(answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    headers = {"Authorization": "Bearer secret", "Entrepot-Site": "nyc"}
    async with new_session() as session:
        yield Remote(session, "fra", f"http://127.0.0.1:{port}", headers)
    await runner.cleanup()


async def _read(remote: Remote, start: int = 0, most: int | None = None) -> bytes:
    async with remote.blob(REPOSITORY, DIGEST, start, most) as blob:
        assert blob.size == SIZE
        return b"".join([chunk async for chunk in blob.chunks])


def _fixed(status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
    async def answer(_: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers=headers)

    return answer


async def _honest(request: web.BaseRequest) -> web.StreamResponse:
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Entrepot-Site"] == "nyc"
    assert request.path == f"/v2/team/app/blobs/{DIGEST}"
    wanted = request.headers.get("Range")
    if wanted is None:
        return web.Response(body=CONTENT)
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    start, end = int(first), min(SIZE, int(last or SIZE) + 1)
    headers = {"Content-Range": f"bytes {start}-{end - 1}/{SIZE}"}
    return web.Response(status=206, body=CONTENT[start:end], headers=headers)


async def test_a_blob_comes_whole_or_from_an_offset() -> None:
    """The bytes asked for and no others, with the headers that show who asks."""
    async with _peer(_honest) as remote:
        assert await _read(remote) == CONTENT
        assert await _read(remote, 9_000) == CONTENT[9_000:]
        assert await _read(remote, 0, 100) == CONTENT[:100]
        assert await _read(remote, 9_000, 100) == CONTENT[9_000:9_100]
        assert await _read(remote, 9_000, SIZE) == CONTENT[9_000:]


async def test_what_is_not_there_is_unknown() -> None:
    """404 is an answer, not weather."""
    async with _peer(_fixed(404)) as remote:
        with pytest.raises(BlobUnknown):
            await _read(remote)
        with pytest.raises(ManifestUnknown):
            await remote.manifest(REPOSITORY, DIGEST, SIZE)


@pytest.mark.parametrize("status", [301, 307, 401, 403, 429, 500, 502, 503])
async def test_other_answers_are_weather(status: int) -> None:
    """An error, a refusal or a redirect is not followed and not taken for content."""
    elsewhere = {"Location": "http://127.0.0.1:1/"}
    async with _peer(_fixed(status, b"oops", elsewhere)) as remote:
        with pytest.raises(PeerUnavailable) as caught:
            await _read(remote)
    assert caught.value.site == "fra"


@pytest.mark.parametrize(
    "said",
    [
        "",
        f"bytes 0-{SIZE - 1}/{SIZE}",
        f"bytes 11-{SIZE - 1}/{SIZE}",
        f"bytes 10-{SIZE - 2}/{SIZE}",
        f"bytes 10-{SIZE - 1}/{SIZE + 1}",
        f"bytes 10-{SIZE - 1}/*",
        "bytes 10-9/10",
        "bytes 10-4/5",
        f"bytes 10-9/{'9' * 5000}",
    ],
)
async def test_another_range_than_asked_for_is_not_taken(said: str) -> None:
    """Bytes from elsewhere would spoil what was fetched before."""
    headers = {"Content-Range": said} if said else None
    async with _peer(_fixed(206, CONTENT[10:], headers)) as remote:
        with pytest.raises(PeerUnavailable):
            await _read(remote, 10)


@pytest.mark.parametrize("last", [SIZE - 1, 108, 110])
async def test_more_or_less_than_asked_for_is_not_taken(last: int) -> None:
    """Of a part that was asked for, the end is as sure as the beginning."""
    headers = {"Content-Range": f"bytes 10-{last}/{SIZE}"}
    async with _peer(_fixed(206, CONTENT[10 : last + 1], headers)) as remote:
        with pytest.raises(PeerUnavailable):
            await _read(remote, 10, 100)


async def test_a_whole_answer_to_a_range_is_not_taken() -> None:
    """A server that knows no ranges can't be resumed from."""
    async with _peer(_fixed(200, CONTENT)) as remote:
        with pytest.raises(PeerUnavailable):
            await _read(remote, 10)


async def test_a_range_beyond_the_end_is_a_lie() -> None:
    """416 says that the blob is shorter than what we have of it."""
    shorter = {"Content-Range": "bytes */9"}
    async with _peer(_fixed(416, headers=shorter)) as remote:
        with pytest.raises(PeerLied):
            await _read(remote, 10)


async def test_nothing_is_left_at_the_end() -> None:
    """Resuming at the very end is no error: there is nothing more."""
    end = {"Content-Range": f"bytes */{SIZE}"}
    async with _peer(_fixed(416, headers=end)) as remote:
        assert await _read(remote, SIZE) == b""


async def test_a_length_that_is_not_said_is_not_taken() -> None:
    """Without a length, a cut could not be told from the end."""

    async def chunked(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(CONTENT)
        return response

    async with _peer(chunked) as remote:
        with pytest.raises(PeerUnavailable):
            await _read(remote)


async def test_a_cut_body_brings_what_came_first() -> None:
    """The iterator hands on what arrived and then says that the connection is gone."""

    async def cut(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
        await response.prepare(request)
        await response.write(CONTENT[:4000])
        assert request.transport is not None
        request.transport.close()
        return response

    received = bytearray()

    async def read(remote: Remote) -> None:
        async with remote.blob(REPOSITORY, DIGEST) as blob:
            async for chunk in blob.chunks:
                received.extend(chunk)

    async with _peer(cut) as remote:
        with pytest.raises(PeerUnavailable):
            await read(remote)
    assert bytes(received) == CONTENT[:4000]


async def test_nobody_there_is_weather() -> None:
    """A refused connection is a peer that can't be reached, in words that people are shown."""
    async with new_session() as session:
        remote = Remote(session, "fra", f"http://127.0.0.1:{free_port()}", {})
        with pytest.raises(PeerUnavailable) as caught:
            await _read(remote)
    assert caught.value.reason.startswith("no connection: Connect call failed")


async def test_a_manifest_is_verified() -> None:
    """Its bytes are the digest's, or nothing."""
    async with _peer(_fixed(200, CONTENT)) as remote:
        assert await remote.manifest(REPOSITORY, DIGEST, SIZE) == CONTENT
    for body in (bytes(SIZE), CONTENT[:-1]):
        async with _peer(_fixed(200, body)) as remote:
            with pytest.raises(PeerLied):
                await remote.manifest(REPOSITORY, DIGEST, SIZE)


async def test_a_head_that_never_ends_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that drips its head, line by line, keeps nobody for ever."""
    monkeypatch.setattr(remotes, "HEAD_S", 0.3)

    left = asyncio.Event()

    async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.transport.is_closing():
            writer.write(b"X: y\r\n")
            await asyncio.sleep(0.05)
        left.set()

    server = await asyncio.start_server(drip, "127.0.0.1", port := free_port())
    async with server, new_session() as session:
        with pytest.raises(PeerUnavailable) as caught:
            await _read(Remote(session, "fra", f"http://127.0.0.1:{port}", {}))
        async with asyncio.timeout(10):
            await left.wait()
    assert not caught.value.reached


async def test_a_manifest_has_a_time_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that comes byte by byte is no answer, however often a byte comes."""
    monkeypatch.setattr(remotes, "HEAD_S", 0.5)
    monkeypatch.setattr(remotes, "_LEAST_BYTES_PER_S", SIZE * 1000)

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(SIZE)})
        await response.prepare(request)
        for at in range(SIZE):
            if request.transport is None:
                break
            await response.write(CONTENT[at : at + 1])
            await asyncio.sleep(0.05)
        return response

    async with _peer(drip) as remote:
        with pytest.raises(PeerUnavailable):
            await remote.manifest(REPOSITORY, DIGEST, SIZE)
