"""One real site for real clients, and what can be asked of it."""

from __future__ import annotations

import asyncio
import math
import shutil
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Final

import pytest
from oras.client import OrasClient

from tests.faults.registry import Registry
from tests.faults.stopped import check
from tests.faults.wanlink import WanLink, linked
from tests.ports import free_port
from tests.sites import Site, ended
from tests.waiting import eventually

MIB: Final = 1 << 20
BREAKS_AFTER: Final = 8 * MIB

_BREAKS_S: Final = 60.0
_PACE: Final = 32e6  # bytes/s


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A gateway of the module's own; sound when it is stopped."""
    folder = tmp_path_factory.mktemp("one-site")
    one = Site("fra", folder / "fra", programs=("gateway",))
    with ended(one):
        asyncio.run(one.start())
        yield one
        asyncio.run(one.stop_all())
        check(one)
    shutil.rmtree(folder)  # it may be gigabytes, which pytest would keep


@pytest.fixture
def oras(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OrasClient]:
    """Return a client of the `oras` library, which knows no login and no proxy of the machine."""
    monkeypatch.setenv("HOME", str(tmp_path))
    client = OrasClient(hostname=site.http, insecure=True)
    client.session.trust_env = False
    yield client
    client.session.close()


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow.  Logs are shown."""
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").show_logs()


@dataclass(frozen=True, slots=True)
class Front:
    """Where clients find the gateways of a site."""

    http: str
    gateways: Sequence[Site]

    @property
    def url(self) -> str:
        """The registry's URL."""
        return f"http://{self.http}"

    def show_logs(self) -> None:
        """See Site."""
        for gateway in self.gateways:
            gateway.show_logs()


@asynccontextmanager
async def fronted(gateways: Sequence[Site]) -> AsyncIterator[Front]:
    """One address of several gateways, or of one: each connection goes to the next of them."""
    if len(gateways) == 1:
        yield Front(gateways[0].http, gateways)
        return
    link = _InTurn(gateways[0].http, free_port())
    link.ports = cycle(gateway.port for gateway in gateways)
    await link.heal()
    try:
        yield Front(link.address, gateways)
    finally:
        await link.cut()


class _InTurn(WanLink):
    """A link whose connections end at one port after the other."""

    ports: Iterator[int]

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._target_port = next(self.ports)
        await super()._join(reader, writer)


async def whole(site: Site | Front, name: str) -> str:
    """Pull a name such as `127.0.0.1:5000/app:v1` with our own client, and return its digest.

    Raises:
        Broken: It is visible, and something that it needs is not there or has other bytes.
    """
    repository, _, tag = name.partition("/")[2].rpartition(":")
    async with Registry.at(site.url) as registry:
        digest = await registry.pull(repository, tag)
        assert digest is not None, f"{name} is not there"
        return digest


async def answered(site: Site | Front, endpoint: str, status: int) -> int:
    """How many requests to an endpoint were answered with a status, until now."""
    gateways = [site] if isinstance(site, Site) else site.gateways
    lines = [line for one in gateways for line in await asyncio.to_thread(_metrics, one)]
    name = f'entrepot_http_requests_total{{endpoint="{endpoint}",status="{status}"}} '
    return sum(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))


async def uploaded(site: Site | Front) -> int:
    """How many blobs were uploaded, until now."""
    return await answered(site, "finish-upload", 201)


async def mounted(site: Site | Front) -> int:
    """How many blobs were mounted from another repository, until now."""
    return await answered(site, "start-upload", 201)


@asynccontextmanager
async def broken_once(site: Site | Front) -> AsyncIterator[WanLink]:
    """A way to the site that breaks after `BREAKS_AFTER` bytes, and then takes connections again.

    Whoever sends or gets a much larger body over it is sure to be cut in the middle.
    """
    async with linked(site.http, free_port()) as link, asyncio.TaskGroup() as group:
        link.line.bytes_per_s = _PACE
        group.create_task(_break(link))
        yield link


async def _break(link: WanLink) -> None:
    await eventually(lambda: link.passed_bytes > BREAKS_AFTER, _BREAKS_S, "the body is under way")
    # podman tries a pull that was reset once more by itself, one that just ended it does not.
    await link.cut(reset=False)
    link.line.bytes_per_s = math.inf
    await link.heal()


def _metrics(site: Site) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.port + 2}/metrics", timeout=10) as answer:
        return str(answer.read(), "utf-8").splitlines()
