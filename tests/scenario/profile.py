"""What histories are made of, and what they lean to."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from node.reference import Repository, Tag

REPOSITORIES: Final = (Repository("app"), Repository("lib/base"))
TAGS: Final = (Tag("t"), Tag("u"))

# How often what happens; a profile may weigh anew.
ACTIONS: Final = {
    "push": 10,
    "delete_manifest": 7,
    "delete_tag": 2,
    "resolve": 8,
    "follow": 8,
    "retry": 3,
    "relay": 8,
    "collect": 4,
    "tidy": 1,
    "hide": 1,
    "mount": 1,
    "crash": 1,
    "cut": 1,
    "heal": 1,
    "land": 1,
    "wait": 1,
}

# In every history, as it changes nothing but what was to be changed.
_COMPARE: Final = 4
STRIDES: Final = ((1, 2, 4, 8, 16), (2, 6, 20, 60), (15, 1000))
MIXTURES: Final = ("c", "ci", "ci", "ci", "cix", "ks", "cdj", "cs", "cdsijxk")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a history leans to; what is None, the seed decides."""

    weights: Mapping[str, int] | None = None
    images: str | None = None
    faulty: bool | None = None
    strides: tuple[int, ...] | None = None
    chunk: int | None = None
    orderly: bool = False
    """Followers take all that there is, in its order, once."""
    kept_from: Mapping[str, frozenset[str]] | None = None
    """Of which peers a site does not take the deletes."""


ANYTHING: Final = Profile()
AN_ARCHIVE: Final[Mapping[str, frozenset[str]]] = {"B": frozenset("AC")}


def archives(seed: int) -> Mapping[str, frozenset[str]]:
    """In some histories one site keeps what its peers delete, or what one of them does."""
    dice = random.Random(seed)
    if seed % 3 != 1:
        return {}
    site = dice.choice("ABC")
    peers = sorted({*"ABC"} - {site})
    return {site: frozenset(peers if dice.random() < 0.8 else peers[:1])}


def leaning(dice: random.Random) -> dict[str, int]:
    """How often what happens in one history."""
    weights = {name: weight * dice.choice([0, 1, 1, 1, 4]) for name, weight in ACTIONS.items()}
    return weights | {"compare": _COMPARE}
