"""Sites for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.sites import Site, ended


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A site `fra` of one gateway process, ready; it has to end well."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",))
    with ended(site):
        await site.start()
        yield site
        await site.stop_all()
