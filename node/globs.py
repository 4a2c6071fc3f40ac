"""Patterns of names: which repositories and tags go from one site to another.

A pattern of repositories is matched segment by segment: `*` stands for any characters of one
segment, `?` for one, and a segment that is `**` for any number of segments, none too.  In a pattern
of tags, which have no segments, `**` is `*`.  Patterns come from peers too, so matching takes time
in proportion to the lengths and nothing worse, whatever the pattern.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256

from node.reference import Repository, Tag


@dataclass(frozen=True, slots=True)
class Filter:
    """What a site takes of a peer, or tells it; a name must match one pattern of its kind."""

    repositories: tuple[str, ...] = ("**",)
    tags: tuple[str, ...] = ("**",)

    def takes(self, repository: Repository, tag: Tag | None = None) -> bool:
        """Whether the repository passes, and the tag if one is given."""
        return any(matches(pattern, repository) for pattern in self.repositories) and (
            tag is None or any(_segment_matches(pattern, tag) for pattern in self.tags)
        )

    @property
    def fingerprint(self) -> str:
        """Differs where the patterns do; their order and repetition do not count. 16 hex digits."""
        patterns = [sorted(set(self.repositories)), sorted(set(self.tags))]
        return sha256(json.dumps(patterns).encode()).hexdigest()[:16]


def matches(pattern: str, name: str) -> bool:
    """Whether a repository's name matches a pattern."""
    segments = name.split("/")
    # reached[n]: the pattern so far can stand for the first n segments.
    reached = [True] + [False] * len(segments)
    for part in pattern.split("/"):
        if part == "**":
            first = reached.index(True) if True in reached else len(reached)
            reached = [n >= first for n in range(len(reached))]
        else:
            reached = [False] + [
                before and _segment_matches(part, segment)
                for before, segment in zip(reached, segments, strict=False)
            ]
    return reached[-1]


def _segment_matches(pattern: str, text: str) -> bool:
    """Greedy, with one point to come back to: the last star passed."""
    at = position = 0
    star, resume = -1, 0
    while position < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, position
            at += 1
        elif at < len(pattern) and pattern[at] in {"?", text[position]}:
            at += 1
            position += 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return not pattern[at:].strip("*")
