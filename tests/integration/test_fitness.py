"""A real site that loses what it stands on says so, and goes on when it is back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.registry import Registry
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("row", ["G19-PI5"])
@pytest.mark.parametrize("lost", ["blobs", "blobs/uploads"])
async def test_a_blob_store_that_is_gone_is_503_to_everybody(
    site: Site, tmp_path: Path, lost: str, row: str
) -> None:
    """Nobody is told that a blob is not there because its disk is not; nothing is restarted."""
    async with Registry.at(site.url) as registry:
        digest = await registry.push_blob("app", b"content" * 100_000)

        async def answers(status: int) -> bool:
            ping = (await registry.call("GET", "/v2/")).status
            head = (await registry.call("HEAD", f"/v2/app/blobs/{digest}")).status
            return (ping, head) == (status, status)

        assert await answers(200)
        (site.folder / lost).rename(tmp_path / "away")
        await eventually(lambda: answers(503), 30, "all is refused")
        (tmp_path / "away").rename(site.folder / lost)
        await eventually(lambda: answers(200), 30, "all is answered")


async def test_metadata_that_cannot_be_read_is_503_to_everybody(site: Site) -> None:
    """A damaged file of the KV is weather to a client, and no bug."""
    async with Registry.at(site.url) as registry:
        await registry.push_blob("app", b"content")
        with site.metadata.open("r+b") as file:
            file.write(b"\xff" * 8192)

        async def refused() -> bool:
            return (await registry.call("GET", "/v2/")).status == 503

        await eventually(refused, 30, "the ping is refused")
        lists = await registry.call("GET", "/v2/app/tags/list")
        assert (lists.status, lists.headers["Retry-After"]) == (503, "2")
