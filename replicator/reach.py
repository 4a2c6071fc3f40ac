"""Whether a peer is reached, and when it was heard last. Pure, but for the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from replicator.measures import State

_AWAY: Final = frozenset({State.UNREACHABLE, State.REFUSED})

_log = structlog.stdlib.get_logger(__name__)


class Reach:
    """How following one peer goes; `clock_ms` is the wall clock."""

    def __init__(self, peer: str, clock_ms: Callable[[], int]) -> None:
        self._peer = peer
        self._clock_ms = clock_ms
        self._away_ms = 0
        self._heard_ms = 0
        self.state = State.STARTING
        self.error = ""

    def heard(self) -> None:
        """It has answered."""
        self._heard_ms = self._clock_ms()

    def turn(self, state: State, error: str = "") -> None:
        """It goes like this from now on."""
        if self.state in {State.SCANNING, State.FOLLOWING}:
            self.heard()
        if state is not self.state:
            _log.info("following", peer=self._peer, state=state, reason=error or None)
            if self.state not in _AWAY:
                self._away_ms = self._clock_ms()
        self.state, self.error = state, error

    @property
    def unheard_since_ms(self) -> int:
        """Since when it is away, or was so when following it began; 0 while it is not."""
        return self._away_ms if self.state in _AWAY else 0

    @property
    def heard_ms(self) -> int:
        """When a peer that is away was heard last since following it began; 0 if it never was."""
        return self._heard_ms if self.state in _AWAY else 0
