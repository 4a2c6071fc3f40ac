"""The replicator of a real site removes what nobody finished."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import pytest

from node.config import load
from node.reference import Repository
from node.site import now_ms, opened
from tests.blob_calls import once
from tests.faults.registry import Registry
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

DAY_MS: Final = 24 * 3600 * 1000


async def _abandoned(site: Site) -> str:
    """Begin an upload eight days ago."""
    config = load(site.config, site.folder, {})
    async with opened(config, clock_ms=lambda: now_ms() - 8 * DAY_MS) as inside:
        reading = asyncio.create_task(inside.reads.run())
        upload = await inside.uploads.start(Repository("app"))
        await inside.uploads.append(upload, once(b"some"))
        reading.cancel()
    return upload.session_id


@pytest.mark.parametrize("row", ["U13"])
async def test_an_old_upload_goes_and_a_new_one_stays(tmp_path: Path, row: str) -> None:
    """Expired sessions and files of nobody go; a session of today can be finished."""
    site = Site("fra", tmp_path / "fra", settings={"collect": {"interval": 1}})
    uploads = site.blobs / "uploads"
    with ended(site):
        await site.start()
        await site.stop_all()
        old, nobody = await _abandoned(site), uploads / "nobody-s"
        nobody.mkdir()
        (nobody / "0-0123456789abcdef").write_bytes(b"some")
        await site.start()
        async with Registry.at(site.url) as registry:
            begun = await registry.call("POST", "/v2/app/blobs/uploads/")
            location = begun.headers["Location"]
            (await registry.call("PATCH", location, data=b"{}")).require(202, "append")
            young = begun.headers["Docker-Upload-UUID"]
            await eventually(
                lambda: {path.name for path in uploads.iterdir()} == {young}, 30, "only one is left"
            )
            assert old != young
            digest = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
            done = await registry.call("PUT", f"{location}&digest={digest}")
            done.require(201, "finish")
        await site.stop_all()
