"""Links that break while bytes are under way: by a cut, or without a word."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from node.digest import Digest
from node.errors import PeerUnavailable
from node.globs import Filter
from node.manifest import Descriptor
from node.records import Cursor
from node.remote import Remote, new_session
from node.wire.feed_channel import DIALLER_OPTIONS
from node.wire.feed_codec import Batch
from replicator import feed_client
from replicator.bandwidth import Throttle
from replicator.sources import Source, Sources
from tests.blob_peers import transfer_of
from tests.fake_kv import MemoryKV
from tests.faults.line import Line
from tests.faults.wanlink import WanLink, linked
from tests.feeds import Batches, dialled, peer_at, served, site_of, told
from tests.model import REPOSITORY, Model
from tests.ports import free_port
from tests.waiting import eventually

pytestmark = pytest.mark.slow

MIB: Final = 1 << 20
CONTENT: Final = random.Random(1).randbytes(24 * MIB)
BLOB: Final = Descriptor("application/octet-stream", Digest.of(CONTENT), len(CONTENT))
CUTS: Final = 3
RESENT: Final = 8 * MIB
IDLE_S: Final = 1.0
DEADLINE_S: Final = 120.0


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
    said = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    response = web.StreamResponse(status=206 if start else 200, headers={"Content-Range": said})
    response.content_length = len(CONTENT) - start
    await response.prepare(request)
    for at in range(start, len(CONTENT), MIB // 4):
        await response.write(CONTENT[at : at + MIB // 4])
    return response


@asynccontextmanager
async def _peer() -> AsyncIterator[tuple[WanLink, Sources]]:
    """A peer that has the blob, at the far end of a link of 8 MiB a second."""
    runner = web.ServerRunner(web.Server(_answer, access_log=None), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    line = Line(bytes_per_s=8 * MIB)
    async with linked(f"127.0.0.1:{port}", free_port(), line) as link, new_session(IDLE_S) as http:
        received = Counter("received", "Bytes.", registry=CollectorRegistry())
        remote = Remote(http, "fra", f"http://{link.address}", {})
        yield link, Sources(Source(remote, Filter(), Throttle(None), received))
    await runner.cleanup()


async def _passed(link: WanLink, size: int) -> None:
    await eventually(lambda: link.passed_bytes >= size, DEADLINE_S, f"{size} bytes are through")


@pytest.mark.parametrize("kind", ["cut", "black hole"])
async def test_a_broken_link_costs_little_of_a_large_blob(kind: str) -> None:
    """Three times in the middle: no more than 8 MiB are sent again for each."""
    model = Model(MemoryKV())
    async with _peer() as (link, sources), asyncio.TaskGroup() as group:
        fetch = group.create_task(transfer_of(model, sources).ensure(REPOSITORY, [BLOB]))
        for n in range(1, CUTS + 1):
            await _passed(link, n * 6 * MIB)
            if kind == "cut":
                await link.cut()
            else:
                link.blackhole()
            await link.heal()
        await asyncio.wait_for(fetch, DEADLINE_S)
        assert link.passed_bytes <= len(CONTENT) + CUTS * RESENT
    blob = await model.content.stat(REPOSITORY, BLOB.digest)
    opened = await model.content.open(BLOB.digest, blob.record)
    assert Digest.of(await opened.read(0, len(CONTENT))) == BLOB.digest


async def _all(batches: Batches) -> list[Batch]:
    return [batch async for batch in batches]


async def test_a_connection_that_breaks_later_is_waited_for() -> None:
    """Also where it is ready when the waiting begins, as one is whose end is not known yet."""
    model, port = Model(MemoryKV()), free_port()
    async with (
        served(site_of(model), [peer_at(free_port(), "nyc")], port),
        linked(f"127.0.0.1:{port}", link_port := free_port()) as link,
        dialled(peer_at(link_port, "fra")) as client,
        asyncio.timeout(DEADLINE_S),
    ):
        await client.hello(0)
        waiting = asyncio.create_task(client.reconnected())
        await link.cut()
        await link.heal()
        await waiting


async def test_a_feed_that_went_silent_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pings find out that nobody answers any more; the next stream goes on from the cursor."""
    # No sooner than the listener lets anybody ping.
    soon = {"grpc.keepalive_time_ms": 6_000}
    options = {**dict(DIALLER_OPTIONS), **soon}
    monkeypatch.setattr(feed_client, "DIALLER_OPTIONS", tuple(options.items()))
    model, port = Model(MemoryKV()), free_port()
    await model.image("v1")
    async with (
        served(site_of(model), [peer_at(free_port(), "nyc")], port),
        linked(f"127.0.0.1:{port}", link_port := free_port()) as link,
        dialled(peer_at(link_port, "fra")) as client,
    ):
        async with told(client, Cursor("1", 0)) as (_, batches):
            after = (await anext(batches)).revision
            link.blackhole()
            with pytest.raises(PeerUnavailable) as caught:
                await asyncio.wait_for(_all(batches), DEADLINE_S)
        assert not caught.value.reached
        await link.heal()
        await model.image("v2", layer=b"other")
        async with asyncio.timeout(DEADLINE_S):
            await client.reconnected()
            async with told(client, Cursor("1", after)) as (_, batches):
                assert (await anext(batches)).revision > after
