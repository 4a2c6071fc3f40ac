"""How a process starts, works in the background and ends.

Promises of `run`:

- **Nothing runs unwatched.** Background work is started by `Lifecycle.spawn` and nowhere else.  If
  it fails, the traceback is logged and the process drains and ends with status 1; where that is
  no failure (`StartAgain`), the reason is logged and the rest is the same.
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
import resource
import signal
import socket
import stat
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeAlias

import structlog
import uvloop

from node.config import Address, Config, ConfigError, ensure_folders, load, warnings
from node.telemetry import configure_logs

# Kubernetes waits 45 s, the supervisor 30 s.
STOP_LIMIT_S: Final = 28.0
# Kept back of the limit, to end the loop itself in order after steps were given up.
_LAST_S: Final = 1.5

Step: TypeAlias = Callable[[], Awaitable[None]]

_log = structlog.stdlib.get_logger(__name__)


class StartAgain(Exception):
    """The process has to end and to be started anew, for a reason that is no failure of it."""


class Lifecycle:
    """The background work of a process and the order in which it is undone."""

    def __init__(self, limit_s: float = STOP_LIMIT_S) -> None:
        self.stopping = asyncio.Event()
        self.failed = False
        self._limit_s = limit_s
        self._deadline: float | None = None
        # In the order of their start; a task leaves when it is done.
        self._steps: dict[object, tuple[str, Step]] = {}

    def stop(self, reason: str) -> None:
        """Begin the drain; a second call changes nothing."""
        if not self.stopping.is_set():
            _log.info("stopping", reason=reason)
            self._deadline = asyncio.get_running_loop().time() + self._limit_s
            self.stopping.set()

    def fail(self, what: str, error: BaseException) -> None:
        """Log an error that nobody handles and begin the drain; the exit status will be 1."""
        self.failed = True
        if isinstance(error, StartAgain):
            _log.warning("this process has to start again", reason=str(error))
            self.stop(str(error))
        else:
            _log.error(f"{what} failed", exc_info=error)
            self.stop(f"{what} failed")

    def spawn(self, name: str, work: Coroutine[object, object, None]) -> None:
        """Run work until it is done, or is cancelled when its turn in the drain comes.

        If it raises, the whole process drains and ends with status 1.
        """
        task = asyncio.create_task(work, name=name)

        async def cancel() -> None:
            task.cancel()
            await asyncio.wait([task])

        self._steps[task] = (name, cancel)
        task.add_done_callback(self._ended)

    def on_stop(self, name: str, step: Step) -> None:
        """Have the drain do this, after everything that is started from now on has ended."""
        self._steps[object()] = (name, step)

    async def drain(self) -> None:
        """Undo everything, last started first.

        When `limit_s` after `stop` is over, each step left is still begun (so every task is
        cancelled) and waited for no longer.
        """
        self.stop("nothing is left to do")
        while self._steps:
            _, (name, step) = self._steps.popitem()
            try:
                async with asyncio.timeout_at(self._deadline):
                    await step()
            except Exception:  # noqa: BLE001 - one step's failure must not keep others from theirs
                _log.exception("stopping failed or took too long", step=name)
                self.failed = True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._steps.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if error:
            self.fail(task.get_name(), error)


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
    _allow_descriptors()
    try:
        config = load(arguments.config, arguments.data)
        ensure_folders(config)
    except ConfigError as err:
        return refuse(err)
    for warning in warnings(config):
        _log.warning(warning)
    return run(lambda lifecycle: service(config, lifecycle), with_parent=arguments.with_parent)


def _allow_descriptors() -> None:
    """Take as many descriptors as may be had: the usual soft limit is made for `select`."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError):  # macOS says "infinity" and means less
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def run(
    service: Callable[[Lifecycle], Awaitable[None]],
    *,
    with_parent: bool = False,
    limit_s: float = STOP_LIMIT_S,
) -> int:
    """Run a service on uvloop until it is told to stop, and return the exit status.

    The service starts what it needs (`spawn`, `on_stop`) and returns, or waits for
    `lifecycle.stopping` and ends things itself; the process drains after that either way.  It owns
    the process: `limit_s` after the drain began the interpreter is left without ceremony.
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


def taken(listeners: Mapping[str, Address]) -> list[str]:
    """The problems of those addresses that somebody listens on by now."""
    problems = []
    for path, address in listeners.items():
        error = _probe(address)
        if error and error.errno == errno.EADDRINUSE:
            problems.append(_why_not(path, address, error))
    return problems


def _why_not(path: str, address: Address, error: OSError | None) -> str:
    if error is None:
        return f"{path}: {address} can't be listened on"
    if error.errno == errno.EADDRINUSE:
        return f"{path}: {address} is in use"
    return f"{path}: {address} can't be listened on: {os.strerror(error.errno or 0)}"


def _probe(address: Address) -> OSError | None:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        with socket.create_server((address.host, address.port), family=family):
            return None
    except OSError as err:
        return err


async def _supervised(
    service: Callable[[Lifecycle], Awaitable[None]], *, with_parent: bool, limit_s: float
) -> int:
    lifecycle = Lifecycle(limit_s - _LAST_S)
    _watch_signals(lifecycle)
    watchdog = asyncio.create_task(_leave_after(lifecycle.stopping, limit_s))
    refused: ConfigError | None = None
    try:
        if with_parent:
            _watch_stdin(lifecycle)
        await service(lifecycle)
        await lifecycle.stopping.wait()
    except ConfigError as err:
        refused = err
    except Exception as err:  # noqa: BLE001 - whatever went wrong, what was started must be undone
        lifecycle.fail("the service", err)
    await lifecycle.drain()
    await watchdog
    if refused:
        return refuse(refused)
    return 1 if lifecycle.failed else 0


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
    mode = os.fstat(descriptor).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise ConfigError("--with-parent: stdin is no pipe")

    def readable() -> None:
        if not os.read(descriptor, 4096):
            loop.remove_reader(descriptor)
            lifecycle.stop("the supervisor is gone")

    loop.add_reader(descriptor, readable)


async def _leave_after(stopping: asyncio.Event, limit_s: float) -> None:
    """A hung disk holds a thread, and a thread holds the interpreter: leave without it."""
    await stopping.wait()
    timer = threading.Timer(limit_s, os._exit, (1,))
    timer.daemon = True
    timer.start()
