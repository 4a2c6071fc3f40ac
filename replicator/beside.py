"""Followers of one process beside each other: in a mesh each change is told by every peer.

Who comes to a change that another follower is at waits for it, and finds it applied, most likely;
else both would do all of the work, and one of them in vain.  This is about effort only: whoever
waited looks at what is here, as for any change, and nobody waits for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from node.change import Change
from node.keys import Name
from node.manifest import Manifest
from replicator.apply import Result
from replicator.lanes import Applying

# The other may be waiting for a peer that does not answer, where one's own would.
PATIENCE_S: Final = 1.0


class AtWork:
    """The names that the followers of a process are at."""

    def __init__(self) -> None:
        self._names: dict[Name, asyncio.Event] = {}

    def __contains__(self, name: Name) -> bool:
        """Whether a follower is at it."""
        return name in self._names

    @asynccontextmanager
    async def on(self, name: Name) -> AsyncIterator[None]:
        """Be at a name, after whoever is at it now, or for too long."""
        if (other := self._names.get(name)) is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await other.wait()
        done = asyncio.Event()
        self._names[name] = done
        try:
            yield
        finally:
            done.set()
            if self._names.get(name) is done:
                del self._names[name]


class Beside:
    """Applies what one follower is told, beside the others."""

    def __init__(self, applying: Applying, at_work: AtWork) -> None:
        self._applying = applying
        self._at_work = at_work

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """See `Apply.apply`."""
        async with self._at_work.on(change.name):
            return await self._applying.apply(change, body)

    async def prepare(self, change: Change) -> Manifest | None:
        """See `Apply.prepare`; what another is at needs no preparing."""
        if change.name in self._at_work:
            return None
        async with self._at_work.on(change.name):
            return await self._applying.prepare(change)
