"""The checker of histories: it takes what a register can have answered, and nothing else."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.linear import ANYTHING, NOTHING, Kind, NotLinear, Operation, Outcome, check, write

CLIENTS: Final = 4

# --- histories made by hand


def _ok(kind: Kind, digest: str, began: float, ended: float, expects: str = ANYTHING) -> Operation:
    return Operation("v", kind, digest, expects, Outcome.OK, began, ended)


def _put(digest: str, began: float, ended: float, expects: str = ANYTHING) -> Operation:
    return _ok(Kind.WRITE, digest, began, ended, expects)


def _get(digest: str, began: float, ended: float) -> Operation:
    return _ok(Kind.READ, digest, began, ended)


def _delete(began: float, ended: float, expects: str = ANYTHING) -> Operation:
    return _ok(Kind.DELETE, NOTHING, began, ended, expects)


def _lost(one: Operation) -> Operation:
    return replace(one, outcome=Outcome.UNKNOWN)


def _refused(one: Operation) -> Operation:
    return replace(one, outcome=Outcome.REFUSED)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([], id="nothing was ever asked"),
        pytest.param([_get(NOTHING, 0, 1)], id="nothing was ever pushed"),
        pytest.param(
            [
                *(_get(NOTHING, 0, 1), _put("a", 2, 3), _get("a", 4, 5)),
                *(_delete(6, 7, "a"), _get(NOTHING, 8, 9)),
            ],
            id="one after the other",
        ),
        pytest.param(
            [_put("a", 0, 9), _put("b", 1, 8), _get("a", 10, 11)], id="two pushes at once"
        ),
        pytest.param(
            [
                *(_put("a", 0, 9), _delete(0, 9, "a"), _put("b", 0, 9)),
                *(_get(NOTHING, 3, 4), _get("b", 10, 11)),
            ],
            id="a delete between two pushes",
        ),
        pytest.param([_put("a", 0, 3), _get(NOTHING, 1, 2)], id="not there yet"),
        pytest.param([_put("a", 0, 3), _get("a", 1, 2)], id="there before the answer"),
        pytest.param(
            [_put("a", 0, 9), _put("b", 0, 9), _get("b", 1, 2), _get("a", 3, 4), _get("a", 5, 6)],
            id="side by side, the later is seen last",
        ),
        pytest.param([_lost(_put("a", 0, 1)), _get(NOTHING, 2, 3)], id="lost and not done"),
        pytest.param(
            [_lost(_put("a", 0, 1)), _get(NOTHING, 2, 3), _get("a", 4, 5)], id="lost and late"
        ),
        pytest.param(
            [_lost(_put("a", 0, 1)), _put("b", 1, 2), _get("b", 8, 9)],
            id="lost, and another's is seen",
        ),
        pytest.param(
            [_put("a", 0, 1), _lost(_delete(2, 3)), _get("a", 4, 5), _get(NOTHING, 6, 7)],
            id="a lost delete, late",
        ),
        pytest.param(
            [_put("a", 0, 1), _lost(_delete(2, 3, "a")), _get("a", 8, 9)],
            id="a lost delete, not done",
        ),
        pytest.param(
            [
                *(_lost(_put("a", 0, 1)), _refused(_put("b", 2, 3, NOTHING))),
                *(_lost(_delete(2, 3)), _get(NOTHING, 4, 5)),
            ],
            id="a lost push refuses a new one and is deleted by a lost delete",
        ),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 5, "a"), _refused(_put("c", 3, 4, "a"))],
            id="of two that saw the same one is refused",
        ),
        pytest.param([_refused(_delete(0, 1)), _put("a", 2, 3)], id="nothing to delete"),
        pytest.param(
            [
                *(_put("b", 0, 1), replace(_put("a", 0, 9), outcome=Outcome.UNSENT)),
                *(_get("b", 2, 3), _lost(_get(NOTHING, 2, 3))),
            ],
            id="what was not sent or not answered tells nothing",
        ),
    ],
)
def test_what_a_register_can_answer(history: list[Operation]) -> None:
    """It is taken, in whatever order it is written down."""
    check(history)
    check(reversed(history))


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([_put("a", 0, 1), _put("b", 2, 3), _get("a", 4, 5)], id="a stale read"),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 9), _get("b", 3, 4), _get("a", 5, 6)],
            id="a stale read after another's fresh one",
        ),
        pytest.param([_put("a", 0, 1), _get(NOTHING, 2, 3)], id="a lost write"),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 9, "a"), _put("c", 3, 8, "a")],
            id="a write lost to another that saw the same",
        ),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 3), _get("b", 4, 5), _get("a", 6, 7)],
            id="a write applied twice",
        ),
        pytest.param(
            [_lost(_put("a", 0, 1)), _get("a", 2, 3), _put("b", 4, 5), _get("a", 6, 7)],
            id="a lost write applied twice",
        ),
        pytest.param(
            [
                *(_put("a", 0, 1), _lost(_delete(2, 3)), _get(NOTHING, 4, 5)),
                *(_put("b", 6, 7), _get("b", 8, 9), _get(NOTHING, 10, 11)),
            ],
            id="a lost delete applied twice",
        ),
        pytest.param(
            [_put("a", 0, 1), _refused(_put("b", 2, 3, NOTHING)), _get("b", 4, 5)],
            id="a refused write is read",
        ),
        pytest.param([_put("a", 0, 1), _delete(2, 3), _get("a", 4, 5)], id="a delete is undone"),
        pytest.param([_get("a", 0, 1), _put("a", 2, 3)], id="a read from the future"),
        pytest.param([_get("a", 0, 1), _lost(_put("a", 2, 3))], id="a read from a lost future"),
        pytest.param([_get("a", 0, 1)], id="a read from nowhere"),
        pytest.param([_delete(0, 1)], id="a delete of nothing"),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 3), _delete(4, 5, "a")],
            id="a delete of what was replaced",
        ),
        pytest.param(
            [_put("a", 0, 1), _put("b", 2, 3), _delete(4, 5, "b"), _get("a", 6, 7)],
            id="a delete uncovers what was replaced",
        ),
        pytest.param(
            [_put("a", 0, 1), _get("a", 2, 3), _get(NOTHING, 4, 5)],
            id="nothing without a delete",
        ),
        pytest.param(
            [_put("a", 0, 1), _delete(2, 9, "a"), _delete(3, 8, "a")],
            id="two deletes of one push",
        ),
        pytest.param([_put("a", 0, 1), _refused(_delete(2, 3))], id="a delete is refused"),
        pytest.param(
            [_put("a", 0, 1), _refused(_put("b", 2, 3, "a"))], id="what it expects, and refused"
        ),
        pytest.param([_refused(_put("a", 0, 1))], id="refused without a condition"),
        pytest.param(
            [_lost(_put("a", 0, 1)), _refused(_put("b", 2, 3, NOTHING)), _get(NOTHING, 4, 5)],
            id="an unseen push was there, then not, and nobody deleted it",
        ),
    ],
)
def test_what_no_register_answers(history: list[Operation]) -> None:
    """It is rejected, and beside other tags too."""
    others = [replace(one, tag="w") for one in (_put("a", 0, 1), _get("a", 2, 3))]
    check(others)
    with pytest.raises(NotLinear):
        check(others + history)


# --- all that are small


def _by_brute_force(history: Sequence[Operation], shown: str = NOTHING) -> bool:
    """Whether there is an order, tried one by one."""
    lost = [one for one in history if one.outcome is Outcome.UNKNOWN]
    if len(lost) == len(history):
        return True
    first_end = min(one.ended_at for one in history if one not in lost)
    for one in history:
        if one.began_at > first_end:
            continue
        rest = [other for other in history if other is not one]
        if one.kind is Kind.READ:
            allowed = shown == one.digest
        else:
            allowed = one.expects in (ANYTHING, shown) and (one.kind, shown) != (
                Kind.DELETE,
                NOTHING,
            )
        if one.outcome is Outcome.REFUSED:
            after = None if allowed else shown
        elif one.kind is Kind.READ:
            after = shown if allowed else None
        else:
            after = (NOTHING if one.kind is Kind.DELETE else one.digest) if allowed else None
        if after is not None and _by_brute_force(rest, after):
            return True
    return False


@st.composite
def _any_history(draw: st.DrawFn) -> list[Operation]:
    """A few operations with any answers at all; each push has a digest of its own."""
    count = draw(st.integers(1, 6))
    digests = st.sampled_from([NOTHING, *(f"d{number}" for number in range(count))])
    history = []
    for number in range(count):
        kind = draw(st.sampled_from(Kind))
        began = draw(st.integers(0, 12))
        history.append(
            Operation(
                "v",
                kind,
                f"d{number}" if kind is Kind.WRITE else draw(digests),
                ANYTHING if kind is Kind.READ else draw(st.just(ANYTHING) | digests),
                Outcome.OK if kind is Kind.READ else draw(st.sampled_from(list(Outcome)[:3])),
                began,
                began + draw(st.integers(0, 8)),
            )
        )
    return history


def _names_what_is_known(history: list[Operation]) -> bool:
    """Whether conditions name no lost push that nobody saw."""
    told = [one for one in history if one.outcome is Outcome.OK]
    known = {NOTHING, ANYTHING, *(one.digest for one in told), *(one.expects for one in told)}
    pushed = {one.digest for one in history if one.kind is Kind.WRITE}
    return all(one.expects in known or one.expects not in pushed for one in history)


@given(_any_history())
def test_it_decides_as_trying_all_orders_does(history: list[Operation]) -> None:
    """Of small histories of any kind it takes those that have an order, and no others."""
    try:
        check(history)
    except NotLinear:
        assert not _by_brute_force(history)
    else:
        assert _by_brute_force(history) or not _names_what_is_known(history)


# --- histories of a real register


def _of_a_register(dice: random.Random, count: int, losing: float) -> list[Operation]:
    """What clients of one register see, who lose some answers; some come late or do nothing."""
    asked: list[tuple[float, Operation]] = []
    free = [0.0] * CLIENTS
    for number in range(count):
        client = dice.randrange(CLIENTS)
        kind = dice.choice((Kind.READ, Kind.READ, Kind.WRITE, Kind.WRITE, Kind.DELETE))
        began = free[client] + dice.random()
        done = began + dice.expovariate(1)
        free[client] = done + dice.expovariate(1)
        recent = f"d{max(0, number - dice.randrange(1, 12))}"
        expects = dice.choice((ANYTHING, ANYTHING, NOTHING, recent))
        if kind is Kind.READ or (kind, expects) == (Kind.DELETE, NOTHING):
            expects = ANYTHING
        one = Operation("v", kind, f"d{number}", expects, Outcome.OK, began, free[client])
        if dice.random() < losing:
            one.outcome = Outcome.UNKNOWN
            done += dice.choice((0, 0, 20, math.inf))
        asked.append((done, one))
    _answer(asked)
    return [one for _, one in asked]


def _answer(asked: list[tuple[float, Operation]]) -> None:
    shown = NOTHING
    for done, one in sorted(asked, key=lambda pair: pair[0]):
        fails = one.expects not in (ANYTHING, shown) or (one.kind, shown) == (Kind.DELETE, NOTHING)
        if one.kind is Kind.READ:
            one.digest = shown
        elif fails and one.outcome is Outcome.OK:
            one.outcome = Outcome.REFUSED
        elif not fails and not math.isinf(done):
            shown = one.digest if one.kind is Kind.WRITE else NOTHING


@given(st.integers(0, 1 << 32), st.integers(1, 80), st.sampled_from((0, 0.1, 0.4)))
def test_a_real_register_is_taken(seed: int, count: int, losing: float) -> None:
    """Whatever the delays, and whichever answers are lost."""
    check(_of_a_register(random.Random(seed), count, losing))


@pytest.mark.parametrize("seed", range(5))
def test_one_wrong_answer_is_found_in_a_long_history(seed: int) -> None:
    """Of 400 operations 20 are lost; a search that grew by powers with those would never end."""
    dice = random.Random(seed)
    history = _of_a_register(dice, 400, 0.05)
    check(history)
    told = [one for one in history if one.outcome is Outcome.OK]
    read = dice.choice([one for one in told[100:] if one.kind is Kind.READ])
    read.digest = next(one.digest for one in told if one.kind is Kind.WRITE)
    with pytest.raises(NotLinear):
        check(history)


def test_a_history_is_written_one_operation_a_line(tmp_path: Path) -> None:
    """Each line is an object of JSON with all that is known of the operation."""
    path = tmp_path / "history.jsonl"
    write([_put("a", 0, 1), _get("a", 2, 3)], path)
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["kind"], first["digest"], first["outcome"]) == ("write", "a", "ok")
    assert (second["kind"], second["began_at"], second["ended_at"]) == ("read", 2, 3)
