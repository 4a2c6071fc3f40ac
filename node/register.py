"""The causal register: the value of every replicated tag and manifest.

A register is what one key has become over all sites: a context (everything seen, as the highest
dot of each actor) and the siblings (values that nobody has overwritten yet).  A push replaces
exactly the siblings that it saw; a delete is a register without siblings; merging two registers
keeps a sibling unless the other side has seen it and dropped it.  Merging is commutative,
associative and idempotent, so sites converge in whatever order they hear of each other.  Clocks
never decide whether a value survives: they only choose which of two truly concurrent ones is shown.

The rule is RELIABILITY 6.2's (a dotted version vector set with the ORSWOT merge).  An actor is
`site#incarnation`; a dot's number is the KV revision of the read + 1, so it never repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

Actor = str


class Dot(NamedTuple):
    """One write: who, and which of theirs."""

    actor: Actor
    n: int


class Stamped(Protocol):
    """Anything with the time of its write, in ms since the epoch by the writer's clock."""

    @property
    def ms(self) -> int: ...


V = TypeVar("V", bound=Stamped)


@dataclass(frozen=True, slots=True)
class Register(Generic[V]):
    """A replicated value. Equality is equality of state: equal registers merge to themselves."""

    ctx: Mapping[Actor, int] = field(default_factory=dict)
    siblings: Mapping[Dot, V] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether any value stands; a register that is not live is a tombstone, or was never."""
        return bool(self.siblings)

    def has_seen(self, dot: Dot) -> bool:
        """Whether the write is in it, or was overwritten or deleted by what is."""
        return self.ctx.get(dot.actor, 0) >= dot.n

    def next_ms(self, now_ms: int) -> int:
        """The time to write with: a push outranks what it replaces, whatever the clocks say."""
        return max([now_ms] + [value.ms + 1 for value in self.siblings.values()])

    def push(self, dot: Dot, value: V) -> Register[V]:
        """Replace everything seen by one new value; make its `ms` with `next_ms`."""
        return Register({**self.ctx, dot.actor: dot.n}, {dot: value})

    def delete(self, dot: Dot) -> Register[V]:
        """Drop everything seen."""
        return Register({**self.ctx, dot.actor: dot.n}, {})

    def without(self, gone: Iterable[Dot], dot: Dot) -> Register[V]:
        """Drop some siblings and keep the others; when none is left it is a delete by `dot`."""
        dropped = set(gone)
        left = {at: value for at, value in self.siblings.items() if at not in dropped}
        return Register(self.ctx, left) if left else self.delete(dot)

    def shown(
        self, alive: Callable[[V], bool] = lambda _: True, *, immutable: bool = False
    ) -> V | None:
        """The one value that clients see: the latest by (ms, dot) among those alive.

        An immutable tag shows the first instead, so that every site refuses the same push.
        """
        candidates = [
            (value.ms, dot, value) for dot, value in self.siblings.items() if alive(value)
        ]
        if not candidates:
            return None
        pick = min if immutable else max
        return pick(candidates, key=lambda entry: entry[:2])[2]


def merge(left: Register[V], right: Register[V]) -> Register[V]:
    """Everything that either side knows, less what either has seen and dropped."""
    ctx = dict(left.ctx)
    for actor, n in right.ctx.items():
        ctx[actor] = max(n, ctx.get(actor, 0))
    return Register(ctx, {**_kept(left, right), **_kept(right, left)})


def taken(mine: Register[V], theirs: Register[V], *, deletes: bool) -> Register[V]:
    """What a register here is to become, as a peer tells its own; `mine` if there is nothing to it.

    Where the peer's deletes are not taken, only what leaves the register live is: a tombstone of
    the peer changes nothing, so ours stays behind it, without a dot that the peer has not seen.
    Wherever the delete is known ours then merges to nothing, and the next push there replaces it.
    """
    merged = merge(mine, theirs)
    return merged if deletes or merged.live else mine


def _kept(mine: Register[V], theirs: Register[V]) -> dict[Dot, V]:
    return {
        dot: value
        for dot, value in mine.siblings.items()
        if dot in theirs.siblings or not theirs.has_seen(dot)
    }
