"""Keep a registry busy with a number of clients for a while, and count what it gets done.

Small reads are wrk's: it asks more in a second than any of the servers can answer.  All else is
threads on blocking sockets, which wait and copy without the interpreter's lock.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, TypeAlias

from tests.bench.connection import Connection, UnexpectedAnswerError

Load: TypeAlias = Callable[[int, int], float]
"""Clients and seconds in, operations a second out."""

Step: TypeAlias = Callable[[Connection], None]
"""One operation, on the connection of one client."""

_WRK_TIMEOUT_S: Final = 60
_RATE: Final = re.compile(r"^Requests/sec:\s+([\d.]+)$", re.MULTILINE)
_FAILED: Final = re.compile(r"^\s*(Non-2xx.*|Socket errors.*)$", re.MULTILINE)


def drive(connect: Callable[[], Connection], step: Step, clients: int, seconds: int) -> float:
    """Let each client repeat a step until the time is over, and finish the one it is at.

    The time counted is that until the last client has finished.

    Raises:
        UnexpectedAnswerError: A step failed.
    """

    def repeat(connection: Connection) -> int:
        done = 0
        while done == 0 or time.monotonic() < end:
            step(connection)
            done += 1
        return done

    with ExitStack() as stack, ThreadPoolExecutor(clients) as threads:
        connections = [stack.enter_context(connect()) for _ in range(clients)]
        began = time.monotonic()
        end = began + seconds
        done = sum(threads.map(repeat, connections))
        return done / (time.monotonic() - began)


def drive_wrk(port: int, target: str, accept: str, clients: int, seconds: int) -> float:
    """GET one thing over and over.

    Raises:
        UnexpectedAnswerError: An answer was no 2xx, or a connection broke.
    """
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", f"--timeout={_WRK_TIMEOUT_S}s"]
    if accept:
        command += ["-H", accept.strip()]
    command.append(f"http://127.0.0.1:{port}{target}")
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rate, failed = _RATE.search(output), _FAILED.search(output)
    if failed or not rate:
        raise UnexpectedAnswerError(f"wrk {target}: {failed[1] if failed else output}")
    return float(rate[1])
