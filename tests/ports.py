"""Ports that nobody listens on."""

import random
import socket
from typing import Final

_HOST: Final = "127.0.0.1"
# Below those that Linux gives to outgoing connections, so that none takes one in between.
_CHOICE: Final = range(20000, 32000)


def free_port() -> int:
    """A port that was free a moment ago; by chance, so that tests side by side rarely meet."""
    return free_ports((0,))


def free_ports(offsets: tuple[int, ...]) -> int:
    """The first of several free ports that lie at these offsets from it."""
    for _ in range(200):
        base = random.choice(_CHOICE)
        if all(_is_free(base + offset) for offset in offsets):
            return base
    raise AssertionError("no free ports were found")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((_HOST, port)):
            return True
    except OSError:
        return False
