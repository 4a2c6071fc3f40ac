"""Keep the processes of a site running, and take them down together.

Promises:

- A child that ends is started again after 0.1 s, later up to 5 s, while the others go on.
- Status 2 of a child (it cannot start as it is configured) ends all with status 2.
- `stop` asks the children to drain and gives them 30 s; `kill` gives them nothing.
- If the supervisor itself is killed, the end of the pipe that is its children's stdin makes them
  drain and leave, so that nothing holds the ports.
- One supervisor at a time in each folder of its own, and none while children of the one before are
  still there.

Children are started by exec, never by fork (grpc does not survive it), each in a session of its
own: Ctrl-C reaches the supervisor only, and it decides.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from node.config import SUPERVISOR, ConfigError

FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 5.0
# A child that lived this long was well: the next pause is the first one again.
SETTLED_S: Final = 10.0
# A process leaves within 28 s by itself (node/lifecycle.py).
DRAIN_S: Final = 30.0
CANNOT_START: Final = 2

_log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Child:
    """A program to keep running: its name in the logs and its arguments, the program first."""

    name: str
    argv: tuple[str, ...]


class Supervisor:
    """Runs its children until it is told to stop.

    `inherited` are descriptors that the children keep open, `environ` is their environment.  They
    find `nonce` in it too: no other supervisor's children have it.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        environ: Mapping[str, str] = os.environ,
        inherited: Sequence[int] = (),
        drain_s: float = DRAIN_S,
    ) -> None:
        self.stopping = asyncio.Event()
        self.nonce = secrets.token_hex(16)
        self._children = children
        # grpc tells of every connection that a peer closes, on stderr and past our logs.
        self._environ = {"GRPC_VERBOSITY": "ERROR", **environ, SUPERVISOR: self.nonce}
        self._inherited = inherited
        self._drain_s = drain_s
        self._killing = asyncio.Event()
        self._running: dict[asyncio.subprocess.Process, Child] = {}
        self._status = 0

    async def run(self) -> int:
        """Keep the children running until all have ended after `stop`; the exit status.

        0: all drained; 1: one failed to, or was killed; 2: one cannot start as it is configured.
        """
        lifeline, held = os.pipe()
        try:
            async with asyncio.TaskGroup() as tasks:
                hurry = tasks.create_task(self._hurry())
                async with asyncio.TaskGroup() as keepers:
                    for child in self._children:
                        keepers.create_task(self._keep(child, lifeline))
                hurry.cancel()
        finally:
            os.close(lifeline)
            os.close(held)
        return self._status

    def stop(self) -> None:
        """Ask every child to drain; those that have not left after `drain_s` are killed."""
        if not self.stopping.is_set():
            self.stopping.set()
            for process in self._running:
                _signal(process, signal.SIGTERM)

    def kill(self) -> None:
        """Kill every child, and whatever it has started itself, now."""
        self.stopping.set()
        self._killing.set()
        for process in self._running:
            self._kill(process)

    async def _keep(self, child: Child, lifeline: int) -> None:
        clock = asyncio.get_running_loop().time
        pause_s = FIRST_PAUSE_S
        while not self.stopping.is_set():
            started_at = clock()
            status = await self._once(child, lifeline)
            if status == CANNOT_START:
                self._status = CANNOT_START
                self.stop()
            if self.stopping.is_set():
                # A child that was still starting has no handler for SIGTERM, and nothing to drain.
                if status not in {0, -signal.SIGTERM}:
                    self._status = self._status or 1
                return
            if clock() - started_at >= SETTLED_S:
                pause_s = FIRST_PAUSE_S
            _log.error("a process has ended", child=child.name, status=status, restart_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self.stopping.wait()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _once(self, child: Child, lifeline: int) -> int:
        process = await asyncio.create_subprocess_exec(
            *child.argv,
            stdin=lifeline,
            env=self._environ,
            pass_fds=self._inherited,
            start_new_session=True,
        )
        self._running[process] = child
        _log.info("a process was started", child=child.name, pid=process.pid)
        # It may have been told to stop while this child was on its way.
        if self._killing.is_set():
            self._kill(process)
        elif self.stopping.is_set():
            _signal(process, signal.SIGTERM)
        try:
            return await process.wait()
        finally:
            del self._running[process]

    async def _hurry(self) -> None:
        await self.stopping.wait()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._killing.wait()
        except TimeoutError:
            self.kill()

    def _kill(self, process: asyncio.subprocess.Process) -> None:
        _log.warning("a process is killed", child=self._running[process].name, pid=process.pid)
        _signal(process, signal.SIGKILL, group=True)


def _signal(
    process: asyncio.subprocess.Process, number: signal.Signals, *, group: bool = False
) -> None:
    # A process that has ended in this moment is what was wanted.
    with suppress(ProcessLookupError):
        if group:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)


@asynccontextmanager
async def sole(
    folders: Mapping[str, Path],
    wait_s: float = DRAIN_S,
    *,
    together: Mapping[str, Path] | None = None,
) -> AsyncIterator[tuple[int, ...]]:
    """Be the only supervisor in some folders; gives descriptors that the children have to inherit.

    `folders` go by the key that names each, and are made if they are not there.  A supervisor that
    was killed leaves children that are still draining: they hold the descriptors, and are waited
    for, at most `wait_s`.  In those for use `together` others may be who say so as well.

    Raises:
        ConfigError: Another supervisor, or children of one, work in a folder, or it has no locks.
    """
    # Two names of one folder: the second lock would be refused for the first.
    once: dict[Path, str] = {}
    for key, folder in folders.items():
        once.setdefault(folder.resolve(), key)
    with ExitStack() as locks:
        for key, folder in (together or {}).items():
            if (ours := _lock(key, folder / "serve.lock", fcntl.LOCK_SH)) is None:
                raise ConfigError(f"{key}: another `entrepot serve` works alone in {folder}")
            locks.callback(os.close, ours)
        for folder, key in once.items():
            if (own := _lock(key, folder / "serve.lock")) is None:
                raise ConfigError(f"{key}: another `entrepot serve` works in {folder}")
            locks.callback(os.close, own)
        shared = []
        for folder, key in once.items():
            if (lock := await _lock_within(key, folder / "processes.lock", wait_s)) is None:
                problem = f"processes of an earlier `entrepot serve` are still there in {folder}"
                raise ConfigError(f"{key}: {problem}")
            locks.callback(os.close, lock)
            shared.append(lock)
        yield tuple(shared)


async def _lock_within(key: str, path: Path, wait_s: float) -> int | None:
    clock = asyncio.get_running_loop().time
    deadline = clock() + wait_s
    # Another process lets go of it: there is no event here to wait for.
    while (lock := _lock(key, path)) is None and clock() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(FIRST_PAUSE_S)
    return lock


def _lock(key: str, path: Path, kind: int = fcntl.LOCK_EX) -> int | None:
    """Hold a file, until its descriptor and all that inherited it are closed; None: it is held."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as err:
        raise ConfigError(f"{key}: {path} can't be opened: {err.strerror}") from err
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as err:
        os.close(descriptor)
        raise ConfigError(f"{key}: {path} can't be locked: {err.strerror}") from err
    return descriptor
