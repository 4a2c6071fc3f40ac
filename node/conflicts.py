"""Conflicts: tags whose siblings name more than one live manifest, found by their x keys.

Two sites that pushed to one tag while neither had heard of the other have both succeeded; every
site then shows the same of the two, and the other stays until somebody chooses or pushes again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from node import keys
from node.digest import Digest
from node.keys import TagName
from node.kv import only
from node.records import Pushed, site_of
from node.reference import Repository, Tag
from node.register import Dot
from node.tag_transactions import is_live, register_at, sibling_ranges
from node.transaction import Reader, look


@dataclass(frozen=True, slots=True)
class Sibling:
    """One push that nobody has overwritten: of what, where, and when by that site's clock."""

    digest: Digest
    media_type: str
    size: int
    pushed_ms: int
    site: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A tag and its siblings that are live, the one that is shown first.

    `dots` are all that it has: what somebody who chose has seen.
    """

    repository: Repository
    tag: Tag
    siblings: tuple[Sibling, ...]
    dots: frozenset[Dot]

    @property
    def etag(self) -> str:
        """Changes with every push, delete and choice that reaches the tag."""
        seen = "".join(f"{actor} {n}\n" for actor, n in sorted(self.dots))
        return hashlib.sha256(seen.encode()).hexdigest()


class Conflicts:
    """Finds the conflicts of one site."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    async def page(
        self, repository: Repository | None, after: str | None, limit: int
    ) -> tuple[list[Conflict], str | None]:
        """The conflicts among at most `limit` tags, by name from just after `repository:tag`.

        Where the next page begins, None if there is none: a page may hold fewer than there are
        tags on it, or nothing, while a delete of a sibling is being finished.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        within = keys.conflicts(repository, after, limit + 1)
        entries = (await look(self._reader, [within])).entries(within)
        names = [keys.conflict_name(entry.key) for entry in entries[:limit]]
        more = names and len(entries) > limit
        return await self._read(names), f"{names[-1].repository}:{names[-1].tag}" if more else None

    async def find(self, name: TagName) -> Conflict | None:
        """The conflict that a tag is in, if it is in one.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        found = await self._read([name])
        return found[0] if found else None

    async def _read(self, names: Sequence[TagName]) -> list[Conflict]:
        seen = await look(self._reader, [only(keys.register(name)) for name in names])
        registers = {name: register_at(seen, keys.register(name)) for name in names}
        ranges = [r for n, register in registers.items() for r in sibling_ranges(n[0], [register])]
        manifests = await look(self._reader, ranges)
        found = []
        for (repository, tag), register in registers.items():
            live = {
                dot: value
                for dot, value in register.siblings.items()
                if is_live(manifests, repository, value.digest)
            }
            if len({value.digest for value in live.values()}) > 1:
                dots = frozenset(register.siblings)
                found.append(Conflict(repository, tag, _siblings(live), dots))
        return found


def _siblings(live: Mapping[Dot, Pushed]) -> tuple[Sibling, ...]:
    """As a tag shows them: the latest first."""
    order = sorted(live.items(), key=lambda s: (s[1].ms, s[0]), reverse=True)
    return tuple(
        Sibling(value.digest, value.media_type, value.size, value.ms, site_of(dot.actor))
        for dot, value in order
    )
