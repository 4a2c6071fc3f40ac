"""One simulated site: the real transactions, planner and apply, over a KV and blobs in memory.

Its clients, its collector and its followers are coroutines that the world drives by hand, one
`pause` at a time.  Blob bytes are only remembered as present; records, pins and references are the
real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol, TypeVar

from node import keys
from node.blob_transactions import Copy, blob_ranges, finish_upload, hide, mount, standing, visible
from node.blobs import Generation, SessionId
from node.change import Change
from node.clearing import clear, forget
from node.conflicts import Conflict
from node.digest import Digest
from node.errors import BlobUnknown
from node.keys import ManifestName, Name
from node.kv import (
    Delete,
    Empty,
    Entry,
    Exists,
    Guard,
    Modified,
    Ok,
    Op,
    Range,
    Unknown,
    only,
    prefix,
)
from node.manifest_transactions import Push
from node.metadata import Metadata
from node.records import UploadSession
from node.reference import Repository, Tag
from node.replica import Replica
from node.scans import Scans
from node.staging import Staging
from node.stamps import Decider, Stamps
from node.transaction import Transaction, gaps
from node.wire import codec
from tests.clock import Clock
from tests.fake_kv import MemoryKV
from tests.scenario.checker import decode_register, parse_register, require
from tests.scenario.images import BY_DIGEST, CONTENT, Image

R = TypeVar("R")


async def at_once(work: Callable[[], R], /) -> R:
    """See InThread: there are no threads here."""
    return work()


class Network(Protocol):
    """What a site asks of the world around it."""

    def peers(self, site: SimSite) -> Sequence[SimSite]:
        """The other sites, in a random order."""

    def reach(self, site: SimSite, other: SimSite) -> None:
        """Raise PeerUnavailable if the link, this way, is cut."""

    def chance(self, share: float) -> bool:
        """Throw dice."""

    def fails(self) -> bool:
        """Whether something that may fail does."""

    async def pause(self) -> None:
        """Let anything else happen."""


class SimSite:
    """One site and all that runs there."""

    def __init__(
        self,
        name: str,
        kv: MemoryKV,
        clock: Clock,
        network: Network,
        kept_from: frozenset[str],
        *,
        grace_ms: int,
        chunk: int,
    ) -> None:
        self.name = name
        # The peers whose deletes are not taken.
        self.kept_from = kept_from
        self._grace_ms = grace_ms
        self._chunk = chunk
        self.kv = kv
        self.clock = clock
        self.files: set[tuple[Digest, Generation]] = set()
        self._network = network
        self._ids = count()
        self.life = 1
        self.start()

    def start(self) -> None:
        """Begin, or begin again after a crash: only the KV and the files are as they were."""
        stamps = Stamps(self.kv, self.actor, grace_ms=self._grace_ms, clock_ms=self.clock)
        self.decider = Decider(self.kv, self.kv, stamps)
        self.staging = Staging(
            self.decider,
            new_id=self.new_id,
            chunk=self._chunk,
            pause=lambda _: self._network.pause(),
        )
        self.metadata = Metadata(self.decider, self.staging, new_id=self.new_id)
        self.replica = Replica(self.decider, self.staging, new_id=self.new_id)
        self._scans: dict[str, Scans] = {}

    def scans(self, lane: str) -> Scans:
        """The scans of the process that runs since the site began, one of each lane at a time."""
        if lane not in self._scans:
            self._scans[lane] = Scans(self.kv, in_thread=at_once, clock=self.clock, page=4)
        return self._scans[lane]

    @property
    def actor(self) -> str:
        """Who writes: this life of the site."""
        return f"{self.name}#{self.life}"

    def new_id(self) -> str:
        """An id of this site."""
        return f"{self.name}{next(self._ids)}"

    # --- what is here, at this moment

    def registers(self, after: int = 0) -> list[Change]:
        """The replicated keys that were written after a revision, in revision order."""
        stored = self.kv._stored
        start, end, _ = keys.REPLICATED
        entries = [e for e in stored.within(start, end) if e.modified > after]
        return [_change(e) for e in sorted(entries, key=lambda e: (e.modified, e.key))]

    def register(self, name: Name) -> Change | None:
        """One of them."""
        entry = self.kv._stored.rows.get(keys.register(name))
        return None if entry is None else _change(entry)

    @property
    def revision(self) -> int:
        """The KV's revision."""
        return self.kv._stored.revision

    # --- blobs

    async def sees(self, repository: Repository, digest: Digest) -> bool:
        """HEAD of a blob; a client that is told so does not upload it."""
        seen = await self.decider.look(blob_ranges(repository, digest))
        return visible(seen, repository, digest) is not None

    async def stage(self, repository: Repository, digest: Digest) -> Copy:
        """Store bytes under a session, for a transaction that will name them."""
        session = SessionId(self.new_id())
        value = codec.encode_session(UploadSession(repository, (), self.clock() + self._grace_ms))

        await self.decide(repository, lambda txn: txn.put(keys.session(session), value))
        generation = Generation(session)
        self.files.add((digest, generation))
        await self._network.pause()
        return Copy(session, generation, len(CONTENT[digest]))

    async def upload(self, repository: Repository, digest: Digest) -> None:
        """A whole upload: bytes, then T1."""
        copy = await self.stage(repository, digest)
        ranges = [only(keys.session(copy.session)), only(keys.blob(digest))]
        op = self.new_id()

        def decision(txn: Transaction) -> bool:
            return finish_upload(txn, digest, copy, frozenset(), op)

        await self.decider.decide(repository, lambda: self.decider.look(ranges), decision, op)
        await self.discard(digest, copy)

    async def discard(self, digest: Digest, copy: Copy) -> None:
        """Drop the copy if no record names it."""
        seen = await self.decider.look([only(keys.blob(digest))])
        record = standing(seen, digest)
        if record is None or record.generation != copy.generation:
            self.files.discard((digest, copy.generation))

    async def adopt(self, repository: Repository, digest: Digest) -> bool:
        """Pin what the site has; False if it has it not."""

        def decision(txn: Transaction) -> None:
            mount(txn, digest, None)

        try:
            await self.decide(repository, decision, [only(keys.blob(digest))])
        except BlobUnknown:
            return False
        return True

    async def decide(
        self,
        repository: Repository,
        decision: Callable[[Transaction], None],
        ranges: Sequence[Range] = (),
    ) -> None:
        """Decide something on some ranges; see Decider.decide."""
        await self.decider.decide(repository, lambda: self.decider.look(ranges), decision)

    def holds(self, digest: Digest) -> bool:
        """Whether the site has the bytes that its record names."""
        entry = self.kv._stored.rows.get(keys.blob(digest))
        return entry is not None and (
            (digest, codec.decode_blob(entry.value).generation) in self.files
        )

    # --- clients

    async def push(
        self, repository: Repository, image: Image, tags: tuple[Tag, ...], op: str
    ) -> None:
        """Push as clients do: blobs that are not there, children that are not there, manifest."""
        for blob in image.blobs:
            if not await self.sees(repository, blob):
                await self.upload(repository, blob)
        copy = await self.stage(repository, image.digest)
        push = Push(repository, image.digest, len(image.body), image.manifest, tags, op)
        await self.metadata.commit(push, copy)
        await self.discard(image.digest, copy)

    async def resolve(self, conflict: Conflict, image: Image, op: str) -> None:
        """Let a tag show an image that is here, in place of the siblings that were seen."""
        repository, tags, size = conflict.repository, (conflict.tag,), len(image.body)
        push = Push(repository, image.digest, size, image.manifest, tags, op)
        await self.metadata.commit(replace(push, resolves=conflict.dots))

    async def hide(self, repository: Repository, digest: Digest) -> None:
        """DELETE of a blob: T6."""
        ranges, op = blob_ranges(repository, digest), self.new_id()
        await self.decider.decide(
            repository, lambda: self.decider.look(ranges), lambda txn: hide(txn, digest, op), op
        )

    async def mount(self, target: Repository, source: Repository, digest: Digest) -> None:
        """Mount a blob from another repository: T2."""
        ranges = blob_ranges(source, digest)
        await self.decide(target, lambda txn: mount(txn, digest, source), ranges)

    async def pushed(self, repository: Repository, image: Image) -> bool:
        """HEAD of a manifest."""
        name = ManifestName(repository, image.digest)
        return (await self.replica.manifest(name, None)).register.live

    # --- helpers of the site

    async def tidy(self) -> None:
        """What the collect duty does about dead manifests that a crash left half cleared."""
        for change in self.registers():
            if isinstance(change.name, ManifestName) and not change.register.live:
                held = await self.replica.manifest(change.name, None)
                if held.uncleared:
                    repository, digest = change.name
                    known = BY_DIGEST[digest].manifest
                    await clear(self.decider, repository, digest, known)
        await self.staging.sweep(self.clock() + 1)
        seen = await self.decider.look([keys.CATALOG])
        for entry in seen.entries(keys.CATALOG):
            await forget(self.decider, keys.repository_name(entry.key))

    async def collect(self) -> None:
        """T5 for each pin that has run out."""
        within = prefix(b"u/")
        for entry in (await self.decider.look([within])).entries(within):
            if codec.decode_pin(entry.value).expires_ms <= self.clock():
                await self._collect(entry)

    async def _collect(self, pin: Entry) -> None:
        digest = Digest.take(pin.key, 2)[0]
        pins, references = prefix(b"u/" + digest.packed), prefix(b"r/" + digest.packed)
        blob = only(keys.blob(digest))
        seen = await self.decider.look([pins, references, blob])
        (record,) = seen.entries(blob) or (None,)
        others = [e.key for e in (*seen.entries(pins), *seen.entries(references))]
        if pin.key in others:
            others.remove(pin.key)
        guards: list[Guard] = [Modified(pin.key, pin.modified)]
        ops: list[Op] = [Delete(pin.key)]
        if others:
            guards.append(Exists(others[0]))
        else:
            guards += [*gaps(pins, [pin.key]), Empty(references.start, references.end)]
            guards.append(seen.guard(blob.start))
            ops.append(Delete(blob.start))
        outcome = await self.kv.txn(guards, ops)
        if others or record is None:
            return
        if isinstance(outcome, Unknown):
            gone = not (await self.decider.look([blob])).entries(blob)
        else:
            gone = isinstance(outcome, Ok)
        if gone:
            await self._network.pause()
            self.files.discard((digest, codec.decode_blob(record.value).generation))

    # --- the Bodies of replicator.apply

    async def read(self, digest: Digest) -> bytes | None:
        """See replicator.apply.Bodies."""
        await self._network.pause()
        return CONTENT[digest] if self.holds(digest) else None

    async def find(self, repository: Repository, digest: Digest) -> bytes | None:
        """See replicator.apply.Bodies; no file is ever left without a record that names it."""
        del repository
        return await self.read(digest)

    async def store(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """See replicator.apply.Bodies."""
        require(CONTENT[digest] == body, "{} was sent wrong bytes", self.name)
        await self.upload(repository, digest)


def _change(entry: Entry) -> Change:
    name = parse_register(entry.key)
    assert name is not None
    register = decode_register(entry.value)
    # Small bodies travel in the change; of half of the images they are not small.
    body = None
    if isinstance(name, ManifestName) and register.live and name.digest.raw[0] % 2:
        body = CONTENT[name.digest]
    return Change(name, register, entry.modified, body)
