"""A site's tags and manifests: the truth that clients read and write.

Reads are joined and linearizable (P2).  Writes are the transactions of manifest_transactions and
tag_transactions, each tried until it is certain what became of it (node/stamps.py); an
acknowledged one is durable (P1).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

from node import keys
from node.blob_transactions import Copy
from node.blobs import Generation
from node.clearing import clear, is_uncleared, traces
from node.condition import Condition
from node.digest import Digest
from node.errors import ManifestUnknown, NameUnknown, TooManyTags
from node.kv import MAX_OPS, Entry, Range, Snapshot, only
from node.manifest import Manifest
from node.manifest_transactions import Push, commit, commit_ranges, delete_manifest, parent_ranges
from node.records import Referrer
from node.reference import Reference, Repository, Tag
from node.staging import Staging, TooLarge
from node.stamps import Decider
from node.tag_transactions import (
    delete_tag,
    digests,
    is_live,
    manifest_range,
    register_at,
    sibling_ranges,
)
from node.transaction import Seen, Transaction
from node.wire import codec

N = TypeVar("N", bound=str)

# Tags dropped together with their manifest in the deciding transaction; more are cleared after it.
TAGS_AT_ONCE: Final = 12
_REMEMBERED: Final = 16384


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a reference names: enough for the headers of an answer.

    `siblings` counts the live manifests that the tag could show; more than one is a conflict.
    """

    digest: Digest
    media_type: str
    size: int
    siblings: int = 1


@dataclass(frozen=True, slots=True)
class ReferrerEntry:
    """One manifest that has the subject."""

    digest: Digest
    referrer: Referrer


@dataclass(frozen=True, slots=True)
class _Known:
    """What a reference showed, and the revisions of the keys that said so: one key a range."""

    ranges: Sequence[Range]
    revisions: tuple[int, ...]
    resolved: Resolved

    def stands(self, snapshot: Snapshot) -> bool:
        """Whether every key is as it was; a revision is never used twice."""
        found = snapshot.ranges
        return self.revisions == tuple(entries[0].modified for entries in found if entries)


_Found: TypeAlias = tuple[Resolved, list[Range], Seen]


