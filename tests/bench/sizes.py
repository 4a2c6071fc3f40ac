"""How many bytes of metadata a thing takes: what stays, what goes by itself, and when.

The real transactions make many of each thing over a KV in memory.  What is there at the end is put
into an etcd of one member; and all that they wrote is written again, transaction by transaction:
what its file is larger for is history.
"""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count as counter
from pathlib import Path
from typing import Final, TypeAlias, TypeVar

from node.digest import Digest
from node.kv import Guard, Lease, Ok, Op, Put
from node.kv_etcd import EtcdKV
from node.kv_etcd_members import Gone
from node.kv_sqlite import SqliteKV
from node.reference import Repository, Tag
from tests import etcd
from tests.bench.bulk import put_all
from tests.fake_kv import MemoryKV
from tests.model import Model, chunks, image_body

COUNT: Final = 1_000
_REPOSITORY: Final = Repository("team/application")
_LAYERS: Final = 10
_NEW: Final = 3

Write: TypeAlias = Sequence[Op]
OpT = TypeVar("OpT", bound=Op)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes for each of `count` things; keys, and bytes of keys and values, are of what stays.

    `operations` and `events` are in etcd beside it until their leases end (2 and 78 h), `history`
    until it is compacted.
    """

    name: str
    count: int
    keys: float
    raw: float
    etcd: float
    sqlite: float
    operations: float
    events: float
    history: float


class _Site(Model):
    """A site that names things as a real one does, and remembers what was written."""

    def __init__(self) -> None:
        self.written: list[Write] = []
        self._contents = counter()
        self._before: Set[bytes] = frozenset()
        super().__init__(MemoryKV(faults=self._remember), site=f"fra#{uuid.uuid4()}")

    def new_id(self) -> str:
        """As long as a real one."""
        return str(uuid.uuid4())

    def _remember(self, _guards: Sequence[Guard], ops: Write) -> None:
        self.written.append(ops)

    @property
    def leases(self) -> dict[Lease, float]:
        """Its leases, and how many seconds each lasts."""
        return {lease: ttl_s for lease, (ttl_s, _) in self.kv._stored.leases.items()}

    async def blob(self) -> Digest:
        """Push a new blob as docker does: POST, PATCH, PUT."""
        # Of two bytes: that is what `tests.model` says of blobs that it was not given.
        content = next(self._contents).to_bytes(2, "big")
        upload = await self.uploads.start(_REPOSITORY)
        upload = await self.uploads.append(upload, chunks(content))
        digest = Digest.of(content)
        await self.uploads.finish(upload, digest)
        return digest

    async def new(self, count: int) -> list[Digest]:
        """Push so many blobs."""
        return [await self.blob() for _ in range(count)]

    async def manifest(self, number: int, blobs: Sequence[Digest], *tags: str) -> Digest:
        """Push the manifest of an image of these blobs, the config first."""
        body = image_body(*blobs, annotations={"number": str(number)})
        return await self.push(body, *tags, repository=_REPOSITORY)

    def begin(self) -> None:
        """What was written so far is not to be measured."""
        self.written.clear()
        self._before = self.kv.entries().keys()

    def only(self, start: bytes) -> None:
        """Just the keys that begin so are to be measured, each as if it were put alone."""
        entries = self.kv.entries()
        puts = [Put(key, value) for key, value in entries.items() if key.startswith(start)]
        self.written = [[put] for put in puts]
        self._before = entries.keys() - {put.key for put in puts}

    def puts(self, ttl_s: float | None) -> list[Put]:
        """What is to be measured and there at the end, under leases that last so long or none."""
        bound, leases = self.kv._stored.bound, self.leases
        return [
            Put(key, value, bound.get(key))
            for key, value in self.kv.entries().items()
            if key not in self._before and ttl_s == (leases[bound[key]] if key in bound else None)
        ]


# --- the things


async def _blobs(site: _Site, count: int) -> None:
    await site.new(count)


async def _manifests(site: _Site, count: int, layers: int) -> None:
    blobs = await site.new(1 + layers)
    site.begin()
    for number in range(count):
        await site.manifest(number, blobs)


async def _tags(site: _Site, count: int) -> None:
    blobs = await site.new(1 + _LAYERS)
    await site.manifest(0, blobs)
    site.begin()
    for number in range(count):
        await site.manifest(0, blobs, _tag(number))


async def _images(site: _Site, count: int) -> None:
    shared = await site.new(_LAYERS - _NEW)
    site.begin()
    for number in range(count):
        config, *new = await site.new(1 + _NEW)
        await site.manifest(number, [config, *shared, *new], _tag(number))


async def _dead_manifests(site: _Site, count: int) -> None:
    blobs = await site.new(1 + _LAYERS)
    for number in range(count):
        digest = await site.manifest(number, blobs)
        await site.metadata.delete_manifest(_REPOSITORY, digest, None)
    site.only(b"M/")


async def _dead_tags(site: _Site, count: int) -> None:
    await _tags(site, count)
    for number in range(count):
        await site.metadata.delete_tag(_REPOSITORY, Tag(_tag(number)))
    site.only(b"T/")


def _tag(number: int) -> str:
    return f"v1.20260101.{number:06}"


THINGS: Final[Mapping[str, Callable[[_Site, int], Coroutine[None, None, None]]]] = {
    "blob": _blobs,
    "manifest of 1 layer": partial(_manifests, layers=1),
    "manifest of 10 layers": partial(_manifests, layers=10),
    "manifest of 50 layers": partial(_manifests, layers=50),
    "tag": _tags,
    "image, 3 of 10 layers new": _images,
    "tombstone of a manifest": _dead_manifests,
    "tombstone of a tag": _dead_tags,
}


# --- the stores


def measure(folder: Path, count: int, advance: Callable[[], None]) -> list[Sizes]:
    """Make and weigh so many of each thing, one thing after the other."""
    found = []
    with etcd.running() as store:
        for number, (name, make) in enumerate(THINGS.items()):
            site = _Site()
            asyncio.run(make(site, count))
            weights = asyncio.run(_weigh(site, store, number))
            stays = site.puts(None)
            raw = sum(len(put.key) + len(put.value) for put in stays)
            file = asyncio.run(_file_bytes(folder / f"sizes-{number}.db", stays))
            sums = (len(stays), raw, weights[0], file, *weights[1:])
            found.append(Sizes(name, count, *(one / count for one in sums)))
            advance()
    return found


async def _weigh(site: _Site, store: etcd.Etcd, number: int) -> tuple[int, int, int, int]:
    """What stays in an etcd, what for 2 h, what for 78 h, and what until it is compacted."""
    # As long as the prefix that a site has if it is given no other.
    latest, whole = f"/bench-{number:02}/".encode(), f"/whole-{number:02}/".encode()
    async with etcd.opened(*store.endpoints, at=latest) as kv:
        granted = {lease: await kv.grant(ttl_s) for lease, ttl_s in site.leases.items()}
        stays, operations, events = [
            await _growth(kv, put_all(kv, [_under(granted, put) for put in site.puts(ttl_s)]))
            for ttl_s in (None, *sorted(site.leases.values()))
        ]
    async with etcd.opened(*store.endpoints, at=whole) as kv:
        written = await _growth(kv, _replay(site, kv, granted))
    return stays, operations, events, written - stays - operations - events


async def _growth(kv: EtcdKV, writing: Awaitable[None]) -> int:
    """How many bytes some writing adds, all revisions of it, with nothing wasted."""
    with suppress(Gone):  # there is nothing to compact
        await etcd.compact(kv)
    before = await _used(kv)
    await writing
    return await _used(kv) - before


async def _replay(site: _Site, kv: EtcdKV, granted: Mapping[Lease, Lease]) -> None:
    """Write what the site has written, each transaction by itself."""
    for ops in site.written:
        outcome = await kv.txn([], [_under(granted, op) for op in ops])
        assert isinstance(outcome, Ok), outcome


def _under(granted: Mapping[Lease, Lease], op: OpT) -> OpT:
    """The same under the lease that was granted for its own."""
    if isinstance(op, Put) and op.lease is not None:
        return op._replace(lease=granted[op.lease])
    return op


async def _used(kv: EtcdKV) -> int:
    await etcd.defragment(kv)
    (member,) = await kv.members()
    return member.used_bytes


async def _file_bytes(path: Path, puts: Sequence[Put]) -> int:
    """What some keys add to an empty file of the SQLite KV, with nothing wasted."""
    kv = await SqliteKV.open(path)
    await kv.close()
    empty = _vacuumed(path)
    kv = await SqliteKV.open(path)
    await put_all(kv, puts)
    await kv.close()
    return _vacuumed(path) - empty


def _vacuumed(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
        ((pages,),) = connection.execute("PRAGMA page_count")
        ((size,),) = connection.execute("PRAGMA page_size")
    return int(pages) * int(size)
