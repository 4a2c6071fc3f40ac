"""Manifests that refer to more than one transaction can write (RELIABILITY 5.4).

Their references are written part by part under a stage, and the manifest becomes visible in one
transaction at the end.  Two clients that push the same manifest void each other's stage and begin
again, each after a while of its own.  What a crash leaves is found by its stage and cleared.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from node import keys
from node.digest import Digest
from node.errors import MetadataUnavailable, RegistryError
from node.kv import Entry, Ok, Range, Unknown, only
from node.manifest import Needs
from node.reference import Repository
from node.reference_transactions import (
    StageLost,
    end,
    hold,
    needs_ranges,
    refer,
    release,
    stage_range,
    take,
)
from node.stamps import Decider
from node.tag_transactions import is_live, manifest_range
from node.transaction import CHUNK, Transaction
from node.wire import codec

R = TypeVar("R")

_ATTEMPTS: Final = 20
_FIRST_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 2.0
_PAGE: Final = 200

Pause = Callable[[float], Awaitable[None]]


class TooLarge(Exception):
    """The transaction has more guards or operations than the KV takes: it has to be staged."""


class Staging:
    """One site's stages. `new_id` makes ids that are never used twice.

    `chunk` is the most guards, and the most operations, of one transaction; `pause` waits some
    seconds.
    """

    def __init__(
        self,
        decider: Decider,
        *,
        new_id: Callable[[], str],
        chunk: int = CHUNK,
        pause: Pause,
    ) -> None:
        self._decider = decider
        self._new_id = new_id
        self._chunk = chunk
        self._pause = pause

    def check(self, txn: Transaction) -> None:
        """Raises: TooLarge: It has to be staged."""
        if max(len(txn.guards), len(txn.ops)) > self._chunk:
            raise TooLarge

    async def staged(
        self,
        repository: Repository,
        digest: Digest,
        needs: Needs,
        final: Callable[[int], Awaitable[R]],
        *,
        pushed: bool,
    ) -> R:
        """Write all references, then let `final` end the stage, by its token.

        Raises:
            ManifestReferencesUnknown: The repository lacks some of what is needed.
            MetadataUnavailable: Others keep taking the stage over, or `final` says so.
            RegistryError: That of `final`.
        """
        for attempt in range(_ATTEMPTS):
            if attempt:
                longest_s = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S)
                await self._pause(random.uniform(longest_s / 2, longest_s))
            token = await self._take(repository, digest, needs)
            try:
                for part in needs.parts(self._part):
                    await self._refer(repository, digest, token, part, pushed=pushed)
                return await final(token)
            except StageLost:
                continue
            except MetadataUnavailable:
                raise  # it may have been applied
            except RegistryError:
                await self.abandon(repository, digest, token)
                raise
        raise MetadataUnavailable("too much contention")

    @property
    def _part(self) -> int:
        # The stage itself is guarded too; a released reference is two guards and two operations.
        return max(1, self._chunk - 1)

    async def _take(self, repository: Repository, digest: Digest, needs: Needs) -> int:
        """Hold the stage, whoever held it; its token."""
        within = [stage_range(repository, digest)]
        owners: set[str] = set()
        reason = "too much contention"
        for _ in range(_ATTEMPTS):
            seen = await self._decider.look(within)
            entry = seen.entry(keys.stage(repository, digest))
            if entry is not None and codec.decode_stage(entry.value).owner in owners:
                return entry.modified  # the reply was lost
            owner = self._new_id()
            owners.add(owner)
            txn = await self._decider.begin(seen, repository)
            take(txn, digest, owner, needs.digests)
            outcome = await self._decider.attempt(txn)
            if isinstance(outcome, Ok):
                return outcome.revision
            if isinstance(outcome, Unknown):
                reason = outcome.reason
        raise MetadataUnavailable(reason)

    async def _refer(
        self, repository: Repository, digest: Digest, token: int, part: Needs, *, pushed: bool
    ) -> None:
        ranges = [stage_range(repository, digest), *needs_ranges(repository, part)]

        def decision(txn: Transaction) -> None:
            hold(txn, digest, token)
            refer(txn, digest, part, pushed=pushed)

        await self._decider.decide(repository, lambda: self._decider.look(ranges), decision)

    # --- what a crash left

    async def abandon(self, repository: Repository, digest: Digest, token: int) -> bool:
        """Undo what was written under a stage, unless the manifest is live; whether it was done.

        References become pins, and the stage goes last: a crash leaves it to be found again.

        Raises:
            MetadataUnavailable: A sweep finishes it.
        """
        seen = await self._decider.look([stage_range(repository, digest)])
        entry = seen.entry(keys.stage(repository, digest))
        if entry is None or entry.modified != token:
            return False
        # Under a new token: what was sent under the old one and may yet land is void.
        txn = await self._decider.begin(seen, repository)
        take(txn, digest, self._new_id(), ())
        outcome = await self._decider.attempt(txn)
        if not isinstance(outcome, Ok):
            return False
        token = outcome.revision
        try:
            for _ in range(_ATTEMPTS):
                if await self._undo(repository, digest, token):
                    return True
        except StageLost:
            return False  # whoever holds it now goes on with it, or clears it
        raise MetadataUnavailable("too much contention")

    async def _undo(self, repository: Repository, digest: Digest, token: int) -> bool:
        """Release all, if the manifest is not live, and end the stage; False if that has changed.

        Deletes leave to us what is staged.  So all of it is about one state of the manifest: else
        some of a manifest that dies meanwhile would be released, and the rest by nobody.
        """
        within = [manifest_range(repository, digest), stage_range(repository, digest)]
        seen = await self._decider.look(within)
        key, staged = keys.manifest(repository, digest), seen.entry(keys.stage(repository, digest))
        was = seen.entry(key)
        if staged is None:
            raise StageLost

        async def do(targets: Sequence[Digest], last: Callable[[Transaction], None]) -> bool:
            references = [only(keys.reference(target, repository, digest)) for target in targets]

            def decision(txn: Transaction) -> bool:
                if txn.seen.entry(key) != was:
                    return False
                release(txn, digest, targets)
                last(txn)
                return True

            _, done = await self._decider.decide(
                repository, lambda: self._decider.look([*within, *references]), decision
            )
            return bool(done)

        targets: Sequence[Digest] = ()
        if not is_live(seen, repository, digest):
            # The body's own reference is the last that a delete lets go of.
            targets = (*codec.decode_stage(staged.value).targets, digest)
        step = max(1, (self._chunk - 2) // 2)
        for start in range(0, len(targets), step):
            if not await do(targets[start : start + step], lambda txn: hold(txn, digest, token)):
                return False
        return await do((), lambda txn: end(txn, digest, token))

    async def _clear(self, found: Entry) -> bool:
        """Take a stage over that is still as it was found, and undo it; whether it was."""
        repository, digest = keys.staged(found.key)
        return await self.abandon(repository, digest, found.modified)

    async def sweep(self, before_ms: int) -> int:
        """Clear the stages that were taken before a time; how many.

        Raises:
            MetadataUnavailable: What is left, the next sweep finds.
        """
        cleared = 0
        within: Range = keys.STAGES._replace(limit=_PAGE)
        while True:
            entries = (await self._decider.look([within])).entries(within)
            for entry in entries:
                if codec.decode_stage(entry.value).ms < before_ms:
                    cleared += await self._clear(entry)
            if len(entries) < _PAGE:
                return cleared
            within = within._replace(start=entries[-1].key + b"\0")
