"""`entrepot serve`: what becomes of a site whose gateway, or whose supervisor, is killed."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import pytest

from tests.faults.registry import Registry, new_image
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow

DEADLINE_S: Final = 60.0
REPOSITORY: Final = "team/app"


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A site that `entrepot serve` is to run."""
    return Site("fra", tmp_path / "fra")


@asynccontextmanager
async def _served(site: Site) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a site under its supervisor, until it answers; no process of it is left at the end."""
    process = _start(site)
    children: set[int] = set()
    try:
        async with Registry.at(site.url) as registry:

            async def answers() -> bool:
                children.update(_children(process.pid))
                assert process.poll() is None, (site.folder / "serve.log").read_text()[-2000:]
                return await registry.answers()

            await eventually(answers, DEADLINE_S, "the site answers")
        yield process
        children.update(_children(process.pid))
    finally:
        process.kill()
        await to_thread(process.wait, DEADLINE_S)
        for child in children:
            # Its number may be another process's by now, unless it is ours still.
            if _is_ours(child, site):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def _start(site: Site) -> subprocess.Popen[bytes]:
    site.write_config()
    command = (Path(sys.executable).parent / "entrepot", "serve", "--config", site.config)
    with (site.folder / "serve.log").open("ab") as log:
        return subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "--", *map(str, command)),
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _children(pid: int) -> set[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(child) for child in text.split()}


def _is_ours(pid: int, site: Site) -> bool:
    try:
        return str(site.config).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _gateway(pid: int) -> int | None:
    """The gateway among a supervisor's children."""
    for child in _children(pid):
        with suppress(FileNotFoundError, ProcessLookupError):
            if b"gateway" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return child
    return None


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


async def test_a_killed_gateway_is_started_again(site: Site) -> None:
    """The supervisor brings it back, with everything that was acknowledged."""
    image = new_image(random.Random(1), (1 << 16,))
    async with _served(site) as supervisor, Registry.at(site.url) as registry:
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
    async with _served(site) as supervisor:
        async with Registry.at(site.url) as registry:
            await registry.push(REPOSITORY, image, "v1")
        children = _children(supervisor.pid)
        assert len(children) == 2
        supervisor.kill()
        await to_thread(supervisor.wait, DEADLINE_S)
        await eventually(
            lambda: not any(_is_ours(child, site) for child in children),
            DEADLINE_S,
            "the children have gone",
        )
        for port in range(site.port, site.port + 4):
            assert _is_free(port)
    async with _served(site), Registry.at(site.url) as registry:
        assert await registry.pull(REPOSITORY, "v1") == image.digest


async def test_a_second_supervisor_stays_out(site: Site) -> None:
    """While one serves a folder, another refuses it with status 2, and the first goes on."""
    async with _served(site), Registry.at(site.url) as registry:
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
