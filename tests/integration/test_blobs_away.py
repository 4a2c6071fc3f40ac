"""The blobs' folder is away: nothing is said to be stored, or not to be there, until it is back."""

from __future__ import annotations

import random
from typing import Final

import pytest

from tests.faults.registry import Refused, Registry, new_image
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"
ANSWERS_S: Final = 120.0


async def test_the_folder_of_the_blobs_is_moved_away(site: Site) -> None:
    """503 while it is away, also from a start meanwhile; what was pushed is there when it is."""
    image = new_image(random.Random(1))
    away = site.blobs.with_name("away")
    async with Registry.at(site.url) as registry:
        await registry.push(REPOSITORY, image, "v1")
        site.blobs.rename(away)

        async def unfit() -> bool:
            answer = await registry.call("GET", "/v2/")
            return bool(answer.status == 503)

        await eventually(unfit, ANSWERS_S, "everything is refused")
        with pytest.raises(Refused):
            await registry.push(REPOSITORY, new_image(random.Random(2)), "v2")
        assert not site.blobs.exists()
        assert site.running("gateway")
        away.rename(site.blobs)

        async def fit() -> bool:
            return not await unfit()

        await eventually(fit, ANSWERS_S, "everything is answered again")
        assert await registry.pull(REPOSITORY, "v1") == image.digest


async def test_a_start_without_the_blobs(site: Site) -> None:
    """A site that starts while its disk is not mounted ends, and makes no store of its own."""
    image = new_image(random.Random(1))
    async with Registry.at(site.url) as registry:
        await registry.push(REPOSITORY, image, "v1")
    assert await site.stop("gateway") == 0
    away = site.blobs.with_name("away")
    site.blobs.rename(away)
    site.spawn("gateway")

    async def ended() -> bool:
        return not site.running("gateway")

    await eventually(ended, ANSWERS_S, "it ends")
    assert "these are not the site's blobs" in site.log("gateway").read_text()
    for path in sorted(site.blobs.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    site.blobs.rmdir()
    away.rename(site.blobs)
    await site.start()
    async with Registry.at(site.url) as registry:
        assert await registry.pull(REPOSITORY, "v1") == image.digest
