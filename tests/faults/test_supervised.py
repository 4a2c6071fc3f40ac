"""`entrepot serve`: what becomes of a site whose gateway, or whose supervisor, is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.faults.registry import Registry, new_image
from tests.faults.served import DEADLINE_S, arguments, children, is_free, is_ours, served
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that `entrepot serve` is to run."""
    return Site("fra", tmp_path / "fra")


def _gateway(pid: int) -> int | None:
    """The gateway among a supervisor's children."""
    return next((child for child in children(pid) if "gateway" in arguments(child)), None)


async def test_a_killed_gateway_is_started_again(site: Site) -> None:
    """The supervisor brings it back, with everything that was acknowledged."""
    image = new_image(random.Random(1), (1 << 16,))
    async with served(site) as supervisor, Registry.at(site.url) as registry:
        await registry.push(REPOSITORY, image, "v1")
        first = _gateway(supervisor.pid)
        assert first is not None
        os.kill(first, signal.SIGKILL)

        async def another() -> bool:
            second = _gateway(supervisor.pid)
            return second not in (None, first) and await registry.answers()

        await eventually(another, DEADLINE_S, "another gateway answers")
        assert await registry.pull(REPOSITORY, "v1") == image.digest
        supervisor.terminate()
        assert await to_thread(supervisor.wait, DEADLINE_S) == 0


async def test_a_killed_supervisor_frees_the_ports(site: Site) -> None:
    """Its children drain and leave by themselves, and the site can be served again at once."""
    image = new_image(random.Random(2), (1 << 16,))
    async with served(site) as supervisor:
        async with Registry.at(site.url) as registry:
            await registry.push(REPOSITORY, image, "v1")
        both = children(supervisor.pid)
        assert len(both) == 2
        supervisor.kill()
        await to_thread(supervisor.wait, DEADLINE_S)
        await eventually(
            lambda: not any(is_ours(child, site) for child in both),
            DEADLINE_S,
            "the children have gone",
        )
        ports = range(site.port, site.port + 4)
        await eventually(lambda: all(map(is_free, ports)), DEADLINE_S, "the ports are free")
    async with served(site), Registry.at(site.url) as registry:
        assert await registry.pull(REPOSITORY, "v1") == image.digest


async def test_a_second_supervisor_stays_out(site: Site) -> None:
    """While one serves a folder, another refuses it with status 2, and the first goes on."""
    async with served(site), Registry.at(site.url) as registry:
        second = Site("fra", site.folder)
        file = site.folder / "second.yaml"
        second.write_config()
        file.write_text(second.config.read_text())
        command = (Path(sys.executable).parent / "entrepot", "serve", "--config", file)
        done = await to_thread(
            subprocess.run, command, capture_output=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 2, done.stderr
        assert await registry.answers()
