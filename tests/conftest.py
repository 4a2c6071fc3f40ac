"""What holds for every test: none may block the loop, and hypothesis is the same everywhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

from tests.etcd import Etcd, running

# A shared machine is slow at times: how long an example takes says nothing.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "dev")

_MAY_BLOCK = {
    # A traceback reads the sources that it shows, and a line is written at once.
    "structlog/_base.py": ("_proxy_to_logger",),
    "logging/__init__.py": ("handle",),
    # /proc is no disk.
    "node/health.py": ("_metrics",),
    # Once per process, at start or end, where nothing else runs yet or any more.
    "node/config.py": ("load", "ensure_folders"),
    "node/lifecycle.py": ("_probe", "readable"),
    "node/serve.py": ("own_folders",),
    "node/supervisor.py": ("sole", "_lock"),
}


@pytest.fixture(scope="session")
def _guard() -> BlockBuster:
    guard = BlockBuster(["node", "gateway", "replicator"])
    for function in guard.functions.values():
        for file, names in _MAY_BLOCK.items():
            function.can_block_in(file, names)
    return guard


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(_guard: BlockBuster) -> Iterator[None]:
    """Fail whatever makes our code wait for a disk or a lock on a running event loop."""
    _guard.activate()
    yield
    _guard.deactivate()


@pytest.fixture(scope="session")
def etcd() -> Iterator[Etcd]:
    """An etcd of one member, for all tests of this process: each has a prefix of its own."""
    with running() as etcd:
        yield etcd


@pytest.fixture(scope="session")
def cluster() -> Iterator[Etcd]:
    """An etcd of three members, for all tests of this process; who ends one starts it again."""
    with running(3) as etcd:
        yield etcd


@pytest.fixture(autouse=True)
def _logs_end_with_their_test() -> Iterator[None]:
    """What a command sets up for its logs is undone: the next test's stderr is another."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
