"""Ports that nobody listens on."""

import os
import random
import socket
from collections.abc import Iterator
from itertools import chain, cycle
from typing import Final

_HOST: Final = "127.0.0.1"
# Below those that Linux gives to outgoing connections, so that none takes one in between.
_LOWEST: Final = 20000
_MANY: Final = 12000


def free_port() -> int:
    """A port that was free a moment ago, and that nothing else in this process was given."""
    return free_ports((0,))


def free_ports(offsets: tuple[int, ...]) -> int:
    """The first of several such ports, which lie at these offsets from it."""
    last = max(offsets)
    for _ in range(200):
        base = next(_turn)
        for _ in range(last):
            next(_turn)
        if base + last in _mine and all(_is_free(base + offset) for offset in offsets):
            return base
    raise AssertionError("no free ports were found")


def _of_this_worker() -> range:
    """Where this process of pytest-xdist takes its ports from: none is promised twice."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    each = _MANY // workers
    return range(_LOWEST + number * each, _LOWEST + (number + 1) * each)


def _in_turn(ports: range) -> Iterator[int]:
    """All of these again and again, from one by chance: runs side by side rarely meet."""
    start = random.randrange(len(ports))
    return cycle(chain(ports[start:], ports[:start]))


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((_HOST, port)):
            return True
    except OSError:
        return False


_mine: Final = _of_this_worker()
# In turn, for one that was given may be listened on much later: it comes again after all others.
_turn: Final = _in_turn(_mine)
