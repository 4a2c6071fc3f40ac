"""Whole sites on this machine: a gateway and a replicator each, supervised, and what to say of it.

The two are started by module name and in processes of their own: nothing here imports them, and
they cannot tell this from any other way of being started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from node.config import Config, ConfigError, ensure_folders, load
from node.config_checks import listeners
from node.lifecycle import taken
from node.supervisor import Child, Supervisor, sole

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """One site to run: where its configuration comes from, and what it says."""

    file: Path | None
    data: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def load(self) -> Config:
        """Raises: ConfigError: Something in it is wrong."""
        return load(self.file, self.data, self.environ)

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes that make up the site."""
        # -P: a folder `gateway` in the working directory must not be taken for ours.
        start = (sys.executable, "-P", "-m")
        rest = ["--data", str(self.data), "--with-parent"]
        if self.file:
            rest += ["--config", str(self.file)]
        return tuple(Child(name, (*start, name, *rest)) for name in ("gateway", "replicator"))


async def serve(sites: Sequence[Site], ready: Callable[[Site, Config], None]) -> int:
    """Run sites until SIGTERM or SIGINT, and return the exit status; a second SIGINT kills.

    `ready` is told of each site once its gateway answers.

    Raises:
        ConfigError: A site's configuration is wrong, its folder is in use or can't be written, or
            its addresses are taken.
    """
    async with AsyncExitStack() as stack:
        supervisors = []
        configs = [site.load() for site in sites]
        for config in configs:
            ensure_folders(config)
        for site, config in zip(sites, configs, strict=True):
            lock = await stack.enter_async_context(sole(config.metadata.sqlite.path.parent))
            supervisors.append(Supervisor(site.children, environ=site.environ, inherited=(lock,)))
        # The children find out as well, but the first one takes the others down with it.
        if problems := [one for config in configs for one in taken(listeners(config))]:
            raise ConfigError(*problems)
        _watch_signals(supervisors)
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(_run(one, supervisors)) for one in supervisors]
            for site, config, one in zip(sites, configs, supervisors, strict=True):
                tasks.create_task(_announce(config, one, partial(ready, site, config)))
        return max(run.result() for run in runs)


async def _run(supervisor: Supervisor, all_of_them: Sequence[Supervisor]) -> int:
    """Run one; if it ends, so do the others."""
    status = await supervisor.run()
    for other in all_of_them:
        other.stop()
    return status


async def _announce(config: Config, supervisor: Supervisor, ready: Callable[[], None]) -> None:
    url = f"http://{config.metrics.listen}/readyz"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as client:
        while not supervisor.stopping.is_set():
            if await _is_ready(client, url, supervisor.nonce):
                ready()
                return
            await asyncio.sleep(POLL_S)


async def _is_ready(client: aiohttp.ClientSession, url: str, nonce: str) -> bool:
    """Whether a child of the supervisor with this nonce is ready there; a stranger is not."""
    try:
        async with client.get(url) as answer:
            said = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return False
    return answer.status == 200 and isinstance(said, dict) and said.get("supervisor") == nonce


def _watch_signals(supervisors: Sequence[Supervisor]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        for supervisor in supervisors:
            supervisor.stop()

    def interrupt() -> None:
        for supervisor in supervisors:
            if supervisor.stopping.is_set():
                supervisor.kill()
            else:
                supervisor.stop()

    loop.add_signal_handler(signal.SIGTERM, stop)
    loop.add_signal_handler(signal.SIGINT, interrupt)
