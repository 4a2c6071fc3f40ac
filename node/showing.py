"""Whether a request only shows what is read, and whether that is stale."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from node.kv import Stale


@dataclass(slots=True)
class Showing:
    """What is shown to somebody; `stale` once any of it was read where it may be long ago: why."""

    stale: Stale | None = None


# Of a request, and not of the objects that it passes through: all of them serve both kinds.
_shown: Final[ContextVar[Showing | None]] = ContextVar("shown", default=None)


@contextmanager
def showing() -> Iterator[Showing]:
    """Let this task's reads inside the block be stale where nothing better is to be had."""
    shown = Showing()
    token = _shown.set(shown)
    try:
        yield shown
    finally:
        _shown.reset(token)


def shown_now() -> Showing | None:
    """What is being shown by this task; None while it decides."""
    return _shown.get()


@contextmanager
def deciding() -> Iterator[None]:
    """Have no stale reads inside the block: what they say is written by."""
    token = _shown.set(None)
    try:
        yield
    finally:
        _shown.reset(token)
