"""How long a page of a list takes, and a search, by how much the site holds.

Two sites hold the same, one in a file and one in an etcd of one member.  The keys are made by the
real transactions over a KV in memory and copied into both stores before the sites are started: a
hundred thousand pushes over HTTP would take longer than all else here.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import quantiles
from typing import Final
from urllib.parse import urlencode

from node.config_models import Etcd
from node.kv import KV, Put
from node.kv_sqlite import SqliteKV
from node.manifest import OCI_INDEX
from node.reference import Repository
from tests import etcd
from tests.bench.bulk import put_all
from tests.bench.connection import Connection, UnexpectedAnswerError
from tests.bench.servers import Server, peak_bytes
from tests.fake_kv import MemoryKV
from tests.model import Model, index_body
from tests.sites import Site, ended

SIZES: Final = (1_000, 10_000, 100_000)
SQLITE: Final = "sqlite"
ETCD: Final = "etcd"
PAGE: Final = 1_000
RESULTS: Final = 25
_LEAST: Final = 20
_TAGGED: Final = Repository("bench/tags")
_AT_ONCE: Final = 1_000
_TTL_S: Final = 3600.0
# Quota: etcd's own default is 2 GiB; what must fit is some 2.5 million keys.
_QUOTA: Final = f"--quota-backend-bytes={8 << 30}"


@dataclass(frozen=True, slots=True)
class Times:
    """How long each of some requests took, at a site that holds `size` of what they list."""

    store: str
    name: str
    size: int
    seconds: tuple[float, ...]

    def percentile(self, number: int) -> float:
        """In seconds; number is 1 to 99."""
        if len(self.seconds) == 1:
            return self.seconds[0]
        return quantiles(self.seconds, n=100, method="inclusive")[number - 1]


@dataclass(frozen=True, slots=True)
class _Request:
    """One workload: what is asked for, and what the answer's first and last name must be."""

    name: str
    target: str
    member: str
    names: Sequence[str]

    def check(self, connection: Connection) -> None:
        """Ask once, and look at the answer.

        Raises:
            UnexpectedAnswerError: It has other names.
        """
        body = bytearray()
        connection.exchange("GET", self.target, expect=200, sink=body.extend)
        listed = json.loads(body)[self.member]
        found = [one["name"] if isinstance(one, dict) else one for one in listed]
        if found != list(self.names):
            raise UnexpectedAnswerError(f"{self.target}: {len(found)} names, {found[:3]} first")

    def time(self, connection: Connection) -> float:
        """Ask once; how long it took, in seconds."""
        began = time.perf_counter()
        connection.exchange("GET", self.target, expect=200)
        return time.perf_counter() - began


@dataclass(frozen=True, slots=True)
class Filled:
    """The gateways over each store, by its name, and the process of the etcd."""

    servers: Mapping[str, Server]
    etcd_pid: int

    @property
    def peaks(self) -> dict[str, int]:
        """The most memory that each process has held; of etcd's, its mapped file is a part."""
        gateways = {f"over {name}": one.peak_bytes for name, one in self.servers.items()}
        return {**gateways, "etcd itself": peak_bytes(self.etcd_pid)}


@contextmanager
def filled(folder: Path, size: int) -> Iterator[Filled]:
    """Sites of so many tags and repositories, and as many dead ones of each between them."""
    with etcd.running(1, _QUOTA) as store:
        settings = {"metadata": {"etcd": {"endpoints": [f"http://{store.endpoints[0]}"]}}}
        sites = {
            SQLITE: Site("lists", folder / SQLITE, programs=("gateway",)),
            ETCD: Site("lists", folder / ETCD, settings, programs=("gateway",)),
        }
        with ended(*sites.values()):
            asyncio.run(_fill(sites, store, size))
            servers = {
                name: Server(name, site.port, site.pid("gateway"), site.blobs)
                for name, site in sites.items()
            }
            yield Filled(servers, store.pid(0))


def measure(store: Filled, size: int, seconds: int, advance: Callable[[], None]) -> list[Times]:
    """Ask for each page over and over for some seconds, and for the first search once.

    Each is asked at both sites before the next.

    Raises:
        UnexpectedAnswerError: A page does not hold what it must.
    """
    requests = _requests(size)
    cold = next(request for request in requests if request.member == "results")
    with ExitStack() as stack:
        sites = {
            name: stack.enter_context(server.connect()) for name, server in store.servers.items()
        }
        first = [
            Times(name, "search, the first", size, (cold.time(connection),))
            for name, connection in sites.items()
        ]
        times = []
        for request, (name, connection) in product(requests, sites.items()):
            request.check(connection)
            end = time.monotonic() + seconds
            taken: list[float] = []
            while len(taken) < _LEAST or time.monotonic() < end:
                taken.append(request.time(connection))
            times.append(Times(name, request.name, size, tuple(taken)))
            advance()
    return [*times, *first]


