"""Several gateways of one site on one machine: the registry and the feed on one port for all.

The kernel gives each new connection to one of the workers (SO_REUSEPORT), so nothing stands between
them and the clients, and while one is away the others take what is new.  Only who watches over them
must tell them apart: each has a port of its own for /livez, /readyz and /metrics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final, Self

from node.config import Address, Config, ConfigError
from node.config_checks import listeners

MOST: Final = 64

_TEXT: Final = re.compile(r"(\d{1,3})/(\d{1,3})")


@dataclass(frozen=True, slots=True)
class Worker:
    """Which gateway of how many a process is, counted from 0; by default the only one."""

    number: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: ValueError: The text is not `number/count`."""
        found = _TEXT.fullmatch(text)
        if not found or not int(found[1]) < int(found[2]) <= MOST:
            raise ValueError(f"{text!r} is no worker, such as 0/2")
        return cls(int(found[1]), int(found[2]))

    @property
    def shares(self) -> bool:
        """Whether others listen where it does."""
        return self.count > 1

    @property
    def health_key(self) -> str:
        """What problems with its health port are told by."""
        return "metrics.listen" if self.number == 0 else f"metrics.listen (worker {self.number})"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def team(count: int) -> tuple[Worker, ...]:
    """So many workers."""
    return tuple(Worker(number, count) for number in range(count))


def health_addresses(config: Config, count: int) -> tuple[Address, ...]:
    """Where each of so many workers answers its keeper: the first at `metrics.listen`.

    The others have the ports that follow, but for those on which the site listens anyway.

    Raises:
        ConfigError: There are not so many ports.
    """
    first = config.metrics.listen
    own = {address.port for address in listeners(config).values()}
    free = (port for port in range(first.port + 1, 65536) if port not in own)
    addresses = (first, *(replace(first, port=port) for port in islice(free, count - 1)))
    if len(addresses) < count:
        raise ConfigError(f"metrics.listen: {first} has no {count - 1} ports after it for workers")
    return addresses


def health_listeners(config: Config, count: int) -> dict[str, Address]:
    """The same by what problems with them are told by."""
    addresses = health_addresses(config, count)
    return {one.health_key: at for one, at in zip(team(count), addresses, strict=True)}
