"""Metadata that is put back from a backup, or lost: noticed, and brought up to date by the peer."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Final

import pytest

from node.life import FILE
from tests.faults.registry import Image, Registry, new_image
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"
ARRIVES_S: Final = 120.0


async def _shown_at(site: Site, shown: dict[str, Image | None]) -> None:
    """Wait until a site shows these tags, whole."""
    async with Registry.at(site.url) as registry:
        for tag, image in shown.items():

            async def same(tag: str = tag, image: Image | None = image) -> bool:
                found = await registry.pull(REPOSITORY, tag)
                return found == (None if image is None else image.digest)

            await eventually(same, ARRIVES_S, f"{tag} at {site.name}")


async def _push(site: Site, chance: random.Random, *tags: str) -> dict[str, Image | None]:
    pushed: dict[str, Image | None] = {tag: new_image(chance) for tag in tags}
    async with Registry.at(site.url) as registry:
        for tag, image in pushed.items():
            assert image is not None
            await registry.push(REPOSITORY, image, tag)
    return pushed


def _incarnation(site: Site) -> str:
    return str(json.loads((site.blobs / FILE).read_text())["incarnation"])


@pytest.mark.parametrize("sites", ["sqlite"], indirect=True)  # etcd: tests/faults/test_returns.py
@pytest.mark.parametrize("backup", [True, False], ids=["restored", "lost"])
async def test_metadata_that_went_back(
    sites: tuple[Site, Site], tmp_path: Path, backup: bool
) -> None:
    """What had reached the peer comes back, what was deleted stays so, and pushes win (P5, P6)."""
    fra, nyc = sites
    chance = random.Random(17)
    shown = await _push(fra, chance, "kept", "moved", "deleted")
    await _shown_at(nyc, shown)
    await fra.stop_all()
    before = _incarnation(fra)
    kept = tmp_path / "backup.db"
    shutil.copyfile(fra.metadata, kept)

    await fra.start()
    shown |= await _push(fra, chance, "moved", "new")
    async with Registry.at(nyc.url) as registry:
        await registry.delete(REPOSITORY, "deleted")
    shown["deleted"] = None
    for site in sites:
        await _shown_at(site, shown)
    await fra.stop_all()
    assert _incarnation(fra) == before
    for file in fra.folder.glob("metadata.db*"):
        file.unlink()
    if backup:
        shutil.copyfile(kept, fra.metadata)

    await fra.start()
    assert _incarnation(fra) != before
    await _shown_at(fra, shown)
    shown |= await _push(fra, chance, "kept", "after")
    for site in sites:
        await _shown_at(site, shown)