def _requests(size: int) -> list[_Request]:
    """All workloads; the first of the searches finds every repository but one."""
    tags, names = _tags(size), _repositories(size)
    everything = sorted([_TAGGED, *names])

    def tag_page(name: str, shown: Sequence[str], **query: str) -> _Request:
        target = f"/v2/{_TAGGED}/tags/list?{urlencode({'n': PAGE, **query})}"
        return _Request(f"tags, {name} page", target, "tags", shown)

    def catalog_page(name: str, shown: Sequence[str], **query: str) -> _Request:
        target = f"/v2/_catalog?{urlencode({'n': PAGE, **query})}"
        return _Request(f"catalog, {name} page", target, "repositories", shown)

    def search(name: str, term: str, shown: Sequence[str]) -> _Request:
        target = f"/v1/search?{urlencode({'q': term, 'n': RESULTS})}"
        return _Request(f"search, {name}", target, "results", shown)

    return [
        tag_page("first", tags[:PAGE]),
        tag_page("last", tags[-PAGE + 1 :], last=tags[-PAGE]),
        catalog_page("first", everything[:PAGE]),
        catalog_page("last", everything[-PAGE + 1 :], last=everything[-PAGE]),
        search("all match", "service", sorted(names)[:RESULTS]),
        search("one matches", names[-1], names[-1:]),
        search("none matches", "nowhere", []),
    ]


def _tags(size: int) -> list[str]:
    return [f"v{number:06}" for number in range(size)]


def _repositories(size: int) -> list[str]:
    return [f"team{number % 97:02}/service-{number:06}" for number in range(size - 1)]


async def _fill(sites: Mapping[str, Site], store: etcd.Etcd, size: int) -> None:
    for site in sites.values():
        site.folder.mkdir(parents=True)
    file = await SqliteKV.open(sites[SQLITE].metadata)
    async with etcd.opened(*store.endpoints, at=Etcd.model_fields["prefix"].default.encode()) as kv:
        tags, names = _tags(size), _repositories(size)
        # By parts: a sorted list of all keys in memory would take longer with every key.
        for start in range(0, size, _AT_ONCE):
            model = Model(MemoryKV(pause=_at_once), site=f"fra#{start}")
            await _fill_tags(model, tags[start : start + _AT_ONCE])
            await _fill_repositories(model, names[start : start + _AT_ONCE])
            for to in (file, kv):
                await _copy(model.kv, to)
    await file.close()
    for site in sites.values():
        await site.start()


async def _fill_tags(model: Model, tags: list[str]) -> None:
    """Live tags as they are named, and behind each a dead one."""
    for suffix in ("", "-dead"):
        body = index_body([], annotations={"of": f"{tags[0]}{suffix}"})
        named = [f"{tag}{suffix}" for tag in tags]
        digest = await model.push(body, *named, repository=_TAGGED, media_type=OCI_INDEX)
        if suffix:
            await model.metadata.delete_manifest(_TAGGED, digest, None)


async def _fill_repositories(model: Model, names: list[str]) -> None:
    """Live repositories that say what they are, and behind each a dead one."""
    for number, name in enumerate(names):
        body = index_body(
            [],
            annotations={
                "org.opencontainers.image.title": f"Books {number}",
                "org.opencontainers.image.description": f"Keeps the books of department {number}",
            },
        )
        await model.push(body, "v1", repository=Repository(name), media_type=OCI_INDEX)
        dead = Repository(f"{name}-dead")
        digest = await model.push(body, "v1", repository=dead, media_type=OCI_INDEX)
        await model.metadata.delete_manifest(dead, digest, None)


async def _copy(source: MemoryKV, kv: KV) -> None:
    """Put all that one KV holds into another, what was bound to some lease bound to one there."""
    lease = await kv.grant(_TTL_S)
    bound = source._stored.bound
    await put_all(
        kv, [Put(k, v, lease if k in bound else None) for k, v in source.entries().items()]
    )


async def _at_once() -> None:
    """Nobody else is at work."""
