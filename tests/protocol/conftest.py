"""The registry that the protocol's rows are shown on: in this process, and as a real one.

In this process it stands on fakes, and whatever blocks its loop fails.  As a real site it is a
gateway over SQLite, or two nodes over an etcd of three members, each request to the other gateway
than the one before.  Every test has a repository of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import count
from typing import Final

import aiohttp
import pytest

from node.config import Config
from tests.etcd import Etcd
from tests.nodes import nodes
from tests.registry import CONFIG, LAYER, Client, Served, image, served
from tests.sites import Site, running

_numbers: Final = count(1)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Site]]:
    """A gateway process over SQLite and files; it has to end well."""
    site = Site("fra", tmp_path_factory.mktemp("protocol") / "fra", programs=("gateway",))
    with running(site):
        yield [site]


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory: pytest.TempPathFactory, cluster: Etcd) -> Iterator[list[Site]]:
    """Two gateways and two replicators over an etcd of three members; they have to end well."""
    found = nodes("fra", tmp_path_factory.mktemp("protocol-etcd"), cluster)
    with running(*found):
        yield found


_PROCESSES: Final = {"process": "gateway", "etcd": "two_nodes"}


@pytest.fixture(
    params=["fakes", *(pytest.param(name, marks=pytest.mark.slow) for name in _PROCESSES)]
)
def process(request: pytest.FixtureRequest) -> Sequence[Site]:
    """The gateways that the test is about; none if it is the one in this process."""
    if request.param == "fakes":
        return ()
    found: list[Site] = request.getfixturevalue(_PROCESSES[request.param])
    return found


@pytest.fixture
def config() -> Config:
    """The configuration of the registry in this process; a module may have one of its own."""
    return Config()


@pytest.fixture
async def registry(process: Sequence[Site], config: Config) -> AsyncIterator[Client]:
    """A registry in which the test's repository is empty."""
    if not process:
        async with served(config) as registry:
            yield registry
        return
    port, *others = (site.port for site in process)
    async with aiohttp.ClientSession(auto_decompress=False) as client:
        yield Client(port, client, f"room{next(_numbers):05}/app", tuple(others))
    for site in process:
        site.show_logs()


@pytest.fixture
async def fakes() -> AsyncIterator[Served]:
    """An empty registry whose innards a test may look at and meddle with."""
    async with served() as registry:
        yield registry


@pytest.fixture
async def stocked(registry: Client) -> Client:
    """A registry whose repository holds the config and the layer of `image(LAYER)`."""
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    return registry


@pytest.fixture
async def filled(stocked: Client) -> Client:
    """A registry whose repository holds `image(LAYER)` as v1."""
    await stocked.push_manifest(image(LAYER), "v1")
    return stocked
