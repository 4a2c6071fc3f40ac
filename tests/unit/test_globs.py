"""Patterns of repositories and tags."""

from __future__ import annotations

import time

import pytest

from node.globs import Filter, matches
from node.reference import Repository, Tag


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("**", "app", True),
        ("**", "team/app", True),
        ("*", "app", True),
        ("*", "team/app", False),
        ("team/*", "team/app", True),
        ("team/*", "team/app/web", False),
        ("team/*", "team", False),
        ("team/**", "team/app/web", True),
        ("team/**", "teams/app", False),
        ("**/web", "web", True),
        ("**/web", "team/app/web", True),
        ("**/web", "team/web/app", False),
        ("team/**/web", "team/web", True),
        ("team/**/web", "team/a/b/web", True),
        ("t?am/app", "team/app", True),
        ("t?am/app", "tam/app", False),
        ("team/a*p*", "team/app-prod", True),
        ("team/a*z", "team/app", False),
        ("team/app", "team/app2", False),
        ("", "app", False),
    ],
)
def test_repositories_match_by_segments(pattern: str, name: str, expected: bool) -> None:
    """A star stays in its segment, two stars cross segments, all else is literal."""
    assert matches(pattern, name) is expected


def test_a_filter_needs_one_match_of_each_kind() -> None:
    """A tag passes if its repository and its own name do; without a tag the repository decides."""
    taken = Filter(("team/**", "base"), ("v1.*", "latest"))
    assert taken.takes(Repository("base"))
    assert taken.takes(Repository("team/app"), Tag("v1.2"))
    assert not taken.takes(Repository("team/app"), Tag("v2.0"))
    assert not taken.takes(Repository("other"), Tag("latest"))
    assert Filter().takes(Repository("any/thing"), Tag("any"))


def test_a_fingerprint_is_of_the_patterns() -> None:
    """It lasts over restarts, and changes with what a filter may let through."""
    known = Filter(("a/**", "b"), ("v*",)).fingerprint
    assert known == Filter(("b", "a/**", "b"), ("v*",)).fingerprint
    others = [Filter(), Filter(("a/**",), ("v*",)), Filter(("a/**", "b", "v*"), ())]
    assert len({known, *(other.fingerprint for other in others)}) == 4


def test_a_hostile_pattern_costs_little() -> None:
    """Patterns come from peers: many stars must not take time without bound."""
    began = time.process_time()
    assert not matches("/".join(["**"] * 100 + ["*a" * 100 + "b"]), "/".join(["a" * 120] * 2))
    assert time.process_time() - began < 10
