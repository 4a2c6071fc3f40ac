"""Two real sites, one of which keeps what the other deletes, until it is told not to."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Final

import pytest

from tests.faults.registry import Image, Registry, index_of, new_image
from tests.faults.stopped import check
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

DEADLINE_S: Final = 120.0
APP: Final = "team/app"


async def _shows(at: Registry, tag: str, image: Image | None) -> None:
    """Wait until a tag shows an image, and pull it whole; or until it shows nothing."""

    async def shown() -> bool:
        found = await at.shows(APP, tag)
        if image is not None and found == image.digest:
            return await at.pull(APP, tag) == image.digest
        return image is None and found is None

    await eventually(shown, DEADLINE_S, f"{tag} at {at.url}")


async def test_an_archive_keeps_what_its_peer_deletes(tmp_path: Path) -> None:
    """Images, indexes and tags stay, nobody gets them back, and a new push replaces them.

    When its peer's deletes are taken after all, the archive hears of all of them; that its own
    clients may not delete has nothing to do with it.
    """
    chance = random.Random(5)
    images = {tag: new_image(chance) for tag in ("by-digest", "by-tag", "again")}
    images["index"] = index_of(new_image(chance), new_image(chance))
    fra = Site("fra", tmp_path / "fra")
    nyc = Site("nyc", tmp_path / "nyc", settings={"deletes": False})
    nyc.follow(fra, deletes=False)
    fra.follow(nyc)
    with ended(fra, nyc):
        await asyncio.gather(fra.start(), nyc.start())
        async with Registry.at(fra.url) as at_fra, Registry.at(nyc.url) as at_nyc:
            for tag, image in images.items():
                await at_fra.push(APP, image, tag)
            for tag, image in images.items():
                await _shows(at_nyc, tag, image)
            for reference in (images["by-digest"].digest, "by-tag", images["index"].digest):
                await at_fra.delete(APP, reference)
            await at_fra.delete(APP, images["again"].digest)
            after, again = new_image(chance), new_image(chance)
            await at_fra.push(APP, again, "again")
            await at_fra.push(APP, after, "after")
            for at in (at_fra, at_nyc):
                await _shows(at, "after", after)
                await _shows(at, "again", again)
            await at_nyc.push(APP, after, "from-nyc")
            await _shows(at_fra, "from-nyc", after)
            deleted = {tag: image for tag, image in images.items() if tag != "again"}
            for tag, image in deleted.items():
                await _shows(at_nyc, tag, image)
                await _shows(at_fra, tag, None)
                refused = await at_nyc.call("DELETE", f"/v2/{APP}/manifests/{tag}")
                assert refused.status == 405

            async def has_all() -> bool:
                status = await nyc.peer("fra")
                assert (status["compared"] or {}).get("result") == "holds", status
                return True

            await eventually(has_all, DEADLINE_S, "the archive says that it has all of it")
        await nyc.stop_all()
        nyc.unfollow()
        nyc.follow(fra)
        await nyc.start()
        async with Registry.at(nyc.url) as at_nyc:
            for tag in deleted:
                await _shows(at_nyc, tag, None)
            await _shows(at_nyc, "after", after)
            await _shows(at_nyc, "again", again)
            image = images["by-tag"]
            assert await at_nyc.pull(APP, image.digest) == image.digest
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        for site in (fra, nyc):
            check(site)
