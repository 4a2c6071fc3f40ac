"""`entrepot demo`: what somebody sees who tries two sites on one machine for the first time."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.faults.registry import Registry, new_image
from tests.ports import free_ports
from tests.waiting import eventually

pytestmark = pytest.mark.slow

DEADLINE_S: Final = 120.0
OFFSETS: Final = (0, 1, 2, 3, 100, 101, 102, 103)
REPOSITORY: Final = "team/app"
ENTREPOT: Final = str(Path(sys.executable).parent / "entrepot")


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


def _start(folder: Path, base_port: int) -> subprocess.Popen[bytes]:
    command = (ENTREPOT, "demo", "--base-port", str(base_port), "--data", str(folder / "data"))
    with (folder / "output").open("wb") as file:
        return subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "--", *command),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )


@asynccontextmanager
async def _demo(folder: Path, base_port: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    """The demo, until it has said that both sites are ready; it leaves no process behind."""
    process = _start(folder, base_port)

    def both_ready() -> bool:
        said = (folder / "output").read_text()
        assert process.poll() is None, said[-2000:]
        return all(f"Site {site} is ready" in said for site in ("fra", "nyc"))

    try:
        await eventually(both_ready, DEADLINE_S, "both sites are ready")
        yield process
    finally:
        # Its children end with it: their stdin does.
        process.kill()
        await to_thread(process.wait, DEADLINE_S)


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


async def _status(url: str) -> int:
    command = (ENTREPOT, "status", "--url", url)
    done = await to_thread(
        subprocess.run, command, capture_output=True, timeout=DEADLINE_S, check=False
    )
    return done.returncode


async def test_what_is_pushed_at_one_site_is_pulled_at_the_other(tmp_path: Path) -> None:
    """Both sites get ready, replicate, say that they are well, and leave on Ctrl-C."""
    base = free_ports(OFFSETS)
    fra, nyc = (f"http://127.0.0.1:{base + offset}" for offset in (0, 100))
    image = new_image(random.Random(20))
    async with _demo(tmp_path, base) as demo:
        async with Registry.at(fra) as here, Registry.at(nyc) as there:
            await here.push(REPOSITORY, image, "v1")

            async def arrived() -> bool:
                return await there.pull(REPOSITORY, "v1") == image.digest

            await eventually(arrived, DEADLINE_S, "the image at the other site")
        for url in (fra, nyc):

            async def is_well(url: str = url) -> bool:
                return await _status(url) == 0

            await eventually(is_well, DEADLINE_S, f"{url} follows its peer")
        demo.send_signal(signal.SIGINT)
        assert await to_thread(demo.wait, DEADLINE_S) == 0
    assert all(_is_free(base + offset) for offset in OFFSETS)
