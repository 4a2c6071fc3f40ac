"""What follows a manifest's death: its tags drop it, its references become pins.

The tombstone decides (T4 here, or a peer's merged by T3r); this only tidies up behind it, in small
transactions that each apply only while the manifest is dead as seen.  A crash anywhere leaves
nothing worse than work for the next call, and a re-push at any moment wins.
"""

from __future__ import annotations

from typing import Final

from node import keys
from node.digest import Digest
from node.kv import MAX_RANGES, Entry, Range, only
from node.manifest import Manifest
from node.manifest_transactions import clear_tags
from node.reference import Repository
from node.reference_transactions import is_staged, release, stage_range, unstaged
from node.stamps import Decider
from node.tag_transactions import is_live, manifest_range
from node.transaction import CHUNK, Seen, Transaction
from node.wire import codec

# A tag takes four operations, and one more for each other sibling; a reference takes two.
TAGS_AT_ONCE: Final = CHUNK // 10
_REFERENCES_AT_ONCE: Final = CHUNK // 2
_PAGE: Final = 200


async def clear(
    decider: Decider, repository: Repository, digest: Digest, manifest: Manifest | None
) -> None:
    """Tidy up behind a dead manifest; a live one, or one that is cleared, is left as it is.

    `manifest` is its parsed body, None where that is damaged or was never here: its references
    then stay until they are rebuilt.

    Raises:
        MetadataUnavailable: What is left, calling again finishes.
    """
    while await _drop_tags(decider, repository, digest):
        pass
    if manifest is not None:
        await _release(decider, repository, digest, manifest)
    await forget(decider, repository)


def traces(repository: Repository, digest: Digest) -> list[Range]:
    """What must be read to know whether a manifest `is_uncleared`."""
    return [
        manifest_range(repository, digest),
        keys.tags_of(repository, digest, 1),
        only(keys.reference(digest, repository, digest)),
    ]


def is_uncleared(seen: Seen, repository: Repository, digest: Digest) -> bool:
    """Whether a manifest is dead and `clear` has something left to do; its traces were read."""
    left = any(seen.entries(within) for within in traces(repository, digest)[1:])
    return left and not is_live(seen, repository, digest)


async def _drop_tags(decider: Decider, repository: Repository, digest: Digest) -> bool:
    """Drop it from some of its tags; whether there may be more."""
    within = keys.tags_of(repository, digest, TAGS_AT_ONCE)

    async def read() -> Seen:
        seen = await decider.look([manifest_range(repository, digest), within])
        tags = [keys.tagged_name(entry.key) for entry in seen.entries(within)]
        return seen.also(await decider.look(only(keys.tag(repository, tag)) for tag in tags))

    def decision(txn: Transaction) -> bool:
        entries = txn.seen.entries(within)
        if not entries or is_live(txn.seen, repository, digest):
            return False
        clear_tags(txn, digest, [keys.tagged_name(entry.key) for entry in entries])
        return True

    _, more = await decider.decide(repository, read, decision)
    return bool(more)


async def _release(
    decider: Decider, repository: Repository, digest: Digest, manifest: Manifest
) -> None:
    """Turn its references into pins, its own body's last: that one says that work is left.

    All of them are those of one death: of a manifest that was pushed and deleted again meanwhile,
    those that were released first are to be released once more.
    """
    ordered = [*manifest.needs.digests, digest]
    key = keys.manifest(repository, digest)
    start = 0
    was: Entry | None = None
    while start < len(ordered):
        if not start:
            seen = await decider.look([manifest_range(repository, digest)])
            if is_live(seen, repository, digest):
                return  # whoever deletes it the next time does all of this
            was = seen.entry(key)
        some = ordered[start : start + _REFERENCES_AT_ONCE]
        same = await _release_some(decider, repository, digest, some, was)
        start = start + len(some) if same else 0


async def _release_some(
    decider: Decider,
    repository: Repository,
    digest: Digest,
    targets: list[Digest],
    was: Entry | None,
) -> bool:
    """Release these of a dead manifest; False if it is not what it was."""
    ranges = [only(keys.reference(target, repository, digest)) for target in targets]
    ranges += [manifest_range(repository, digest), stage_range(repository, digest)]
    assert len(ranges) <= MAX_RANGES

    def decision(txn: Transaction) -> bool:
        if txn.seen.entry(keys.manifest(repository, digest)) != was:
            return False
        # What a stage has written is its holder's, or the janitor's (node/staging.py).
        if not is_live(txn.seen, repository, digest) and not is_staged(
            txn.seen, repository, digest
        ):
            unstaged(txn, digest)
            release(txn, digest, targets)
        return True

    _, same = await decider.decide(repository, lambda: decider.look(ranges), decision)
    return bool(same)


async def forget(decider: Decider, repository: Repository) -> None:
    """Leave a repository out of the catalogue if no manifest of it is live.

    Raises:
        MetadataUnavailable: Calling again finishes it.
    """
    key = keys.repository(repository)
    live = False

    async def read() -> Seen:
        nonlocal live
        # In this order: whatever becomes live after the first look writes the key again.
        seen = await decider.look([only(key)])
        live = seen.entry(key) is None or await _any_live(decider, repository)
        return seen

    def decision(txn: Transaction) -> None:
        if not live:
            txn.unchanged(key)
            txn.delete(key)
            # Followers of the catalog are told of writes only.
            txn.put(keys.forgotten(repository))

    await decider.decide(repository, read, decision)


async def _any_live(decider: Decider, repository: Repository) -> bool:
    within: Range = keys.manifests(repository)._replace(limit=_PAGE)
    while True:
        entries = (await decider.look([within])).entries(within)
        if any(codec.decode_register(entry.value).live for entry in entries):
            return True
        if len(entries) < _PAGE:
            return False
        within = within._replace(start=entries[-1].key + b"\0")
