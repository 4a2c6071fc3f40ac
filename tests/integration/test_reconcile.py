"""Two real sites compare themselves: what was lost comes back, and sameness is said with proof."""

from __future__ import annotations

import asyncio
import random
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from node import keys
from node.digest import Digest
from node.reference import Repository
from tests.faults.registry import Registry, new_image
from tests.faults.stopped import check, remove
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

DEADLINE_S: Final = 120.0
APP: Final = "team/app"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Site, Site]]:
    """Two sites that follow each other; sound when they are stopped."""
    fra, nyc = Site("fra", tmp_path / "fra"), Site("nyc", tmp_path / "nyc")
    nyc.follow(fra)
    fra.follow(nyc)
    with ended(fra, nyc):
        await asyncio.gather(fra.start(), nyc.start())
        yield fra, nyc
        await asyncio.gather(fra.stop_all(), nyc.stop_all())
        for site in (fra, nyc):
            site.show_logs()
            check(site)


async def _in_sync(fra: Site, nyc: Site) -> None:
    """Wait until each says that it is in sync with the other."""

    async def said() -> bool:
        for site, peer in ((fra, "nyc"), (nyc, "fra")):
            status = await site.peer(peer)
            assert status["in_sync"], f"{site.name}: {status}"
        return True

    await eventually(said, DEADLINE_S, "both say that they are in sync")


async def _entrepot(*arguments: str) -> tuple[int, str]:
    """Run the command: status and output."""
    command = (sys.executable, "-P", "-c", "from node.cli import main; main()", *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_a_key_that_was_lost_at_a_site_comes_back(pair: tuple[Site, Site]) -> None:
    """The cursor is past it and nobody pushes it again: the states are compared, and it is here."""
    fra, nyc = pair
    chance = random.Random(1)
    images = [new_image(chance) for _ in range(3)]
    async with Registry.at(fra.url) as at_fra, Registry.at(nyc.url) as at_nyc:
        for number, image in enumerate(images):
            await at_fra.push(APP, image, f"v{number}")
        await _in_sync(fra, nyc)
        assert await at_nyc.pull(APP, "v2") == images[2].digest
        # What is pushed here is not there yet: nobody says otherwise from the first moment on.
        await at_nyc.push(APP, images[0], "here")
        assert not (await nyc.peer("fra"))["in_sync"]
        await _in_sync(fra, nyc)
        assert await at_fra.pull(APP, "here") == images[0].digest

        await nyc.stop_all()
        assert remove(nyc, keys.tags(Repository(APP))) == 4
        assert remove(nyc, keys.manifests(Repository(APP))) == 3
        await nyc.start()

        async def back() -> bool:
            return await at_nyc.pull(APP, "v1") == images[1].digest

        await eventually(back, DEADLINE_S, "what was lost is back")
        await _in_sync(fra, nyc)
        for reference, image in (("v0", images[0]), ("v2", images[2]), ("here", images[0])):
            assert await at_nyc.pull(APP, reference) == image.digest
    status = (await nyc.peer("fra"))["compared"]
    assert (status["result"], status["live"], status["differing"]) == ("same", 7, 0)
    code, output = await _entrepot("reconcile", "--url", nyc.url, "--full")
    assert (code, output) == (0, "fra: in sync\n")


async def test_a_file_that_was_lost_is_no_sameness(pair: tuple[Site, Site]) -> None:
    """Nobody is told that all is there where a pull fails; a push at the site brings it back."""
    fra, nyc = pair
    image = new_image(random.Random(1))
    async with Registry.at(fra.url) as at_fra, Registry.at(nyc.url) as at_nyc:
        await at_fra.push(APP, image, "v1")
        await _in_sync(fra, nyc)
        layer = Digest.parse(image.blobs[-1].digest)
        (file,) = nyc.blobs.glob(f"{layer.algorithm}/*/{layer.hex}.*")
        file.unlink()

        async def said() -> bool:
            # It would wait for a minute that the file comes back.
            told = await _entrepot("reconcile", "--url", nyc.url, "--full", "--timeout", "15")
            assert told == (1, "fra: can't say: blobs are lost here: 1\n"), told
            return True

        await eventually(said, DEADLINE_S, "the loss is said")
        assert not (await nyc.peer("fra"))["in_sync"]
        await at_nyc.push(APP, image, "v1")
        await _in_sync(fra, nyc)
        assert await at_nyc.pull(APP, "v1") == image.digest
