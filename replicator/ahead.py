"""Bring what the next changes need while the first is applied: they share their round trips.

Over a distance each change would otherwise take round trips of its own, one after the other.  What
is brought is shown by nobody: a change is applied in its turn, and told what came of it here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, Protocol, TypeAlias

import structlog

from node.change import Change
from node.manifest import Manifest

# Of one repository, and of all.
AHEAD: Final = 16
AHEAD_IN_ALL: Final = 64

# None: it was not begun, and its turn does all of it.
Preparing: TypeAlias = asyncio.Task[Manifest | None] | None

_log = structlog.stdlib.get_logger(__name__)


class Prepares(Protocol):
    """What prepares a change; see `replicator.apply.Apply`."""

    async def prepare(self, change: Change) -> Manifest | None:
        """Bring what it needs, as far as that can be had; what applying it is to know."""
        ...


class Ahead:
    """Prepares the changes of one source before their turn; its tasks run in `group`."""

    def __init__(self, group: asyncio.TaskGroup, prepares: Prepares) -> None:
        self._group = group
        self._prepares = prepares
        self._under_way = 0

    def begin(self, change: Change) -> Preparing:
        """Begin with a change, if there are not too many under way."""
        if self._under_way == AHEAD_IN_ALL:
            return None
        self._under_way += 1
        return self._group.create_task(self._prepare(change))

    def in_turn(self, changes: Sequence[Change]) -> Iterator[tuple[Change, Preparing]]:
        """One after the other, while those that come next are prepared."""
        begun: deque[Preparing] = deque([None])
        for number, change in enumerate(changes):
            begun += map(self.begin, changes[number + len(begun) : number + 1 + AHEAD])
            yield change, begun.popleft()

    async def _prepare(self, change: Change) -> Manifest | None:
        try:
            return await self._prepares.prepare(change)
        except Exception:  # noqa: BLE001 - one bad change must not stop all others
            _log.exception("a change could not be prepared", name=change.name)
            return None
        finally:
            self._under_way -= 1
