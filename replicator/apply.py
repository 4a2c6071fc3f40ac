"""Apply a peer's change: look, plan one step, do it, and look again until nothing is left.

What arrives may be late, stale, doubled or out of order; what is here may change at any moment
between a look and a write.  Every write is guarded by what was seen, so a step that has become
wrong does not land and is planned anew.  A change that can't be applied yet is parked by the
caller, with all of its repository (RELIABILITY 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeAlias, assert_never

from node.change import Change
from node.digest import Digest
from node.errors import (
    BlobDamaged,
    BlobUnknown,
    ManifestInvalid,
    ManifestReferencesUnknown,
    PeerLied,
    PeerUnavailable,
    RegistryError,
    StorageFailed,
    StorageFull,
)
from node.keys import ManifestName, Name, TagName
from node.manifest import Descriptor, Manifest, parse_manifest
from node.reference import Repository
from node.replica import HeldManifest, Landed, Replica
from replicator.plan import (
    ApplyManifest,
    ApplyTag,
    Ask,
    Bury,
    Clear,
    Done,
    FetchBody,
    Keep,
    ManifestStep,
    Step,
    TagStep,
    Transfer,
    Wait,
    plan_manifest,
    plan_tag,
)

# Steps for one change. An attempt that is lost means that somebody else's write landed.
_STEPS: Final = 64
# Changes asked for on behalf of changes asked for …: an index of indexes of indexes is two deep.
_DEPTH: Final = 8

# What parks a change; a metadata KV that does not answer is the caller's, who could not park.
_PARKS: Final = (
    PeerUnavailable,
    PeerLied,
    ManifestInvalid,
    ManifestReferencesUnknown,
    BlobUnknown,
    BlobDamaged,
    StorageFull,
    StorageFailed,
)


class Source(Protocol):
    """The site that told the change."""

    async def keys(self, names: Sequence[Name]) -> Mapping[Name, Change | None]:
        """Its present registers of these names; None for those that it has none of.

        Raises:
            PeerUnavailable: No answer.
        """
        ...

    async def body(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """A manifest's body, verified.

        Raises:
            PeerUnavailable: No answer, or it has it no more.
            PeerLied: It sent something else.
        """
        ...


class Blobs(Protocol):
    """Brings blobs of any size here."""

    async def ensure(self, repository: Repository, descriptors: Sequence[Descriptor]) -> None:
        """Make each of these visible in the repository: pinned if it is here, else fetched.

        Raises:
            PeerUnavailable: Nobody reachable has one of them.
            PeerLied: Something else was sent.
            StorageFull, StorageFailed: The blob store can't take it.
        """
        ...


class Bodies(Protocol):
    """The bodies of manifests: small blobs that are read here."""

    async def read(self, digest: Digest) -> bytes | None:
        """A body, verified, if the site has a sound copy of it."""
        ...

    async def find(self, repository: Repository, digest: Digest) -> bytes | None:
        """As `read`; of what only a file is left, that is made a blob, pinned in the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it, or can't be read.
        """
        ...

    async def store(self, repository: Repository, digest: Digest, body: bytes) -> None:
        """Make a verified body a blob of the site, pinned in the repository.

        Raises:
            StorageFull, StorageFailed: The blob store can't take it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Applied:
    """The change, and all that it says, is applied here, or was `before`."""

    before: bool = False


@dataclass(frozen=True, slots=True)
class Parked:
    """The change can't be applied yet, for this reason; nothing of it is shown.

    `everywhere`: the reason is the peer's or this site's, so other changes will fail with it too.
    """

    reason: str
    everywhere: bool = False


Result: TypeAlias = Applied | Parked


@dataclass(slots=True)
class _Work:
    """What is known about one change in work.

    `late` says what of the asked-for did not apply; `media_type` is what a manifest was here while
    it lived.
    """

    change: Change
    depth: int
    told: dict[Name, Change | None] = field(default_factory=dict)
    manifest: Manifest | None = None
    media_type: str | None = None
    late: Parked | None = None


