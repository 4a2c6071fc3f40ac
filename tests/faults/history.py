"""What was done to sites and how it ended, and whether what they show agrees with it.

One line of JSON for each push and each delete, with times of the monotonic clock; every push has
content of its own, so a digest tells which push is seen.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import chain
from pathlib import Path

from tests.faults.registry import Broken, Registry


class Outcome(StrEnum):
    """How a push ended, as far as its client can know."""

    OPEN = "open"
    OK = "ok"
    FAILED = "failed"  # its manifest was never sent
    UNKNOWN = "unknown"  # it was, and no answer came


@dataclass(slots=True)
class Push:
    """One push of one manifest to one tag at one site; the tag is only its own unless shared.

    `blob_bytes` are those that were uploaded for it.
    """

    site: str
    repository: str
    tag: str
    digest: str
    shared: bool
    blob_bytes: int = 0
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    outcome: Outcome = Outcome.OPEN

    def end(self, outcome: Outcome) -> None:
        """Note how it ended, now."""
        self.ended, self.outcome = time.monotonic(), outcome


@dataclass(slots=True)
class Delete:
    """One delete of a tag or a digest at one site, which had seen all pushes up to `seen`."""

    site: str
    repository: str
    reference: str
    seen: float
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    outcome: Outcome = Outcome.OPEN

    def end(self, outcome: Outcome) -> None:
        """Note how it ended, now."""
        self.ended, self.outcome = time.monotonic(), outcome

    def takes(self, push: Push) -> bool:
        """Whether it takes away what a push has made: it names that, and had seen it."""
        return (
            self.repository == push.repository
            and self.reference in (push.tag, push.digest)
            and (push.ended <= self.seen or (self.site == push.site and push.ended <= self.began))
        )


@dataclass(slots=True)
class History:
    """All pushes and deletes; `steps` counts the requests that were answered or lost.

    `replicators_killed` are the sites of those, one entry a kill.
    """

    pushes: list[Push] = field(default_factory=list)
    deletes: list[Delete] = field(default_factory=list)
    steps: int = 0
    replicators_killed: list[str] = field(default_factory=list)
    _by_tag: dict[tuple[str, str], list[Push]] = field(default_factory=dict)
    _by_digest: dict[tuple[str, str], list[Push]] = field(default_factory=dict)
    _taken: dict[tuple[str, str], list[Delete]] = field(default_factory=dict)
    _shared: dict[tuple[str, str], None] = field(default_factory=dict)

    def begin(self, push: Push) -> Push:
        """Note that a push has begun."""
        self.pushes.append(push)
        self._by_tag.setdefault((push.repository, push.tag), []).append(push)
        self._by_digest.setdefault((push.repository, push.digest), []).append(push)
        if push.shared:
            self._shared.setdefault((push.repository, push.tag))
        return push

    def begin_delete(self, delete: Delete) -> Delete:
        """Note that a delete has begun."""
        self.deletes.append(delete)
        self._taken.setdefault((delete.repository, delete.reference), []).append(delete)
        return delete

    @property
    def done(self) -> list[Push | Delete]:
        """All that was done or tried."""
        return [*self.pushes, *self.deletes]

    @property
    def acknowledged(self) -> list[Push]:
        """Those that were answered 201."""
        return [push for push in self.pushes if push.outcome is Outcome.OK]

    @property
    def tags(self) -> list[tuple[str, str]]:
        """Every tag that was ever pushed to, with its repository."""
        return list(self._by_tag)

    def may_show(self, repository: str, tag: str) -> set[str]:
        """The digests that were ever pushed to a tag."""
        pushes = self._by_tag.get((repository, tag), ())
        return {push.digest for push in pushes if push.outcome is not Outcome.FAILED}

    @property
    def standing(self) -> list[tuple[Push, str]]:
        """The acknowledged pushes with what shows each for ever: its digest, and its own tag.

        A delete that had seen the push takes the reference away.  Nothing is said of shared tags.
        """
        return [(push, ref) for push in self.acknowledged for ref in self._references(push)]

    def _references(self, push: Push) -> list[str]:
        if self._deleted(push, push.digest):
            return []
        own = not push.shared and not self._deleted(push, push.tag)
        return [push.digest, push.tag] if own else [push.digest]

    def _deleted(self, push: Push, reference: str) -> bool:
        return any(one.takes(push) for one in self._taken.get((push.repository, reference), ()))

    def pushes_of(self, repository: str, reference: str) -> list[Push]:
        """The pushes of a tag or a digest."""
        name = (repository, reference)
        return self._by_tag.get(name) or self._by_digest.get(name, [])

    def touched(self, repository: str, reference: str) -> bool:
        """Whether anybody has tried to delete it."""
        return (repository, reference) in self._taken

    @property
    def gone(self) -> set[tuple[str, str]]:
        """The digests and own tags that a delete took away and no other push brings back."""
        own = [push for push in self.acknowledged if not push.shared]
        pushed = {(push.repository, ref) for push in own for ref in (push.digest, push.tag)}
        return pushed - {(push.repository, reference) for push, reference in self.standing}

    @property
    def shared(self) -> list[tuple[str, str]]:
        """Every shared tag that was pushed to, with its repository."""
        return list(self._shared)

    def done_to(self, repository: str, tag: str) -> list[Push | Delete]:
        """All that may have changed what a tag shows: its pushes, and deletes of it or of those."""
        pushes = self._by_tag.get((repository, tag), [])
        references = dict.fromkeys([tag, *(push.digest for push in pushes)])
        deletes = [self._taken.get((repository, reference), []) for reference in references]
        tried = [push for push in pushes if push.outcome is not Outcome.FAILED]
        return [*tried, *chain.from_iterable(deletes)]

    def in_conflict(self, since: float) -> dict[tuple[str, str], set[tuple[str, str]]]:
        """The tags in conflict, with digest and site of each push, if no site has heard of another.

        That is of pushes that began after `since`, each site's to a tag one after the other; before
        it all sites were the same and no tag was in conflict.
        """
        last: dict[tuple[str, str], dict[str, str]] = {}
        for push in self.acknowledged:
            if push.shared and push.began >= since:
                last.setdefault((push.repository, push.tag), {})[push.site] = push.digest
        return {
            name: {(digest, site) for site, digest in sites.items()}
            for name, sites in last.items()
            if len(set(sites.values())) > 1
        }

    def left_open(self, site: str, in_work: int) -> int:
        """The most upload sessions that a site may have been left with, to expire.

        One by each push that was not acknowledged; by a killed replicator one for each blob and
        body that it was bringing, of which it has so many `in_work` at a time.
        """
        pushes = sum(push.site == site and push.outcome is not Outcome.OK for push in self.pushes)
        return pushes + in_work * self.replicators_killed.count(site)

    def write(self, path: Path) -> None:
        """Keep it for whoever has to find out what happened."""
        done = sorted(self.done, key=lambda one: one.began)
        path.write_text("".join(f"{json.dumps(asdict(one))}\n" for one in done))


async def check_visible(history: History, at: Registry, repository: str, tag: str) -> str | None:
    """Pull what a tag shows now; its digest, or None if it shows nothing.

    Raises:
        Broken: What it shows was never pushed to it, or is not whole.
    """
    shown = await at.pull(repository, tag)
    if shown is not None and shown not in history.may_show(repository, tag):
        raise Broken(f"{repository}:{tag} shows {shown}, which was never pushed to it")
    return shown


async def check_durable(history: History, at: Registry, since: float = 0.0) -> None:
    """See that every push that was acknowledged is there, whole, under its digest and its own tag.

    What a delete took away is not.  Pushes that began before `since` are not looked at.

    Raises:
        Broken: One is not, or what was deleted is there.
    """
    for push, reference in history.standing:
        if push.began < since:
            continue
        # Pulled once: what else shows it can only name the same content.
        look = at.pull if reference == push.digest else at.shows
        if (found := await look(push.repository, reference)) != push.digest:
            raise Broken(f"{at.url} shows {found} for {reference} of {push}")
    for repository, reference in history.gone:
        if (found := await at.shows(repository, reference)) is not None:
            raise Broken(f"{at.url} shows {found} for {repository} {reference}, which was deleted")


async def check_converged(history: History, *sites: Registry) -> None:
    """See that every tag shows the same at all sites.

    Raises:
        Broken: One does not.
    """
    for repository, tag in history.tags:
        shown = {await check_visible(history, at, repository, tag) for at in sites}
        if len(shown) != 1:
            raise Broken(f"{repository}:{tag} shows {shown}")
