"""Two registries side by side: the same work by turns, so that the machine's moods cancel out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from tests.bench.workloads import Bed, Workload


@dataclass(frozen=True, slots=True)
class Row:
    """What one workload gave with a number of clients: a figure of each side for every round."""

    workload: Workload
    clients: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ours through theirs, round by round."""
        return tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return median(self.ratios)


def compare(
    workload: Workload,
    ours: Bed,
    theirs: Bed,
    *,
    clients: int,
    seconds: int,
    rounds: int,
    advance: Callable[[], None],
) -> Row:
    """Measure each side once a round, and another first in every round.

    `advance` is called after each of the `2 * rounds` measurements.
    """
    loads = workload.load(ours), workload.load(theirs)
    figures: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        sides: Sequence[int] = (0, 1) if number % 2 == 0 else (1, 0)
        for side in sides:
            figures[side].append(loads[side](clients, seconds) * workload.amount)
            advance()
    return Row(workload, clients, tuple(figures[0]), tuple(figures[1]))
