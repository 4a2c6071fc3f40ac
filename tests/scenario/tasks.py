"""What a world has in work: coroutines that it advances from one pause to the next."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Coroutine, Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tests.scenario.oracle import Intent
from tests.scenario.site import SimSite


class Pause(Awaitable[None]):
    """Awaiting it lets the world choose who goes on."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class _Ended(BaseException):
    """The process is no more; nobody may handle that."""


@dataclass(slots=True)
class Task:
    """Something in work at a site."""

    site: SimSite
    intent: Intent
    coroutine: Coroutine[Any, Any, None]

    def end(self) -> None:
        """End it where it stands, as the end of its process would."""
        # Closing alone does not reach an asynchronous generator that waits inside of it.
        if inspect.getcoroutinestate(self.coroutine) == inspect.CORO_SUSPENDED:
            with suppress(_Ended):
                self.coroutine.throw(_Ended())
        self.coroutine.close()
