"""A KV in memory that tells of every transaction that is applied, and on whose behalf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from node.kv import Entry, Guard, Ok, Op, Outcome, Put
from node.records import Pushed
from node.register import Register
from tests.fake_kv import Crash, Fault, MemoryKV
from tests.scenario.checker import decode_register
from tests.scenario.oracle import Intent

NEVER: Register[Pushed] = Register()


class Watcher(Protocol):
    """Whoever is told, and says what goes wrong."""

    async def pause(self) -> None:
        """Let anything else happen."""

    def fault(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Fault | None:
        """What goes wrong with a transaction."""

    def intent(self) -> Intent:
        """On whose behalf things happen now."""

    def wrote(self, kv: MemoryKV, intent: Intent, key: bytes, before: Register[Pushed]) -> None:
        """A register was written."""

    def operation(self, op: str) -> None:
        """An operation was applied."""


class WatchedKV(MemoryKV):
    """Tells of every transaction that is applied, and on whose behalf."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(pause=watcher.pause, faults=watcher.fault)
        self._watcher = watcher
        self._meant: list[Intent] = []
        self._landing: Intent | None = None

    def _meddle(
        self, fault: Fault | Crash | None, guards: Sequence[Guard], ops: Sequence[Op]
    ) -> Outcome:
        if fault is Fault.GHOST:
            self._meant.append(self._watcher.intent())
        return super()._meddle(fault, guards, ops)

    def land(self, index: int = 0) -> Outcome:
        """See MemoryKV; on behalf of whoever sent it."""
        self._landing = self._meant.pop(index)
        try:
            return super().land(index)
        finally:
            self._landing = None

    def _run(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        before = {op[0]: self._stored.rows.get(op[0]) for op in ops}
        outcome = super()._run(guards, ops)
        if isinstance(outcome, Ok):
            intent = self._landing or self._watcher.intent()
            for op in ops:
                self._tell(intent, op, before[op[0]])
        return outcome

    def _tell(self, intent: Intent, op: Op, before: Entry | None) -> None:
        if op[0].startswith((b"M/", b"T/")):
            was = NEVER if before is None else decode_register(before.value)
            self._watcher.wrote(self, intent, op[0], was)
        elif op[0].startswith(b"o/") and isinstance(op, Put):
            self._watcher.operation(op.key[2:].decode())
