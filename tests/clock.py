"""A clock that moves when a test says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """Calling it tells the time in ms since the epoch; `skew_ms` makes it a wrong clock."""

    now_ms: int = 1_700_000_000_000
    skew_ms: int = 0

    def __call__(self) -> int:
        """The time it shows."""
        return self.now_ms + self.skew_ms

    def advance(self, ms: int) -> None:
        """Let time pass."""
        self.now_ms += ms


class Seconds:
    """Calling it tells seconds, as a test sets them: a monotonic clock."""

    s = 1000.0

    def __call__(self) -> float:
        """The time it shows."""
        return self.s