class Metadata:
    """The tags and manifests of one site. `new_id` makes ids that are never used twice."""

    def __init__(self, decider: Decider, staging: Staging, *, new_id: Callable[[], str]) -> None:
        self._decider = decider
        self._staging = staging
        self._new_id = new_id
        self._known: OrderedDict[tuple[Repository, Reference], _Known] = OrderedDict()

    # --- resolving

    async def resolve(self, repository: Repository, reference: Reference) -> Resolved:
        """The manifest that a reference shows; one joined read unless it has changed.

        Raises:
            ManifestUnknown: None, in this repository.
        """
        known = self._known.get((repository, reference))
        if known is not None and known.stands(await self._decider.reader.read(known.ranges)):
            return known.resolved
        if isinstance(reference, Digest):
            resolved, ranges, seen = await self._resolve_digest(repository, reference)
        else:
            resolved, ranges, seen = await self._resolve_tag(repository, reference)
        revisions = tuple(e.modified for within in ranges for e in seen.entries(within))
        self._known[repository, reference] = _Known(ranges, revisions, resolved)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return resolved

    async def _resolve_digest(self, repository: Repository, digest: Digest) -> _Found:
        ranges = [manifest_range(repository, digest)]
        seen = await self._decider.look(ranges)
        shown = register_at(seen, keys.manifest(repository, digest)).shown()
        if shown is None:
            raise ManifestUnknown(str(digest))
        return Resolved(shown.digest, shown.media_type, shown.size), ranges, seen

    async def _resolve_tag(self, repository: Repository, tag: Tag) -> _Found:
        key = keys.tag(repository, tag)
        seen = await self._decider.look([only(key)])
        while True:
            entry = seen.entry(key)
            register = register_at(seen, key)
            # The tag again, beside its manifests: what one moment says of all of them.
            ranges = [only(key), *sibling_ranges(repository, [register])]
            seen = await self._decider.look(ranges)
            if seen.entry(key) == entry:
                break
        live = {d for d in digests(register) if is_live(seen, repository, d)}
        shown = register.shown(lambda value: value.digest in live)
        if shown is None:
            raise ManifestUnknown(tag)
        resolved = Resolved(shown.digest, shown.media_type, shown.size, len(live))
        return resolved, ranges, seen

    # --- lists

    async def tags(
        self, repository: Repository, after: str | None, limit: int
    ) -> tuple[list[Tag], bool]:
        """At most `limit` live tags in byte order from just after a name; whether more follow.

        Raises:
            NameUnknown: The repository has no live manifest.
        """
        within = keys.live_tags(repository, after, limit + 1)
        exists = only(keys.repository(repository))
        seen = await self._decider.look([exists, within])
        if not seen.entries(exists):
            raise NameUnknown(repository)
        return _page([keys.live_tag_name(e.key) for e in seen.entries(within)], limit)

    async def repositories(self, after: str | None, limit: int) -> tuple[list[Repository], bool]:
        """At most `limit` repositories with live manifests, from just after a name."""
        within = keys.repositories(after, limit + 1)
        entries = (await self._decider.look([within])).entries(within)
        return _page([keys.repository_name(entry.key) for entry in entries], limit)

    async def referrers(
        self, repository: Repository, subject: Digest, after: Digest | None, limit: int
    ) -> tuple[list[ReferrerEntry], bool]:
        """At most `limit` live manifests with this subject, by their digests from just after one.

        Whether more follow.
        """
        within = keys.referrers(repository, subject, after, limit + 1)
        entries = (await self._decider.look([within])).entries(within)
        return [_referrer(entry) for entry in entries[:limit]], len(entries) > limit

    # --- writing

    async def commit(
        self, push: Push, copy: Copy | None = None, damaged: frozenset[Generation] = frozenset()
    ) -> bool:
        """T3: once this returns, the manifest and its tags are there, durably.

        Whether it is known that its body's record names the new copy.

        Raises:
            PreconditionFailed: It shows something else than the push's condition asks for.
            ConflictChanged, ManifestUnknown: The conflict that it resolves is another by now.
            ManifestReferencesUnknown: The repository lacks what it refers to.
            BlobUnknown: The site has no sound copy of its body and none was brought.
            UploadUnknown: The session of the body's copy is gone.
            TooManyTags: Its tags have too many siblings to be moved at once.
        """
        try:
            return await self._commit(push, copy, damaged, None)
        except TooLarge:
            return await self._staging.staged(
                push.repository,
                push.digest,
                push.manifest.needs,
                lambda token: self._commit(push, copy, damaged, token),
                pushed=True,
            )

    async def _commit(
        self, push: Push, copy: Copy | None, damaged: frozenset[Generation], token: int | None
    ) -> bool:
        """T3, with the token of a stage if all references were written in it."""
        ranges = commit_ranges(push, copy, staged=token is not None)
        ranges += traces(push.repository, push.digest)

        async def read() -> Seen:
            seen = await self._decider.look(ranges)
            if is_uncleared(seen, push.repository, push.digest):
                # Tags of a delete that was cut short must not come back with this push (P6).
                await clear(self._decider, push.repository, push.digest, push.manifest)
                seen = await self._decider.look(ranges)
            if push.condition is not None:
                seen = seen.also(await self._shown(seen, push.repository, push.tags))
            return seen

        def decision(txn: Transaction) -> bool:
            named = commit(txn, push, copy, damaged, token=token)
            if token is None:
                self._staging.check(txn)
            elif max(len(txn.guards), len(txn.ops)) > MAX_OPS:
                raise TooManyTags(len(push.tags) // 2)
            return named

        _, named = await self._decider.decide(push.repository, read, decision, push.op)
        return bool(named)

    async def delete_tag(
        self,
        repository: Repository,
        tag: Tag,
        actor: str = "",
        condition: Condition | None = None,
    ) -> None:
        """The tag goes; its manifest stays.

        Raises:
            ManifestUnknown: It shows nothing now.
            PreconditionFailed: It shows something else than the condition asks for.
        """
        op = self._new_id()

        async def read() -> Seen:
            seen = await self._decider.look([only(keys.tag(repository, tag))])
            return seen.also(await self._shown(seen, repository, [tag]))

        await self._decider.decide(
            repository, read, lambda txn: delete_tag(txn, tag, op, actor, condition), op
        )

    async def _shown(self, seen: Seen, repository: Repository, tags: Sequence[Tag]) -> Seen:
        """The manifests that these tags' siblings name; the tags were read."""
        registers = [register_at(seen, keys.tag(repository, tag)) for tag in tags]
        return await self._decider.look(sibling_ranges(repository, registers))

    async def delete_manifest(
        self, repository: Repository, digest: Digest, manifest: Manifest | None, actor: str = ""
    ) -> None:
        """T4: the manifest and every tag on it go; its blobs stay pinned for the grace time.

        `manifest` is its parsed body, None where the body is damaged: its references then stay
        until they are rebuilt.

        Raises:
            ManifestUnknown: It is not live.
            InUse: A live index needs it.
        """
        op = self._new_id()
        tags: list[Tag] = []

        async def read() -> Seen:
            seen, found = await self._around(repository, digest)
            tags[:] = found
            return seen

        try:
            await self._decider.decide(
                repository, read, lambda txn: delete_manifest(txn, digest, tags, op, actor), op
            )
        except ManifestUnknown:
            # The second try of a delete that was cut short finishes the first.
            if await self.is_uncleared(repository, digest):
                await clear(self._decider, repository, digest, manifest)
            raise
        await clear(self._decider, repository, digest, manifest)

    async def is_uncleared(self, repository: Repository, digest: Digest) -> bool:
        """Whether a delete of the manifest was cut short, so that deleting it again finishes it."""
        seen = await self._decider.look(traces(repository, digest))
        return is_uncleared(seen, repository, digest)

    async def _around(self, repository: Repository, digest: Digest) -> tuple[Seen, list[Tag]]:
        """All that a manifest's death touches: who refers to it, and (some of) its tags."""
        within = keys.tags_of(repository, digest, TAGS_AT_ONCE)
        references = keys.references(digest, repository)
        seen = await self._decider.look([manifest_range(repository, digest), references, within])
        tags = [keys.tagged_name(entry.key) for entry in seen.entries(within)]
        more = [only(keys.tag(repository, tag)) for tag in tags]
        more += parent_ranges(seen, repository, digest)
        return seen.also(await self._decider.look(more)), tags


def _page(names: list[N], limit: int) -> tuple[list[N], bool]:
    return names[:limit], len(names) > limit


def _referrer(entry: Entry) -> ReferrerEntry:
    return ReferrerEntry(keys.referrer_digest(entry.key), codec.decode_referrer(entry.value))
