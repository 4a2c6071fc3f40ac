"""The causal register in tuples and dictionaries: the model that the real one must follow.

A state is (context, siblings): the highest dot seen of each actor, and the values not overwritten.
"""

from __future__ import annotations

from typing import TypeAlias

Dot: TypeAlias = tuple[str, int]
Value: TypeAlias = tuple[int, str]
State: TypeAlias = tuple[dict[str, int], dict[Dot, Value]]

NEVER: State = ({}, {})


def merge(x: State, y: State) -> State:
    """Keep a sibling unless the other side has seen it and dropped it."""
    (cx, sx), (cy, sy) = x, y
    keep = {d: v for d, v in sx.items() if d in sy or d[1] > cy.get(d[0], 0)}
    keep |= {d: v for d, v in sy.items() if d in sx or d[1] > cx.get(d[0], 0)}
    return {a: max(cx.get(a, 0), cy.get(a, 0)) for a in cx.keys() | cy.keys()}, keep


def write(state: State, dot: Dot, now_ms: int, name: str) -> State:
    """Replace all that is seen; the new value outranks it, whatever the clock says."""
    ms = max([now_ms] + [value[0] + 1 for value in state[1].values()])
    return {**state[0], dot[0]: dot[1]}, {dot: (ms, name)}


def delete(state: State, dot: Dot) -> State:
    """Drop all that is seen."""
    return {**state[0], dot[0]: dot[1]}, {}


def shown(state: State) -> str | None:
    """The latest by (ms, dot)."""
    latest = max(((value[0], dot, value[1]) for dot, value in state[1].items()), default=None)
    return None if latest is None else latest[2]
