"""How a process starts, works in the background and ends.

Promises of `run`:

- **Nothing runs unwatched.** Background work is started by `Lifecycle.spawn` and nowhere else.  If
  it fails, the traceback is logged and the process drains and ends with status 1.
- **Last started, first stopped.** Tasks and `on_stop` steps are undone in the reverse order of
  their start, so that nothing is closed before what stands on it.
- **It ends.** SIGTERM, SIGINT, the end of the supervisor's pipe or `Lifecycle.stop` begin the
  drain; within `limit_s` the process is gone, whatever hangs.  A second SIGINT ends it at once:
  every state that it keeps survives kill -9 anyway.

Exit status: 0 done, 1 something failed, 2 it cannot start as it is configured (`ConfigError`; one
line per problem on stderr).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import uvloop

from node.config import Address, Config, ConfigError, ensure_folders, load, warnings
from node.telemetry import configure_logs

# Kubernetes waits 45 s, the supervisor 30 s.
STOP_LIMIT_S: Final = 28.0
# What is left of the limit for ending the loop itself after the steps were given up.
_LAST_S: Final = 1.5

Step: TypeAlias = Callable[[], Awaitable[None]]

_log = structlog.stdlib.get_logger(__name__)


class Lifecycle:
    """The background work of a process and the order in which it is undone."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self._failed = False
        # In the order of their start; a task leaves when it is done.
        self._steps: dict[object, tuple[str, Step]] = {}

    @property
    def failed(self) -> bool:
        """Whether background work or a step of the drain failed."""
        return self._failed

    def stop(self, reason: str) -> None:
        """Begin the drain; a second call changes nothing."""
        if not self.stopping.is_set():
            _log.info("stopping", reason=reason)
            self.stopping.set()

    def spawn(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run work until it is done, or is cancelled when its turn in the drain comes.

        If it raises, the whole process drains and ends with status 1.
        """
        task = asyncio.create_task(work, name=name)

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._steps[task] = (name, cancel)
        task.add_done_callback(self._ended)
        return task

    def on_stop(self, name: str, step: Step) -> None:
        """Have the drain do this, after everything that is started from now on has ended."""
        self._steps[object()] = (name, step)

    async def drain(self, limit_s: float) -> None:
        """Undo everything, last started first; after `limit_s` what is left is only cancelled."""
        deadline = asyncio.get_running_loop().time() + limit_s
        while self._steps:
            key, (name, step) = self._steps.popitem()
            try:
                async with asyncio.timeout_at(deadline):
                    await step()
            except TimeoutError:
                _log.error("stopping takes too long, leaving", step=name, limit_s=limit_s)
                self._failed = True
            except Exception:  # noqa: BLE001 - one step's failure must not keep others from theirs
                _log.exception("stopping failed", step=name)
                self._failed = True
            if isinstance(key, asyncio.Task):
                key.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._steps.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error:
            _log.error("background work failed", task=task.get_name(), exc_info=error)
            self._failed = True
            self.stop(f"{task.get_name()} failed")


def main(
    program: str,
    service: Callable[[Config, Lifecycle], Awaitable[None]],
    argv: Sequence[str] | None = None,
) -> int:
    """Be the process `python -m <program>`: arguments, configuration, logs, then `run`.

    Takes `--config FILE` (or ENTREPOT_CONFIG), `--data DIR` (or ENTREPOT_DATA; default ./data) and
    `--with-parent`, which ends the process when its stdin ends.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}")
    parser.add_argument("--config", type=Path, default=os.environ.get("ENTREPOT_CONFIG"))
    parser.add_argument("--data", type=Path, default=os.environ.get("ENTREPOT_DATA", "data"))
    parser.add_argument("--with-parent", action="store_true")
    arguments = parser.parse_args(argv)
    configure_logs(program)
    try:
        config = load(arguments.config, arguments.data)
        ensure_folders(config)
    except ConfigError as err:
        return refuse(err)
    for warning in warnings(config):
        _log.warning(warning)
    return run(lambda lifecycle: service(config, lifecycle), with_parent=arguments.with_parent)


def run(
    service: Callable[[Lifecycle], Awaitable[None]],
    *,
    with_parent: bool = False,
    limit_s: float = STOP_LIMIT_S,
) -> int:
    """Run a service on uvloop until it is told to stop, and return the exit status.

    The service starts what it needs (`spawn`, `on_stop`) and returns, or waits for
    `lifecycle.stopping` and ends things itself; the process drains after that either way.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_supervised(service, with_parent=with_parent, limit_s=limit_s))


def refuse(error: ConfigError) -> int:
    """Say on stderr what keeps the process from starting, one line each; the status is 2."""
    for problem in error.problems:
        sys.stderr.write(f"{problem}\n")
    return 2


@contextmanager
def binding(path: str, address: Address) -> Iterator[None]:
    """Turn a failure to listen on an address into the problem of its key.

    Raises:
        ConfigError: The address is in use, or this machine does not have it.
    """
    try:
        yield
    except OSError as err:
        raise ConfigError(_why_not(path, address, err)) from err
    except RuntimeError as err:
        # grpc says no more than that it failed; a socket tells why.
        raise ConfigError(_why_not(path, address, _probe(address))) from err


def _why_not(path: str, address: Address, error: OSError | None) -> str:
    if error is None:
        return f"{path}: {address} can't be listened on"
    if error.errno == errno.EADDRINUSE:
        return f"{path}: {address} is in use"
    return f"{path}: {address} can't be listened on: {os.strerror(error.errno or 0)}"


def _probe(address: Address) -> OSError | None:
    try:
        with socket.create_server((address.host, address.port)):
            return None
    except OSError as err:
        return err


async def _supervised(
    service: Callable[[Lifecycle], Awaitable[None]], *, with_parent: bool, limit_s: float
) -> int:
    lifecycle = Lifecycle()
    _watch_signals(lifecycle)
    if with_parent:
        _watch_stdin(lifecycle)
    refused: ConfigError | None = None
    try:
        await _until_stopping(service, lifecycle)
    except ConfigError as err:
        refused = err
    except Exception:  # noqa: BLE001 - the process must drain whatever went wrong, and say so
        _log.exception("the service failed")
        lifecycle.fail()
    lifecycle.stop("the service has ended")
    _leave_after(limit_s)
    await lifecycle.drain(limit_s - _LAST_S)
    if refused:
        return refuse(refused)
    return 1 if lifecycle.failed else 0


async def _until_stopping(
    service: Callable[[Lifecycle], Awaitable[None]], lifecycle: Lifecycle
) -> None:
    """Let the service start; if it is told to stop while still starting, cut that short."""
    await service(lifecycle)
    await lifecycle.stopping.wait()


def _watch_signals(lifecycle: Lifecycle) -> None:
    loop = asyncio.get_running_loop()

    def interrupted() -> None:
        if lifecycle.stopping.is_set():
            os._exit(130)
        lifecycle.stop("SIGINT")

    loop.add_signal_handler(signal.SIGINT, interrupted)
    loop.add_signal_handler(signal.SIGTERM, lifecycle.stop, "SIGTERM")


def _watch_stdin(lifecycle: Lifecycle) -> None:
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            lifecycle.stop("the supervisor is gone")

    loop.add_reader(descriptor, readable)


def _leave_after(limit_s: float) -> None:
    """A hung disk holds a thread, and a thread holds the interpreter: leave without it."""
    timer = threading.Timer(limit_s, os._exit, (1,))
    timer.daemon = True
    timer.start()
