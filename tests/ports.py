"""Ports that nobody listens on."""

import os
import random
import socket
from typing import Final

_HOST: Final = "127.0.0.1"
# Below those that Linux gives to outgoing connections, so that none takes one in between.
_LOWEST: Final = 20000
_MANY: Final = 12000


def free_port() -> int:
    """A port that was free a moment ago; by chance, so that tests side by side rarely meet."""
    return free_ports((0,))


def free_ports(offsets: tuple[int, ...]) -> int:
    """The first of several free ports that lie at these offsets from it."""
    mine = _of_this_worker()
    for _ in range(200):
        base = random.choice(mine[: -max(offsets) or None])
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise AssertionError("no free ports were found")


def _of_this_worker() -> range:
    """Where this process of pytest-xdist takes its ports from: none is promised twice."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    each = _MANY // workers
    return range(_LOWEST + number * each, _LOWEST + (number + 1) * each)


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((_HOST, port)):
            return True
    except OSError:
        return False
