"""What was done to sites and how it ended, and whether what they show agrees with it.

One line of JSON for each push, with times of the monotonic clock; every push has content of its
own, so a digest tells which push is seen.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from enum import StrEnum
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
    """One push of one manifest to one tag at one site; the tag is only its own unless shared."""

    site: str
    repository: str
    tag: str
    digest: str
    shared: bool
    began: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    outcome: Outcome = Outcome.OPEN

    def end(self, outcome: Outcome) -> None:
        """Note how it ended, now."""
        self.ended, self.outcome = time.monotonic(), outcome


@dataclass(slots=True)
class History:
    """All pushes; `steps` counts the requests that were answered or lost."""

    pushes: list[Push] = field(default_factory=list)
    steps: int = 0

    def begin(self, push: Push) -> Push:
        """Note that a push has begun."""
        self.pushes.append(push)
        return push

    @property
    def acknowledged(self) -> list[Push]:
        """Those that were answered 201."""
        return [push for push in self.pushes if push.outcome is Outcome.OK]

    @property
    def tags(self) -> dict[tuple[str, str], set[str]]:
        """Every tag that was ever pushed to, with the digests that it may show."""
        found: dict[tuple[str, str], set[str]] = {}
        for push in self.pushes:
            if push.outcome is not Outcome.FAILED:
                found.setdefault((push.repository, push.tag), set()).add(push.digest)
        return found

    def unacknowledged(self, site: str) -> int:
        """How many pushes at a site may have left an upload session."""
        return sum(push.site == site and push.outcome is not Outcome.OK for push in self.pushes)

    def write(self, path: Path) -> None:
        """Keep it for whoever has to find out what happened."""
        path.write_text("".join(f"{json.dumps(asdict(push))}\n" for push in self.pushes))


async def check_visible(history: History, at: Registry, repository: str, tag: str) -> str | None:
    """Pull what a tag shows now; its digest, or None if it shows nothing.

    Raises:
        Broken: What it shows was never pushed to it, or is not whole.
    """
    shown = await at.pull(repository, tag)
    if shown is not None and shown not in history.tags[repository, tag]:
        raise Broken(f"{repository}:{tag} shows {shown}, which was never pushed to it")
    return shown


async def check_durable(history: History, at: Registry) -> None:
    """See that every push that was acknowledged is there, whole, under its digest and its own tag.

    Raises:
        Broken: One is not.
    """
    for push in history.acknowledged:
        references = [push.digest] if push.shared else [push.digest, push.tag]
        for reference in references:
            if (found := await at.pull(push.repository, reference)) != push.digest:
                raise Broken(f"{at.url} shows {found} for {reference} of {push}")


async def check_converged(history: History, *sites: Registry) -> None:
    """See that every tag shows the same at all sites.

    Raises:
        Broken: One does not.
    """
    for repository, tag in history.tags:
        shown = {await check_visible(history, at, repository, tag) for at in sites}
        if len(shown) != 1:
            raise Broken(f"{repository}:{tag} shows {shown}")
