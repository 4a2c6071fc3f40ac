"""Whole sites on this machine: gateways and a replicator each, supervised, and what to say of it.

They are started by module name and in processes of their own: nothing here imports them, and
they cannot tell this from any other way of being started.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from node.config import Address, Config, ConfigError, ensure_folders, load
from node.config_checks import listeners
from node.lifecycle import taken
from node.supervisor import Child, Supervisor, sole
from node.workers import health_addresses, health_listeners, team

POLL_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Site:
    """One site to run: where its configuration comes from, and how many gateways it has."""

    file: Path | None
    data: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    workers: int = 1

    def load(self) -> Config:
        """Raises: ConfigError: Something in it is wrong."""
        return load(self.file, self.data, self.environ)

    def own_folders(self, config: Config) -> Mapping[str, Path]:
        """The folders in which no other supervisor may work, by the key that names each.

        With an etcd the site's other nodes share its blobs, so it is the node's own folder; else
        nobody shares anything, by whatever name.
        """
        if config.metadata.etcd is not None:
            return {"--data": self.data}
        file = config.metadata.sqlite.path.resolve()
        return {"metadata.sqlite.path": file.parent, "blobs.files.root": config.blobs.files.root}

    def shared_folders(self, config: Config) -> Mapping[str, Path]:
        """The folders in which other nodes of the site work too, but no site of another kind."""
        etcd = config.metadata.etcd is not None
        return {"blobs.files.root": config.blobs.files.root} if etcd else {}

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes that make up the site."""
        return (*self.gateways, Child("replicator", self._command("replicator")))

    @property
    def gateways(self) -> tuple[Child, ...]:
        """Those of them that answer clients."""
        command = self._command("gateway")
        if self.workers == 1:
            return (Child("gateway", command),)
        return tuple(
            Child(f"gateway {worker}", (*command, "--worker", str(worker)))
            for worker in team(self.workers)
        )

    def _command(self, module: str) -> tuple[str, ...]:
        # -P: a folder `gateway` in the working directory must not be taken for ours.
        command = (sys.executable, "-P", "-m", module, "--data", str(self.data), "--with-parent")
        return (*command, "--config", str(self.file)) if self.file else command


async def serve(sites: Sequence[Site], ready: Callable[[Site, Config], None]) -> int:
    """Run sites until SIGTERM or SIGINT, and return the exit status; a second SIGINT kills.

    `ready` is told of each site once all of its gateways answer.

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
            own, shared = site.own_folders(config), site.shared_folders(config)
            locks = await stack.enter_async_context(sole(own, together=shared))
            supervisors.append(Supervisor(site.children, environ=site.environ, inherited=locks))
        _require_free(
            listeners(config) | health_listeners(config, site.workers)
            for site, config in zip(sites, configs, strict=True)
        )
        _watch_signals(supervisors)
        async with asyncio.TaskGroup() as tasks:
            runs = [tasks.create_task(_run(one, supervisors)) for one in supervisors]
            for site, config, one in zip(sites, configs, supervisors, strict=True):
                health = health_addresses(config, site.workers)
                tasks.create_task(_announce(health, one, partial(ready, site, config)))
        return max(run.result() for run in runs)


async def serve_gateways(site: Site) -> int:
    """Run a site's gateways and nothing else, beside whatever else of it runs; as `serve`.

    Raises:
        ConfigError: The configuration is wrong, a folder can't be written, or addresses are taken.
    """
    config = site.load()
    ensure_folders(config)
    found = listeners(config) | health_listeners(config, site.workers)
    del found["replicator.listen"]
    _require_free([found])
    supervisor = Supervisor(site.gateways, environ=site.environ)
    _watch_signals([supervisor])
    return await supervisor.run()


def _require_free(found: Iterable[Mapping[str, Address]]) -> None:
    """Let no child find out: the first one would take the others down, and of a port that workers
    share none would see that a stranger has it too.
    """
    if problems := [one for listeners in found for one in taken(listeners)]:
        raise ConfigError(*problems)


async def _run(supervisor: Supervisor, all_of_them: Sequence[Supervisor]) -> int:
    """Run one; if it ends, so do the others."""
    status = await supervisor.run()
    for other in all_of_them:
        other.stop()
    return status


async def _announce(
    health: Sequence[Address], supervisor: Supervisor, ready: Callable[[], None]
) -> None:
    waiting = [f"http://{address}/readyz" for address in health]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as client:
        while waiting and not supervisor.stopping.is_set():
            if await _is_ready(client, waiting[0], supervisor.nonce):
                waiting.pop(0)
            else:
                await asyncio.sleep(POLL_S)
    if not waiting:
        ready()


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
