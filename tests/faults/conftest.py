"""What tests of faults share: a seed that is told, and that replays a run's choices."""

from __future__ import annotations

import os
import random
import sys

import pytest


@pytest.fixture
def seed() -> int:
    """What all choices of a run come from."""
    found = int(os.environ.get("ENTREPOT_SEED") or random.SystemRandom().randrange(1 << 32))
    sys.stderr.write(f"ENTREPOT_SEED={found}\n")
    return found


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Other images in each test, the same in each run."""
    return random.Random(request.node.name)
