"""The causal register: laws of merging, what survives, what is shown; the model as oracle."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from node.register import Dot, Register, merge, taken
from tests.models import register as model


class Value(NamedTuple):
    """What a test pushes."""

    ms: int
    name: str


Reg = Register[Value]
SITES = ("a#1", "b#1", "c#1")


class Push(NamedTuple):
    """A site pushes; its clock says this."""

    site: int
    now_ms: int


class Delete(NamedTuple):
    """A site deletes."""

    site: int


class Merge(NamedTuple):
    """A site merges what another has."""

    site: int
    other: int


_SITE = st.integers(0, len(SITES) - 1)
_STEP = st.one_of(
    st.builds(Push, _SITE, st.integers(0, 50)),
    st.builds(Delete, _SITE),
    st.builds(Merge, _SITE, _SITE),
)
histories = st.lists(_STEP, max_size=24)


@dataclass
class Sites:
    """Three sites that hold one register, the model beside the real one."""

    real: list[Reg] = field(default_factory=lambda: [Register() for _ in SITES])
    model: list[model.State] = field(default_factory=lambda: [model.NEVER for _ in SITES])
    pushed: set[Dot] = field(default_factory=set)
    overwritten: set[Dot] = field(default_factory=set)
    revision: int = 0

    def play(self, step: Push | Delete | Merge) -> None:
        """Do one step to both."""
        self.revision += 1
        at, mine = step.site, self.real[step.site]
        dot = Dot(SITES[at], self.revision)
        match step:
            case Push(now_ms=now_ms):
                self.overwritten |= set(mine.siblings)
                self.pushed.add(dot)
                name = f"push {self.revision}"
                self.real[at] = mine.push(dot, Value(mine.next_ms(now_ms), name))
                self.model[at] = model.write(self.model[at], dot, now_ms, name)
            case Delete():
                self.overwritten |= set(mine.siblings)
                self.real[at] = mine.delete(dot)
                self.model[at] = model.delete(self.model[at], dot)
            case Merge(other=other):
                self.real[at] = merge(mine, self.real[other])
                self.model[at] = model.merge(self.model[at], self.model[other])


def _plain(register: Reg) -> model.State:
    return dict(register.ctx), {tuple(d): tuple(v) for d, v in register.siblings.items()}  # type: ignore[misc]  # a tuple of a NamedTuple has its fields


@given(histories)
def test_register_and_model_go_in_step(history: list[Push | Delete | Merge]) -> None:
    """Whatever happens, the register is what the model says, and shows what the model shows."""
    sites = Sites()
    for step in history:
        sites.play(step)
        for real, modelled in zip(sites.real, sites.model, strict=True):
            assert _plain(real) == modelled
            shown = real.shown()
            assert (shown and shown.name) == model.shown(modelled)


@given(histories)
def test_merging_is_commutative_associative_and_idempotent(
    history: list[Push | Delete | Merge],
) -> None:
    """Sites converge in whatever order they hear of each other, and hearing twice is no news."""
    sites = Sites()
    for step in history:
        sites.play(step)
    merged = [merge(merge(x, y), z) for x, y, z in permutations(sites.real)]
    merged += [merge(x, merge(y, z)) for x, y, z in permutations(sites.real)]
    assert all(one == merged[0] for one in merged)
    assert all(merge(merged[0], one) == merged[0] for one in (*sites.real, merged[0]))


@given(histories)
def test_exactly_what_nobody_overwrote_survives(history: list[Push | Delete | Merge]) -> None:
    """A push is a sibling in the end unless somebody who had seen it replaced or deleted it."""
    sites = Sites()
    for step in history:
        sites.play(step)
    x, y, z = sites.real
    assert set(merge(merge(x, y), z).siblings) == sites.pushed - sites.overwritten


@given(histories, st.integers(-(10**6), 10**6))
def test_a_later_push_wins_whatever_the_clocks_say(
    history: list[Push | Delete | Merge], now_ms: int
) -> None:
    """A push outranks all that its author saw, at every site, with any skew."""
    sites = Sites()
    for step in history:
        sites.play(step)
    everything = merge(merge(sites.real[0], sites.real[1]), sites.real[2])
    dot = Dot(SITES[0], sites.revision + 1)
    pushed = everything.push(dot, Value(everything.next_ms(now_ms), "last"))
    for held in sites.real:
        assert merge(held, pushed).shown() == pushed.siblings[dot]


@given(histories)
def test_what_is_seen_is_what_merging_would_drop(history: list[Push | Delete | Merge]) -> None:
    """`has_seen` says of every push whether it is in the register or was overwritten by it."""
    sites = Sites()
    for step in history:
        sites.play(step)
    for real in sites.real:
        for dot in sites.pushed:
            alone: Reg = Register({dot.actor: dot.n}, {dot: Value(0, "alone")})
            kept = dot in merge(real, alone).siblings
            assert real.has_seen(dot) == (dot in real.siblings or not kept)


@given(histories)
def test_what_is_taken_without_deletes_leaves_alive(history: list[Push | Delete | Merge]) -> None:
    """Nothing that is live dies, every live value arrives, and what stays behind merges away."""
    sites = Sites()
    for step in history:
        sites.play(step)
    for mine, theirs in permutations(sites.real, 2):
        kept = taken(mine, theirs, deletes=False)
        assert kept.live or not mine.live
        assert kept in (mine, merge(mine, theirs))
        assert merge(theirs, kept) == merge(theirs, mine)
        assert taken(kept, theirs, deletes=False) == kept
        assert taken(mine, theirs, deletes=True) == merge(mine, theirs)


@settings(max_examples=50)
@given(histories)
def test_an_immutable_tag_shows_its_first_push(history: list[Push | Delete | Merge]) -> None:
    """Of concurrent first pushes every site shows the same one: the least by (ms, dot)."""
    sites = Sites()
    for step in history:
        sites.play(step)
    real = sites.real[0]
    order = sorted((value.ms, dot) for dot, value in real.siblings.items())
    shown = real.shown(immutable=True)
    assert shown == (real.siblings[order[0][1]] if order else None)


def test_dropping_some_keeps_the_others_and_the_context() -> None:
    """Of siblings {x, y}, dropping x leaves y; dropping all is a delete by the dropper."""
    x, y = Dot("a#1", 1), Dot("b#1", 1)
    both: Reg = Register({"a#1": 1, "b#1": 1}, {x: Value(1, "x"), y: Value(2, "y")})
    one = both.without([x], Dot("c#1", 9))
    assert one == Register({"a#1": 1, "b#1": 1}, {y: Value(2, "y")})
    assert one.without([y], Dot("c#1", 9)) == Register({"a#1": 1, "b#1": 1, "c#1": 9}, {})


def test_only_what_is_alive_is_shown() -> None:
    """A sibling whose manifest is dead is passed over, even if it is the latest."""
    x, y = Dot("a#1", 1), Dot("b#1", 1)
    both: Reg = Register({"a#1": 1, "b#1": 1}, {x: Value(1, "x"), y: Value(2, "y")})
    assert both.shown(lambda value: value.name != "y") == Value(1, "x")
    assert both.shown(lambda _: False) is None
