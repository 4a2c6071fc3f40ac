"""A real gateway process over SQLite and files: what only a process can show."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from node.manifest import OCI_MANIFEST
from tests.clients import images
from tests.clients.conftest import skopeo
from tests.clients.programs import Client
from tests.registry import CONFIG, LAYER, digest_of, image
from tests.sites import Site
from tests.waiting import eventually

__all__ = ["skopeo"]  # a fixture

pytestmark = pytest.mark.slow

UPLOADS: Final = "/v2/team/app/blobs/uploads/"
BLOBS: Final = "/v2/team/app/blobs"
V1: Final = "/v2/team/app/manifests/v1"
IMAGE: Final = image(LAYER)
MIB: Final = 1 << 20


@pytest.fixture
async def client(site: Site) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the site."""
    async with aiohttp.ClientSession(site.url) as client:
        yield client


async def _push(client: aiohttp.ClientSession) -> None:
    for content in (CONFIG, LAYER):
        url = f"{UPLOADS}?digest={digest_of(content)}"
        async with client.post(url, data=content) as answer:
            assert answer.status == 201
    async with client.put(V1, data=IMAGE, headers={"Content-Type": OCI_MANIFEST}) as answer:
        assert answer.status == 201


async def _get(client: aiohttp.ClientSession, path: str) -> bytes:
    async with client.get(path) as answer:
        assert answer.status == 200, path
        return await answer.read()


async def test_what_was_acknowledged_outlives_a_kill(
    site: Site, client: aiohttp.ClientSession
) -> None:
    """An image pushed before a kill -9 is pulled whole from the gateway started after it (P1)."""
    await _push(client)
    site.kill("gateway")
    await site.start()
    async with aiohttp.ClientSession(site.url) as again:
        assert await _get(again, V1) == IMAGE
        for content in (CONFIG, LAYER):
            assert await _get(again, f"{BLOBS}/{digest_of(content)}") == content


async def test_an_upload_goes_on_after_a_kill(site: Site, client: aiohttp.ClientSession) -> None:
    """A session's bytes are still held by the next gateway, which finishes it."""
    async with client.post(UPLOADS) as answer:
        location = answer.headers["Location"]
    async with client.patch(location, data=LAYER[:400]) as answer:
        assert answer.status == 202
    site.kill("gateway")
    await site.start()
    async with aiohttp.ClientSession(site.url) as again:
        async with again.get(location) as answer:
            assert answer.headers["Range"] == "0-399"
        url = f"{location}&digest={digest_of(LAYER)}"
        async with again.put(url, data=LAYER[400:]) as answer:
            assert answer.status == 201
        assert await _get(again, f"{BLOBS}/{digest_of(LAYER)}") == LAYER


async def test_a_request_under_way_is_finished_by_the_drain(
    site: Site, client: aiohttp.ClientSession
) -> None:
    """A push that is in the middle of its body when the gateway is told to end still gets 201."""
    go_on = asyncio.Event()
    content = os.urandom(2 * MIB)

    async def body() -> AsyncIterator[bytes]:
        yield content[:MIB]
        await go_on.wait()
        yield content[MIB:]

    async def push() -> int:
        url = f"{UPLOADS}?digest={digest_of(content)}"
        async with client.post(url, data=body()) as answer:
            return answer.status

    async with asyncio.TaskGroup() as group:
        pushing = group.create_task(push())
        await eventually(lambda: any(site.blobs.glob("uploads/*/*")), 60, "bytes arrive")
        stopping = group.create_task(site.stop("gateway"))
        await eventually(lambda: _refuses(site), 60, "the port is closed")
        assert not stopping.done()
        go_on.set()
    assert pushing.result() == 201
    assert stopping.result() == 0


async def _refuses(site: Site) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    await writer.wait_closed()
    return False


async def test_large_blobs_pass_without_being_held(
    site: Site, client: aiohttp.ClientSession
) -> None:
    """Four blobs of 64 MiB are pushed and pulled at once in less than 150 MiB of memory."""
    contents = [os.urandom(MIB) * 64 for _ in range(4)]

    async def pieces(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), MIB):
            yield content[start : start + MIB]

    async def there_and_back(content: bytes) -> None:
        digest = digest_of(content)
        url = f"{UPLOADS}?digest={digest}"
        async with client.post(url, data=pieces(content)) as answer:
            assert answer.status == 201
        assert await _get(client, f"{BLOBS}/{digest}") == content

    await asyncio.gather(*(there_and_back(content) for content in contents))
    assert _peak_kib(site.pid("gateway")) < 150 << 10


def _peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    [peak] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1])


async def test_health_and_metrics(site: Site, client: aiohttp.ClientSession) -> None:
    """The process tells its keeper that it lives, is ready, and what it has answered."""
    await _push(client)
    health = f"http://127.0.0.1:{site.port + 2}"
    assert await _get(client, f"{health}/livez") == b"ok\n"
    ready = json.loads(await _get(client, f"{health}/readyz"))
    assert ready["checks"] == {"metadata": "ok", "blobs": "ok"}
    metrics = (await _get(client, f"{health}/metrics")).decode()
    assert 'entrepot_http_requests_total{endpoint="put-manifest",status="201"} 1.0' in metrics


async def test_skopeo_copies_in_and_out(site: Site, skopeo: Client, tmp_path: Path) -> None:
    """An image and an index that skopeo pushed come back byte for byte."""
    folder = tmp_path / "images"
    images.empty_layer_image(folder, tag="image")
    images.oci_index(folder, tag="index")
    for tag in ("image", "index"):
        there = f"docker://{site.http}/team/app:{tag}"
        options = ("--insecure-policy", "copy", "--all")
        await skopeo.run(*options, "--dest-tls-verify=false", f"oci:{folder}:{tag}", there)
        await skopeo.run(*options, "--src-tls-verify=false", there, f"oci:{tmp_path}/back:{tag}")
    assert _blobs(tmp_path / "back") == _blobs(folder)


def _blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in layout.glob("blobs/*/*")}
