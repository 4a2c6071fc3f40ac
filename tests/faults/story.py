"""One story of a lab: what clients do at its sites, what they see meanwhile, whether it ends well.

While a story is `watched`, each new tag is pulled at once at each site (I11), and no site is
believed that it is in sync without a look (I20).  Afterwards every site has to show what the
history says, all the same (I7, I10), and those conflicts (I9).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.faults.history import Delete, History, Outcome, Push, check_durable
from tests.faults.in_sync import InSync
from tests.faults.lab import Lab
from tests.faults.pusher import SHARED, Load, Puller, Pusher
from tests.faults.registry import Registry
from tests.waiting import eventually

# How long sites may take to be the same, and longer for each thing that was done at any: a deadline
# for a machine that others use, too, no target.
CONVERGED_S: Final = 180.0
CONVERGED_EACH_S: Final = 0.05

_EXAMPLES: Final = 3
_LOOK_S: Final = 0.2

Tag = tuple[str, str]


class Story:
    """What is done at the sites of a lab, in repositories of its own."""

    def __init__(
        self, lab: Lab, name: str, chance: random.Random, load: Load | None = None
    ) -> None:
        self.lab = lab
        self.name = name
        self.history = History()
        self.in_sync = InSync(lab.at, self.history)
        repositories = tuple(f"{name}/{one}" for one in (load or Load()).repositories)
        self.load = replace(load or Load(), repositories=repositories)
        self._pushers = {
            site: Pusher(
                f"{name}-{site}",
                site,
                at,
                history=self.history,
                chance=random.Random(chance.random()),
                load=self.load,
            )
            for site, at in lab.at.items()
        }

    def tell(self, figure: str) -> None:
        """Say what was measured; shown with the test's output."""
        sys.stderr.write(f"{self.name} at {time.monotonic():.1f} s: {figure}\n")

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Pull every new tag at each site, doubt every site; fail as soon as one is wrong.

        What was seen when it was watched before counts no more: sites may have lost it since.
        """
        self.in_sync = InSync(self.lab.at, self.history)
        try:
            async with asyncio.TaskGroup() as group:
                pullers = [Puller(at, self.history, _LOOK_S) for at in self.lab.at.values()]
                watchers = [group.create_task(puller.run()) for puller in pullers]
                watchers.append(group.create_task(self.in_sync.run()))
                yield
                for watcher in watchers:
                    watcher.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from group

    async def push(self, count: int, sites: Iterable[str] = ()) -> None:
        """Push so many images at each of these sites (all, if none is named), all at once."""
        async with asyncio.TaskGroup() as group:
            for site in sites or self._pushers:
                group.create_task(self._pushers[site].push(count))

    async def push_small(self, site: str, count: int) -> None:
        """Push so many manifests that need nearly nothing, at one site."""
        await self._pushers[site].push_small(count)

    async def settle(self, since: float, site: str) -> None:
        """End all conflicts of a cut that began then, by pushes at one site."""
        for repository, tag in self.history.in_conflict(since):
            await self._pushers[site].push_to(repository, tag)

    async def delete(self, site: str, repository: str, reference: str, seen: float) -> None:
        """Delete a tag or a digest at a site that has seen all pushes up to `seen`."""
        one = self.history.begin_delete(Delete(site, repository, reference, seen))
        await self.lab.at[site].delete(repository, reference)
        one.end(Outcome.OK)

    async def push_to(self, site: str, repository: str, tag: str) -> str:
        """Push a new image to a shared tag at one site, and return its digest."""
        return await self._pushers[site].push_to(repository, tag)

    async def push_again(self, site: str, push: Push) -> None:
        """Push what an earlier push has pushed, once more, at any site that has it."""
        await self._pushers[site].push_again(push)

    @property
    def deadline_s(self) -> float:
        """How long sites may take to be the same, by how much was done at them."""
        return CONVERGED_S + CONVERGED_EACH_S * len(self.history.done)

    async def converged(self) -> float:
        """Wait until all sites show all that they have to; how long that took, in seconds.

        Nothing is done at them meanwhile.
        """
        began = time.monotonic()
        wanted: dict[str, list[str]] = {repository: [] for repository in self.load.repositories}
        for push, reference in self.history.standing:
            if reference == push.tag:
                wanted[push.repository].append(reference)
        async with asyncio.TaskGroup() as group:
            for site in self.lab.at:
                group.create_task(self._has_all(site, wanted))
        await eventually(self._same, self.deadline_s, "shared tags show the same everywhere")
        return time.monotonic() - began

    async def agreed(self) -> float:
        """Wait until each site says that it is in sync with each; how long that took, in seconds.

        The story has to be watched: what they say is checked, which counts for nothing here.
        """
        began = time.monotonic()
        pairs = {pair for one, other in self.lab.peers for pair in ((one, other), (other, one))}
        await eventually(self._all_say_so, self.deadline_s, "all say in sync")
        took_s = time.monotonic() - began
        await eventually(lambda: self.in_sync.stands >= pairs, self.deadline_s, "all are believed")
        return took_s

    async def _all_say_so(self) -> bool:
        for site in self.lab.sites.values():
            for status in await site.peers():
                assert status["in_sync"], f"{site.name}: {status}"
        return True

    async def _has_all(self, site: str, wanted: Mapping[str, Sequence[str]]) -> None:
        for repository, tags in wanted.items():
            what = f"{site} lists the tags of {repository}"
            lists = _Lists(self.lab.at[site], repository, tags)
            await eventually(lists, self.deadline_s, what, each_s=_LOOK_S)

    async def _same(self) -> bool:
        shared = {(push.repository, push.tag) for push in self.history.pushes if push.shared}
        for repository, tag in shared:
            shown = {await at.shows(repository, tag) for at in self.lab.at.values()}
            assert len(shown) == 1, f"{repository}:{tag} shows {shown}"
        return True

    async def check(self, since: float | None = None) -> None:
        """See that every site has all that was acknowledged, whole, and shows the same.

        In conflict is the same at all sites: what was pushed `since` a cut of all from all began.
        If that is given, only what was pushed since is pulled.

        Raises:
            Broken, AssertionError: It is not so.
        """
        done = [one.outcome is Outcome.OK for one in self.history.done]
        assert all(done), "a site refused what is right"
        found = {site: await self.conflicts(at) for site, at in self.lab.at.items()}
        first = next(iter(found.values()))
        wanted = first if since is None else self.history.in_conflict(since)
        assert all(one == wanted for one in found.values()), f"{found} in conflict, not {wanted}"
        async with asyncio.TaskGroup() as group:
            for at in self.lab.at.values():
                group.create_task(check_durable(self.history, at, since or 0.0))

    async def conflicts(self, at: Registry) -> dict[Tag, set[tuple[str, str]]]:
        """The tags of the story that a site says are in conflict, with digest and site of each."""
        found: dict[Tag, set[tuple[str, str]]] = {}
        for repository in self.load.repositories:
            path: str | None = f"/api/v1/conflicts?repository={repository}"
            while path is not None:
                answer = await at.call("GET", path)
                answer.require(200, path)
                for one in json.loads(answer.body)["conflicts"]:
                    siblings = {(s["digest"], s["site"]) for s in one["siblings"]}
                    found[one["repository"], one["tag"]] = siblings
                link = answer.headers.get("Link")
                path = None if link is None else link.partition("<")[2].partition(">")[0]
        return found

    def write(self, folder: Path) -> None:
        """Keep the history beside the sites, for whoever has to find out what happened."""
        self.history.write(folder / f"{self.name}.jsonl")


class _Lists:
    """Whether a site lists these tags of a repository, and no others but shared ones.

    After a list that is not so, it is asked for one tag of the difference until that is as it
    should be: lists of thousands of tags, again and again, would take the time that is measured.
    """

    def __init__(self, at: Registry, repository: str, tags: Sequence[str]) -> None:
        self._at = at
        self._repository = repository
        self._tags = dict.fromkeys(tags)
        self._unlike: str | None = None
        self._seen = ""

    async def __call__(self) -> bool:
        if self._unlike is not None:
            there = await self._at.shows(self._repository, self._unlike) is not None
            assert there == (self._unlike in self._tags), self._seen
        listed = set(await self._at.tags(self._repository)) - set(SHARED)
        lacks = [tag for tag in self._tags if tag not in listed]
        more = sorted(listed - self._tags.keys())
        # The last one pushed is told last.
        self._unlike = next(iter([*lacks[-1:], *more]), None)
        self._seen = f"lacks {_some(lacks)}, has {_some(more)} that are not wanted"
        assert self._unlike is None, self._seen
        return True


def _some(tags: Sequence[str]) -> str:
    """How many there are, and a few of them."""
    few = ", ".join(tags[:_EXAMPLES])
    return f"{len(tags)} ({few}{', …' if len(tags) > _EXAMPLES else ''})" if tags else "none"
