"""Whether sites say "in sync" only where they are (I20): asked all the time, against the history.

What a site says of a comparison is about two revisions, its own and its peer's, each of a life.  So
whatever either of the two had acknowledged before it was at that revision has to be visible at
both; and what a site had acknowledged before it was asked, if it says that nothing has changed
there since.  What is said of a life that has ended, as where a site was put back in time, can't be
looked at any more; nobody may say it of the own site's present.

What a shared tag shows the history can't tell.  But where both had heard of all that was ever done
to it, from whichever site, nothing can change it any more, and both have to show the same.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from tests.faults.history import Delete, History, Outcome, Push
from tests.faults.registry import Answer, Broken

_EVERY_S: Final = 0.1
_SAMPLES: Final = 1000


class At(Protocol):
    """A site's registry: see `tests.faults.registry.Registry`."""

    async def call(self, method: str, path: str) -> Answer:
        """Do one request."""
        ...

    async def shows(self, repository: str, reference: str) -> str | None:
        """The digest that a reference shows."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """A site that had come to a revision of a life at a moment, or to a later one."""

    at: float
    life: str
    revision: int


@dataclass(frozen=True, slots=True)
class Heard:
    """From which revision on a site has what another had acknowledged before `until`."""

    life: str
    revision: int
    until: float


class InSync:
    """Watches what all sites say of each other; `claims` counts what was checked.

    `stands` are the pairs of which the first says now that it is in sync with the second.  What was
    true before the first look may be so no more, where a site was changed behind its back: that is
    believed to nobody who says it of now, and asked of nobody who says it of then.
    """

    def __init__(self, sites: Mapping[str, At], history: History) -> None:
        self.claims = 0
        self.stands: set[tuple[str, str]] = set()
        self._sites = sites
        self._history = history
        self._samples: dict[str, deque[Sample]] = {site: deque(maxlen=_SAMPLES) for site in sites}
        self._at_first: dict[tuple[str, str], object] = {}
        self._told: dict[tuple[str, str], object] = {}
        self._seen: set[tuple[frozenset[str], str, str, str | None]] = set()
        self._heard: dict[tuple[str, str], Heard] = {}
        self._alike: set[tuple[frozenset[str], str, str, int]] = set()

    async def run(self) -> None:
        """Watch for ever.

        Raises:
            Broken: A site says what is not so.
        """
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Ask every site once, and check what is new in what it says.

        Raises:
            Broken: It is not so.
        """
        for site, at in self._sites.items():
            asked = time.monotonic()
            told = json.loads((await at.call("GET", "/api/v1/site")).body)
            self._samples[site].append(Sample(asked, told["incarnation"], told["revision"]))
        for site, at in self._sites.items():
            asked = time.monotonic()
            for status in json.loads((await at.call("GET", "/api/v1/peers")).body)["peers"]:
                await self._judge(site, status, asked)

    async def _judge(self, site: str, status: Mapping[str, Any], asked: float) -> None:
        peer, in_sync, compared = status["site"], status["in_sync"], status["compared"]
        (self.stands.add if in_sync else self.stands.discard)((site, peer))
        same = compared is not None and compared["result"] == "same"
        if in_sync and not (same and compared["incarnation"] == self._life(site)):
            raise Broken(f"{site} says in sync with {peer}, which no comparison says: {status}")
        if same and not self._lives(site, peer, compared):
            self.stands.discard((site, peer))
            return
        first = self._at_first.setdefault((site, peer), compared)
        if not same or (first == compared and not in_sync):
            return
        revisions = {site: compared["revision"], peer: compared["peer_revision"]}
        until = {one: self._before(one, revision) for one, revision in revisions.items()}
        if in_sync:  # nothing has changed there since
            until[site] = asked
        try:
            await self._judge_own((site, peer), (in_sync, compared), until)
            await self._judge_shared(until, revisions | ({site: math.inf} if in_sync else {}))
        except Broken as err:
            raise Broken(f"{site} says of {peer}: {status}; but {err}") from err
        for one, other in ((site, peer), (peer, site)):
            self._heard[one, other] = Heard(self._life(one), revisions[one], until[other])

    async def _judge_own(
        self, pair: tuple[str, str], told: tuple[object, ...], until: Mapping[str, float]
    ) -> None:
        # What stands now is about all that is acknowledged by now.
        telling = (*told, self._acknowledged() if told[0] else 0)
        if self._told.get(pair) != telling:
            self._told[pair] = telling
            self.claims += 1
            await self.check(until)

    async def _judge_shared(
        self, until: Mapping[str, float], revisions: Mapping[str, float]
    ) -> None:
        """See that both show the same for each shared tag of which both had heard all."""
        pair = frozenset(until)
        # If one has heard of it, the other has: they are the same.
        third = {one: self._through(one, revisions) for one in self._sites if one not in pair}
        heard = {**until, **third}
        for repository, tag in self._history.shared:
            key = (pair, repository, tag, len(self._history.done_to(repository, tag)))
            if key in self._alike or not self._is_heard(repository, tag, heard):
                continue
            shown = {one: await self._sites[one].shows(repository, tag) for one in pair}
            # What nobody may say more of now: somebody pushed to it while it was asked for.
            if not self._is_heard(repository, tag, heard):
                continue
            if len(set(shown.values())) > 1:
                raise Broken(f"{repository}:{tag} shows {shown}")
            self._alike.add(key)

    def _is_heard(self, repository: str, tag: str, heard: Mapping[str, float]) -> bool:
        """Whether all that was done to a tag was acknowledged before these moments."""
        return all(
            one.outcome is Outcome.OK and one.ended <= heard[one.site]
            for one in self._history.done_to(repository, tag)
        )

    def _through(self, origin: str, revisions: Mapping[str, float]) -> float:
        """Before when one of two sites, at these revisions, has heard all of a third one."""
        found = [(one, self._heard.get((one, origin))) for one in revisions]
        known = [
            heard.until
            for one, heard in found
            if heard and heard.life == self._life(one) and heard.revision <= revisions[one]
        ]
        return max(known, default=0.0)

    def _life(self, site: str) -> str:
        return self._samples[site][-1].life

    def _lives(self, site: str, peer: str, compared: Mapping[str, Any]) -> bool:
        """Whether what was compared are the lives that both live now."""
        lives = (compared["incarnation"], compared["peer_incarnation"])
        return lives == (self._life(site), self._life(peer))

    def _acknowledged(self) -> int:
        return sum(one.outcome is Outcome.OK for one in self._history.done)

    def _before(self, site: str, revision: int) -> float:
        """A moment before which nothing was acknowledged that this revision does not have."""
        life = self._life(site)
        samples = self._samples[site]
        found = [one.at for one in samples if one.life == life and one.revision <= revision]
        return max(found, default=0.0)

    async def check(self, until: Mapping[str, float]) -> None:
        """See that these two sites both show what either had acknowledged before a moment.

        Raises:
            Broken: One does not.
        """
        pair = frozenset(until)
        for one in self._history.done:
            if one.outcome is not Outcome.OK or one.ended > until.get(one.site, 0.0):
                continue
            for reference, digest in self._wanted(one).items():
                key = (pair, one.repository, reference, digest)
                if key not in self._seen:
                    for site in pair:
                        await self._compare(site, one, reference, digest)
                    self._seen.add(key)

    async def _compare(
        self, site: str, one: Push | Delete, reference: str, digest: str | None
    ) -> None:
        shown = await self._sites[site].shows(one.repository, reference)
        # What nobody may say more of now: something was done to it while it was asked for.
        if shown != digest and self._wanted(one).get(reference, shown) == digest:
            raise Broken(f"{site} is said to be in sync and shows {shown} for {reference} of {one}")

    def _wanted(self, one: Push | Delete) -> dict[str, str | None]:
        """What is shown for ever once this was heard of; nothing where other things were done."""
        if isinstance(one, Push):
            references = [one.digest] if one.shared else [one.digest, one.tag]
            if any(self._history.touched(one.repository, ref) for ref in references):
                return {}
            return dict.fromkeys(references, one.digest)
        pushes = self._history.pushes_of(one.repository, one.reference)
        return {one.reference: None} if all(map(one.takes, pushes)) else {}
