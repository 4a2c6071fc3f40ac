"""What a site tells a peer: the keyspace as batches of changes, without any gRPC.

Nothing is queued: a batch is read from the KV when it is asked for.  A scan notes the revision
first and pages by key, so what changes while it runs is told again by the following that comes
after it (RELIABILITY 3.3).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Final

from gateway.feed_batches import Cut, Planned, batches, by_revision, one_by_one, plan
from gateway.feed_registers import Registers
from node import keys
from node.blob_transactions import blob_ranges, visible
from node.change import Change
from node.digest import Digest
from node.errors import BlobDamaged, BlobUnknown, StorageFailed
from node.globs import Filter
from node.keys import Name
from node.kv import Compacted, Entry, Range, following, only
from node.records import Cursor
from node.reference import Repository
from node.roots import passes
from node.site import Site
from node.transaction import Seen
from node.wire.feed_codec import BATCH_CHANGES, Batch

# A read of changes that brought fewer brought all there was, so its revision is the newest.
_MORE_COME: Final = BATCH_CHANGES // 2


class FeedSource:
    """One site as the source of changes, for one peer: `filters` are those that all must pass."""

    def __init__(self, site: Site, registers: Registers, filters: Sequence[Filter]) -> None:
        self._site = site
        self._registers = registers
        self._filters = filters

    async def changes(self, cursor: Cursor) -> AsyncGenerator[Batch, None]:
        """Batches after a cursor, for ever; a cursor that can't be gone on from means a scan.

        So does time, where the KV may lose what it should tell (`Site.rescan_s`).

        Raises:
            MetadataUnavailable: The KV went away.
        """
        after = cursor.revision if cursor.incarnation == self._site.record.incarnation else 0
        clock = asyncio.get_running_loop().time
        while True:
            again = clock() + self._site.rescan_s
            if not after:
                async with aclosing(self._scan([keys.REPLICATED])) as scan:
                    async for batch in scan:
                        after = batch.revision
                        yield batch
            try:
                async with aclosing(self._follow(after)) as news:
                    async for batch in news:
                        yield batch
                        if clock() >= again:
                            break
            except Compacted:
                pass
            after = 0

    def repository(self, name: Repository) -> AsyncGenerator[Batch, None]:
        """A scan of one repository: its manifests, then its tags.

        Raises:
            MetadataUnavailable: The KV went away.
        """
        return self._scan([keys.manifests(name), keys.tags(name)])

    async def _scan(self, ranges: Iterable[Range]) -> AsyncGenerator[Batch, None]:
        """Everything in some ranges; the last batch is empty, not `scanning`, and at its end.

        Its revision is from before the scan: what was written up to it has been told.
        """
        noted = await self._newest()
        for within in ranges:
            start = within.start
            while True:
                page = Range(start, within.end, BATCH_CHANGES)
                (entries,) = (await self._site.kv.read([page])).ranges
                for cut in batches(one_by_one(self._passing(entries), noted)):
                    yield await self._batch(cut, noted, scanning=True)
                if len(entries) < BATCH_CHANGES:
                    break
                start = entries[-1].key + b"\0"
        yield Batch(self._site.record.incarnation, (), noted, False, noted)

    async def _follow(self, after: int) -> AsyncGenerator[Batch, None]:
        async with following(self._site.kv, keys.REPLICATED, after) as stream:
            async for news in stream:
                more = len(news.entries) >= _MORE_COME
                head = await self._newest() if more else news.revision
                last = Cut((), after)
                for cut in batches(by_revision(self._passing(news.entries), after)):
                    if last.planned:
                        yield await self._batch(last, head)
                    last = cut
                # The last goes as far as was read, also where the filters let nothing through.
                after = news.revision
                yield await self._batch(last._replace(revision=after), head)

    async def keys(self, names: Sequence[Name]) -> list[Change]:
        """The registers of these names, in their order, of those that have one.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        wanted = [name for name in names if self._passes(name)]
        seen = await self._site.decider.look([only(keys.register(name)) for name in wanted])
        entries = [seen.entry(keys.register(name)) for name in wanted]
        changes = self._passing(entry for entry in entries if entry is not None)
        return await self._with_bodies(plan(list(changes)))

    async def have(self, repository: Repository, digests: Sequence[Digest]) -> list[Digest]:
        """Those of the digests that can be read from the repository here.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        if not all(wanted.takes(repository) for wanted in self._filters):
            return []
        ranges = [r for digest in digests for r in blob_ranges(repository, digest)]
        seen = await self._site.decider.look(ranges)
        return [digest for digest in digests if _readable(seen, repository, digest)]

    async def _newest(self) -> int:
        return (await self._site.kv.read([only(keys.SITE)])).revision

    def _passing(self, entries: Iterable[Entry]) -> Iterator[Change]:
        for entry in entries:
            change = self._registers.read(entry, self._passes)
            if change is not None:
                yield change

    def _passes(self, name: Name) -> bool:
        return passes(name, self._filters)

    async def _batch(self, cut: Cut, head: int, *, scanning: bool = False) -> Batch:
        changes = await self._with_bodies(cut.planned)
        return Batch(self._site.record.incarnation, changes, cut.revision, scanning, head)

    async def _with_bodies(self, planned: Sequence[Planned]) -> list[Change]:
        try:
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(self._with_body(one)) for one in planned]
        except ExceptionGroup as several:
            # Whichever came first ended the others; a group has no status to answer a peer with.
            raise several.exceptions[0] from None
        return [task.result() for task in work]

    async def _with_body(self, planned: Planned) -> Change:
        change = planned.change
        if planned.body is None:
            return change
        try:
            body = await self._site.content.read(planned.body)
        except (BlobUnknown, BlobDamaged, StorageFailed, ValueError):
            return change  # whoever needs it asks for it, and is told
        shown = change.register.shown()
        if shown is None or len(body) != shown.size:
            return change  # no room was kept for what is not of the length it should be
        return Change(change.name, change.register, change.revision, body)


def _readable(seen: Seen, repository: Repository, digest: Digest) -> bool:
    try:
        return visible(seen, repository, digest) is not None
    except ValueError:
        return False  # its record is damaged, and the other digests' are not
