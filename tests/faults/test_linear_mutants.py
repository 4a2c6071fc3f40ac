"""Bugs that a gateway could have had, put in on purpose: the histories of its clients show each.

The same clients and the same checker as in `test_linear`, at two gateways in this process, whose
store loses requests and replies.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from node.condition import Condition
from node.kv import Guard, Op
from node.metadata import Metadata, Resolved
from node.reference import Reference, Repository
from node.stamps import Decider
from tests.fake_kv import Fault, Faults
from tests.faults.linear import NotLinear, Operation, check, write
from tests.faults.registry import Registry
from tests.faults.taggers import Taggers
from tests.registry import served
from tests.waiting import eventually

Patch = pytest.MonkeyPatch

OPERATIONS: Final = 300
CLIENTS: Final = 4
# What meets whom is the machine's to choose, so that a history may miss a bug.
SEEDS: Final = 8


def tags_are_kept_for_50_ms(patch: Patch) -> None:
    """A gateway that has just looked at a tag does not look again."""
    resolve = Metadata.resolve
    kept: dict[tuple[Metadata, Repository, Reference], tuple[float, Resolved]] = {}

    async def kept_for_a_while(
        self: Metadata, repository: Repository, reference: Reference
    ) -> Resolved:
        key, now = (self, repository, reference), time.monotonic()
        if key not in kept or now - kept[key][0] > 0.05:
            kept[key] = now, await resolve(self, repository, reference)
        return kept[key][1]

    patch.setattr(Metadata, "resolve", kept_for_a_while)


def conditions_are_not_looked_at(patch: Patch) -> None:
    """Every conditional push and delete goes ahead."""
    patch.setattr(Condition, "require", lambda *_: None)


def lost_requests_are_taken_for_done(patch: Patch) -> None:
    """A transaction that nobody has answered counts as applied."""

    async def done(_self: Decider, _op: str) -> bool:
        return True

    patch.setattr(Decider, "_done", done)


def _weather(seed: int) -> Faults:
    dice = random.Random(seed)
    faults = (Fault.LOST_REPLY, Fault.LOST_REQUEST, *[None] * 8)

    def fault(_guards: Sequence[Guard], _ops: Sequence[Op]) -> Fault | None:
        return dice.choice(faults)

    return fault


async def _history(seed: int) -> list[Operation]:
    """What four clients see at two gateways of one site."""
    async with served() as one, served(beside=one) as other:
        urls = [f"http://127.0.0.1:{gateway.port}" for gateway in (one, other)]
        async with Registry.at(urls[0]) as first, Registry.at(urls[1]) as second:
            taggers = Taggers((first, second), "team/app", random.Random(seed))
            await taggers.prepare()
            one.kv.faults = _weather(seed)
            async with asyncio.TaskGroup() as group:
                runs = [group.create_task(taggers.run(f"c{number}")) for number in range(CLIENTS)]
                taggers.permit(OPERATIONS)
                await eventually(lambda: taggers.idle, 60, "all operations have ended")
                for run in runs:
                    run.cancel()
            await taggers.look()
    return taggers.history


async def test_without_a_bug_tags_are_registers(tmp_path: Path) -> None:
    """P2: whatever requests and replies the store has lost."""
    history = await _history(1)
    write(history, tmp_path / "history.jsonl")
    check(history)


@pytest.mark.parametrize(
    "mutant",
    [
        tags_are_kept_for_50_ms,
        conditions_are_not_looked_at,
        lost_requests_are_taken_for_done,
    ],
    ids=lambda mutant: mutant.__name__,
)
async def test_a_bug_shows(mutant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    """A history of clients of a gateway with this bug is rejected, most often the first."""
    mutant(monkeypatch)
    for seed in range(1, SEEDS + 1):
        try:
            check(await _history(seed))
        except NotLinear:
            return
    pytest.fail(f"{SEEDS} histories do not show it")
