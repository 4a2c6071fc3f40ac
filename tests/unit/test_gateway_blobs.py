"""Deletes of blobs, row by row of PROTOCOL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

import pytest

from tests.registry import LAYER, REPOSITORY, Served, digest_of, served

BLOB: Final = digest_of(LAYER)
PLACE: Final = f"/v2/{REPOSITORY}/blobs/{BLOB}"


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """An empty registry."""
    async with served() as registry:
        yield registry


@pytest.mark.parametrize("row", ["B14-B15"])
async def test_delete_blob(registry: Served, row: str) -> None:
    """A deleted blob is gone at once from its repository, and from no other."""
    await registry.push_blob(LAYER)
    await registry.push_blob(LAYER, "other")
    assert (await registry.ask("DELETE", PLACE)).status == 202
    assert (await registry.ask("HEAD", PLACE)).status == 404
    assert (await registry.ask("DELETE", PLACE)).status == 404
    assert (await registry.ask("HEAD", f"/v2/other/blobs/{BLOB}")).status == 200


@pytest.mark.parametrize("row", ["B15"])
async def test_delete_a_blob_in_use(registry: Served, row: str) -> None:
    """A blob that a live manifest needs stays, and the answer says why."""
    await registry.push_image()
    reply = await registry.ask("DELETE", PLACE)
    assert (reply.status, reply.code) == (405, "UNSUPPORTED")
    assert "in use" in reply.json()["errors"][0]["message"]
    assert reply.headers["Allow"] == "GET, HEAD"
