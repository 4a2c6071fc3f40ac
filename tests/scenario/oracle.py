"""What must become of every push, told from the transactions that were applied, not from the code.

It knows one rule (RELIABILITY 6.2): a push survives as a sibling unless somebody who saw it
overwrote or deleted it.  It watches each applied transaction of each site, with what the site meant
to do, and judges at once: what a site drops it must have been told to drop or have learned from
another; what it once dropped never comes back; a dot is never used twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from node.keys import ManifestName, Name, TagName
from node.records import Pushed
from node.register import Dot, Register
from tests.scenario.checker import require


@dataclass(frozen=True, slots=True)
class Intent:
    """What whoever writes is about: names that a client pushes or deletes, all else follows.

    `keeps` says whether a manifest may be given a fresh dot to keep it for a live index.  Who
    resolves a conflict may replace what it `saw` of the tag, by a manifest that is live.  Without
    `deletes` nothing that is live may die of it.
    """

    label: str
    names: frozenset[Name] = frozenset()
    keeps: Callable[[ManifestName], bool] = lambda _: False
    saw: set[Dot] | None = None
    deletes: bool = True

    def replaces(self, name: Name, dot: Dot) -> bool:
        """Whether it is there to overwrite or delete this sibling, if it finds it."""
        seen = self.saw is None or isinstance(name, ManifestName) or dot in self.saw
        return name in self.names and seen


@dataclass(frozen=True, slots=True)
class Write:
    """One register in one transaction; `site` is a life of one, `manifest` tells its registers."""

    site: str
    intent: Intent
    name: Name
    before: Register[Pushed]
    after: Register[Pushed]
    manifest: Callable[[ManifestName], Register[Pushed]]

    def __str__(self) -> str:
        """Which register, where, by whom."""
        return f"{self.name} at {self.site} by {self.intent.label}"


@dataclass
class Oracle:
    """All pushes of all sites, and what was done to them."""

    created: dict[Name, dict[Dot, Pushed]] = field(default_factory=lambda: defaultdict(dict))
    overwritten: dict[Name, set[Dot]] = field(default_factory=lambda: defaultdict(set))
    dropped: dict[tuple[str, Name], set[Dot]] = field(default_factory=lambda: defaultdict(set))
    operations: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)

    def operation(self, op: str) -> None:
        """An operation was applied somewhere."""
        require(op not in self.operations, "operation {} was applied twice", op)
        require(op not in self.refused, "operation {} was applied though it was refused", op)
        self.operations.add(op)

    def answered(self, op: str) -> None:
        """A client was told that its operation is done."""
        require(op in self.operations, "operation {} was acknowledged and is not applied", op)

    def refuse(self, op: str) -> None:
        """A client was told that its operation can't be done."""
        require(op not in self.operations, "operation {} was refused and is applied", op)
        self.refused.add(op)

    def wrote(self, write: Write) -> None:
        """A site wrote a register."""
        for actor, n in write.before.ctx.items():
            require(write.after.ctx.get(actor, 0) >= n, "the context of {} went back", write)
        if not write.after.live:
            self._died(write)
        for dot in self.created[write.name]:
            known = write.before.has_seen(dot) and dot not in write.before.siblings
            if not known and write.after.has_seen(dot) and dot not in write.after.siblings:
                self._drop(write, dot)
        for dot, value in write.after.siblings.items():
            if dot not in write.before.siblings:
                self._add(write, dot, value)

    def _died(self, write: Write) -> None:
        """Without deletes nothing dies, but a tag of a manifest that was deleted here."""
        if write.intent.deletes or not write.before.live:
            return
        seen = [dot for dot in self.created[write.name] if write.after.has_seen(dot)]
        tag = write.name if isinstance(write.name, TagName) else None
        here = tag is not None and any(self._is_deleted(write, tag, dot) for dot in seen)
        require(here, "{} took what is to be kept", write)

    def _add(self, write: Write, dot: Dot, value: Pushed) -> None:
        back = dot in self.dropped[write.site, write.name]
        require(not back, "{}, which was dropped there before, came back to {}", dot, write)
        known = self.created[write.name].get(dot)
        mine = dot.actor == write.site
        if known is not None:
            require(known == value, "{} of {} has changed its value", dot, write)
            require(not mine, "{} used {} twice", write, dot)
            return
        require(mine, "{} of {} comes from nowhere", dot, write)
        kept = isinstance(write.name, ManifestName) and write.intent.keeps(write.name)
        asked = write.name in write.intent.names or kept
        require(asked, "{} made {}, which nobody asked for", write, dot)
        back = write.intent.saw is not None and isinstance(write.name, ManifestName)
        require(write.before.live or not back, "{} chose what was deleted", write)
        self.created[write.name][dot] = value

    def _drop(self, write: Write, dot: Dot) -> None:
        """A site has seen the dot and has it not any more, or left it out at once."""
        if write.intent.replaces(write.name, dot) and dot in write.before.siblings:
            self.overwritten[write.name].add(dot)
        if dot not in self.overwritten[write.name]:
            deleted = isinstance(write.name, TagName) and self._is_deleted(write, write.name, dot)
            require(deleted, "{} lost {}, which nobody overwrote or deleted", write, dot)
            self.overwritten[write.name].add(dot)
        self.dropped[write.site, write.name].add(dot)

    def _is_deleted(self, write: Write, tag: TagName, dot: Dot) -> bool:
        """Whether its manifest was deleted by somebody who had seen the push that the dot is of."""
        digest = self.created[tag][dot].digest
        register = write.manifest(ManifestName(tag.repository, digest))
        return not register.live and register.has_seen(dot)

    def survivors(self, name: Name) -> dict[Dot, Pushed]:
        """The siblings that must be left when all sites know everything."""
        gone = self.overwritten[name]
        return {dot: value for dot, value in self.created[name].items() if dot not in gone}