class Apply:
    """Applies the changes of one source at one site; concurrency is the caller's.

    Without `deletes` the site keeps what the source deletes.
    """

    def __init__(
        self,
        replica: Replica,
        source: Source,
        blobs: Blobs,
        bodies: Bodies,
        *,
        deletes: bool = True,
    ) -> None:
        self._replica = replica
        self._source = source
        self._blobs = blobs
        self._bodies = bodies
        self._deletes = deletes

    async def apply(self, change: Change, body: Manifest | None = None) -> Result:
        """Apply a change, and first what it needs; the same change again does nothing.

        `body` is what `prepare` answered, if it was asked.

        Raises:
            MetadataUnavailable: This site's KV does not answer; apply it again.
        """
        try:
            return await self._apply(_Work(change, 0, manifest=body))
        except _PARKS as err:
            return Parked(str(err), _everywhere(err))

    async def prepare(self, change: Change) -> Manifest | None:
        """Bring the bytes that a change of a manifest needs before its turn; the body, if known.

        Nothing is shown of it, and it may be in vain; what can't be brought, its turn tells.
        """
        work = _Work(change, 0)
        if isinstance(change.name, ManifestName):
            with suppress(RegistryError):
                for _ in ("its body", "its blobs"):
                    held, step = await self._look(change.name, work)
                    if not isinstance(step, FetchBody | Transfer):
                        break
                    if isinstance(step, FetchBody) and held.body_here:
                        break  # and the rest, most likely
                    await self._bring(change.name, step, work)
        return work.manifest

    async def _apply(self, work: _Work) -> Result:
        if work.depth > _DEPTH:
            return Parked("indexes are nested too deep")
        for number in range(_STEPS):
            match await self._round(work):
                case Done():
                    return Applied(before=not number)
                case Clear() | Landed.APPLIED:
                    return Applied()
                case Wait(reason=reason):
                    return _parked(reason, work.late)
                case _:
                    continue
        return Parked("it changes faster than it can be applied")

    # --- one round: look, plan, do

    async def _round(self, work: _Work) -> Step | Landed:
        """One step, and whether it has landed where nothing is left to do after it."""
        match work.change.name:
            case ManifestName() as manifest:
                return await self._manifest(manifest, work)
            case TagName() as tag:
                return await self._tag(tag, work)

    async def _manifest(self, name: ManifestName, work: _Work) -> ManifestStep | Landed:
        held, step = await self._look(name, work)
        match step:
            case Done() | Wait():
                pass
            case FetchBody() | Transfer():
                await self._bring(name, step, work)
            case Ask(names=names):
                await self._ask(names, work)
            case ApplyManifest(merged=merged):
                return await self._replica.apply_manifest(name, held, merged)
            case _:
                await self._tidy(name, held, step, work)
        return step

    async def _look(self, name: ManifestName, work: _Work) -> tuple[HeldManifest, ManifestStep]:
        held = await self._replica.manifest(name, work.manifest)
        if (shown := held.register.shown()) is not None:
            work.media_type = shown.media_type
        return held, plan_manifest(name, work.change, held, work.told, deletes=self._deletes)

    async def _bring(self, name: ManifestName, step: FetchBody | Transfer, work: _Work) -> None:
        match step:
            case FetchBody():
                work.manifest = await self._body(name, step, work.change)
            case Transfer(descriptors=descriptors):
                await self._blobs.ensure(name.repository, descriptors)

    async def _tidy(
        self, name: ManifestName, held: HeldManifest, step: Bury | Keep | Clear, work: _Work
    ) -> None:
        """Try a write once; whether it landed, and what is left to do, shows at the next look."""
        match step:
            case Bury(merged=merged):
                await self._replica.bury(name, held, merged)
            case Keep(merged=merged):
                await self._replica.keep(name, held, merged)
            case Clear():
                await self._replica.clear(name, await self._dead(name.digest, work))
            case _:
                assert_never(step)

    async def _tag(self, name: TagName, work: _Work) -> TagStep | Landed:
        held = await self._replica.tag(name, work.change.register)
        step = plan_tag(name, work.change, held, work.told, deletes=self._deletes)
        match step:
            case Done() | Wait():
                pass
            case Ask(names=names):
                await self._ask(names, work)
            case ApplyTag(merged=merged, gone=gone):
                return await self._replica.apply_tag(name, held, merged, gone)
            case _:
                assert_never(step)
        return step

    # --- what a change needs

    async def _body(self, name: ManifestName, step: FetchBody, change: Change) -> Manifest:
        sent = change.body
        body = await self._bodies.find(name.repository, name.digest)
        if body is None:
            if sent is not None and Digest.of(sent, name.digest.algorithm) == name.digest:
                body = sent
            else:
                body = await self._source.body(name.repository, name.digest, step.size)
            await self._bodies.store(name.repository, name.digest, body)
        for value in change.register.siblings.values():
            if value.size != len(body):
                # Told on it would be believed: other sites ask for a body of that length.
                raise ManifestInvalid(f"it has {len(body)} bytes, and is said to have {value.size}")
        return parse_manifest(body, step.media_type)

    async def _dead(self, digest: Digest, work: _Work) -> Manifest | None:
        """What a dead manifest referred to, as far as its body still shows it."""
        body = await self._bodies.read(digest)
        if body is None:
            return None
        try:
            return parse_manifest(body, work.media_type)
        except ManifestInvalid:
            # Its media type died with it, and without that not every body says what it is: its
            # references stay until they are rebuilt, but it must not hold up its repository.
            return None

    async def _ask(self, names: Sequence[Name], work: _Work) -> None:
        """Ask the source, and apply what it tells; what does not apply is seen at the next look."""
        answers = await self._source.keys(names)
        for name in names:
            answer = answers.get(name)
            work.told[name] = answer
            if answer is None:
                continue
            result = await self._apply(_Work(answer, work.depth + 1))
            if isinstance(result, Parked):
                work.late = result


def _parked(reason: str, late: Parked | None) -> Parked:
    return Parked(f"{reason}: {late.reason}", late.everywhere) if late else Parked(reason)


def _everywhere(error: Exception) -> bool:
    """Whether other changes will fail for the same reason."""
    return isinstance(error, StorageFull) or (
        isinstance(error, PeerUnavailable) and not error.reached
    )
