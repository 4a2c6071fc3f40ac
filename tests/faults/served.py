"""A site under its supervisor: the command `entrepot`, and the children that it has."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from tests.faults.registry import Registry
from tests.sites import Site
from tests.waiting import eventually

DEADLINE_S: Final = 120.0


@asynccontextmanager
async def served(
    site: Site, *options: str, command: str = "serve"
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """Run a site under its supervisor, until it answers; no process of it is left at the end."""
    process = _start(site, entrepot(site, command, *options))
    found: set[int] = set()
    try:
        async with Registry.at(site.url) as registry:

            async def answers() -> bool:
                found.update(children(process.pid))
                assert process.poll() is None, (site.folder / "serve.log").read_text()[-2000:]
                return await registry.answers()

            await eventually(answers, DEADLINE_S, "the site answers")
        yield process
        found.update(children(process.pid))
    finally:
        process.kill()
        await to_thread(process.wait, DEADLINE_S)
        for child in found:
            # Its number may be another process's by now, unless it is ours still.
            if is_ours(child, site):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)


def entrepot(site: Site, command: str, *options: str) -> tuple[str, ...]:
    """The command line that does something with a site, whose configuration is written for it."""
    site.write_config()
    program = Path(sys.executable).parent / "entrepot"
    return (str(program), command, "--config", str(site.config), *options)


def _start(site: Site, argv: tuple[str, ...]) -> subprocess.Popen[bytes]:
    with (site.folder / "serve.log").open("ab") as log:
        return subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "--", *argv),
            cwd=site.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def children(pid: int) -> set[int]:
    """The processes that a process has started, and that have not ended."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return {int(child) for child in text.split()}


def arguments(pid: int) -> list[str]:
    """A process's command line; empty if it has gone."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def is_ours(pid: int, site: Site) -> bool:
    """Whether a process is one of this site."""
    return str(site.config) in arguments(pid)


def is_free(port: int) -> bool:
    """Whether nobody listens on a port."""
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
