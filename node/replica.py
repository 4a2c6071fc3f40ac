"""A site as a copy of others: what it holds of a replicated name, and how a peer's change lands.

Every write here is one attempt of T3r, guarded by what was seen when it was planned.  None is ever
repeated blindly and none needs to be: whoever applies a change looks again, and a register that
merging would not change is applied (RELIABILITY 4, T3r).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from node import keys
from node.blob_transactions import standing
from node.clearing import TAGS_AT_ONCE, clear
from node.digest import Digest
from node.kv import Ok, only
from node.manifest import Descriptor, Manifest, Needs
from node.manifest_transactions import (
    apply_manifest,
    bury,
    keep_manifest,
    needing,
    parent_ranges,
)
from node.records import Pushed
from node.reference_transactions import missing, needs_ranges, stage_range
from node.register import Dot, Register
from node.staging import Staging, TooLarge
from node.stamps import Decider
from node.tag_transactions import (
    apply_tag,
    digests,
    manifest_range,
    register_at,
    sibling_ranges,
)
from node.transaction import Seen, Transaction


class Landed(Enum):
    """What became of one attempt."""

    APPLIED = auto()
    STALE = auto()
    """Something had changed, or the reply was lost: look again."""


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """What this site holds of a manifest.

    `manifest` is its parsed body, as far as whoever looked knew it; the lists of what is missing
    are about that body.  `parents` are the manifests here that need it, live or on their way.
    `uncleared`: it is dead, and its tags or references are still to be let go.
    """

    register: Register[Pushed]
    parents: Mapping[Digest, Register[Pushed]]
    uncleared: bool
    body_here: bool
    manifest: Manifest | None
    missing_blobs: tuple[Descriptor, ...]
    missing_children: tuple[Descriptor, ...]
    seen: Seen


@dataclass(frozen=True, slots=True)
class HeldTag:
    """What this site holds of a tag, and of the manifests that it is about to name."""

    register: Register[Pushed]
    manifests: Mapping[Digest, Register[Pushed]]
    seen: Seen


class Replica:
    """One site's replicated names. `new_id` makes ids that are never used twice."""

    def __init__(self, decider: Decider, staging: Staging, *, new_id: Callable[[], str]) -> None:
        self._decider = decider
        self._staging = staging
        self._new_id = new_id

    # --- looking

    async def registers(self, names: Collection[keys.Name]) -> Mapping[keys.Name, Register[Pushed]]:
        """What is held of each of these names; of what can't be read, nothing.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        seen = await self._decider.look(only(keys.register(name)) for name in names)
        held = {}
        for name in names:
            try:
                held[name] = register_at(seen, keys.register(name))
            except ValueError:  # whoever applies a change of it says what is wrong
                held[name] = Register()
        return held

    async def manifest(self, name: keys.ManifestName, manifest: Manifest | None) -> HeldManifest:
        """What is held of a manifest, and what of its body's needs, if the body is known.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        repository, digest = name
        referring = keys.references(digest, repository)
        own = only(keys.reference(digest, repository, digest))
        tagged = keys.tags_of(repository, digest, TAGS_AT_ONCE)
        body = only(keys.blob(digest))
        listed = only(keys.repository(repository))
        needs = [] if manifest is None else needs_ranges(repository, manifest.needs)
        seen = await self._decider.look(
            [manifest_range(repository, digest), referring, own, tagged, body, listed, *needs]
        )
        more = parent_ranges(seen, repository, digest)
        tags = [keys.tagged_name(entry.key) for entry in seen.entries(tagged)]
        more += [only(keys.tag(repository, tag)) for tag in tags]
        seen = seen.also(await self._decider.look(more))
        register = register_at(seen, keys.manifest(repository, digest))
        lacking = Needs() if manifest is None else missing(seen, repository, manifest.needs)
        return HeldManifest(
            register=register,
            parents={
                parent: register_at(seen, keys.manifest(repository, parent))
                for parent in needing(seen, repository, digest)
            },
            uncleared=not register.live and bool(seen.entries(own) or seen.entries(tagged)),
            body_here=standing(seen, digest) is not None,
            manifest=manifest,
            missing_blobs=lacking.blobs,
            missing_children=lacking.children,
            seen=seen,
        )

    async def tag(self, name: keys.TagName, theirs: Register[Pushed]) -> HeldTag:
        """What is held of a tag, and of all manifests that either side's siblings name.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        repository, tag = name
        key = keys.tag(repository, tag)
        seen = await self._decider.look([only(key)])
        mine = register_at(seen, key)
        seen = seen.also(await self._decider.look(sibling_ranges(repository, [mine, theirs])))
        named = digests(mine) | digests(theirs)
        held = {d: register_at(seen, keys.manifest(repository, d)) for d in named}
        return HeldTag(mine, held, seen)

    # --- landing: one attempt each

    async def apply_manifest(
        self, name: keys.ManifestName, held: HeldManifest, merged: Register[Pushed]
    ) -> Landed:
        """The manifest is live here as merged, with all that it needs.

        Raises:
            ManifestReferencesUnknown: Something that it needs is not here.
            BlobUnknown: Its body is not here.
            MetadataUnavailable: It was not applied.
        """
        assert held.manifest is not None, "a manifest is applied with its body"
        txn = await self._decider.begin(held.seen, name.repository)
        apply_manifest(txn, name.digest, merged, held.manifest, self._new_id())
        try:
            self._staging.check(txn)
        except TooLarge:
            return await self._apply_staged(name, held, held.manifest, merged)
        return await self._land(txn)

    async def _apply_staged(
        self,
        name: keys.ManifestName,
        held: HeldManifest,
        manifest: Manifest,
        merged: Register[Pushed],
    ) -> Landed:
        repository, digest = name

        async def final(token: int) -> Landed:
            seen = held.seen.also(await self._decider.look([stage_range(repository, digest)]))
            txn = await self._decider.begin(seen, repository)
            apply_manifest(txn, digest, merged, manifest, self._new_id(), token=token)
            landed = await self._land(txn)
            if landed is Landed.STALE:
                await self._staging.abandon(repository, digest, token)
            return landed

        return await self._staging.staged(repository, digest, manifest.needs, final, pushed=False)

    async def bury(
        self, name: keys.ManifestName, held: HeldManifest, merged: Register[Pushed]
    ) -> Landed:
        """The manifest is dead here as merged, and off (some of) its tags; `clear` does the rest.

        Raises:
            MetadataUnavailable: It was not applied.
        """
        txn = await self._decider.begin(held.seen, name.repository)
        within = keys.tags_of(name.repository, name.digest, TAGS_AT_ONCE)
        tags = [keys.tagged_name(entry.key) for entry in held.seen.entries(within)]
        bury(txn, name.digest, merged, tags)
        return await self._land(txn)

    async def keep(
        self, name: keys.ManifestName, held: HeldManifest, merged: Register[Pushed]
    ) -> Landed:
        """The manifest stays live here under a fresh dot: a live index needs it (5.5).

        Raises:
            MetadataUnavailable: It was not applied.
        """
        txn = await self._decider.begin(held.seen, name.repository)
        keep_manifest(txn, name.digest, merged)
        return await self._land(txn)

    async def apply_tag(
        self,
        name: keys.TagName,
        held: HeldTag,
        merged: Register[Pushed],
        gone: Collection[Dot],
    ) -> Landed:
        """The tag is here as merged, without siblings whose manifests were deleted by digest.

        Raises:
            ManifestReferencesUnknown: A manifest that it would name is not live here.
            MetadataUnavailable: It was not applied.
        """
        txn = await self._decider.begin(held.seen, name.repository)
        apply_tag(txn, name.tag, merged, gone, self._new_id())
        return await self._land(txn)

    async def clear(self, name: keys.ManifestName, manifest: Manifest | None) -> None:
        """Tidy up behind a dead manifest.

        Raises:
            MetadataUnavailable: What is left, calling again finishes.
        """
        await clear(self._decider, name.repository, name.digest, manifest)

    async def _land(self, txn: Transaction) -> Landed:
        outcome = await self._decider.attempt(txn)
        return Landed.APPLIED if isinstance(outcome, Ok) else Landed.STALE
