"""Sums of registers: equal where the states are equal, and nowhere else (I7)."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.digest import Algorithm, Digest
from node.globs import Filter
from node.keys import ManifestName, Name, TagName
from node.manifest import OCI_MANIFEST
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Dot, Register
from node.roots import BUCKETS, Roots, Sum, bucket_of, hash_of, passes
from node.wire import codec

State: TypeAlias = Mapping[Name, Register[Pushed]]

ACTORS = ("fra#1", "nyc#1")
DIGESTS = [Digest(Algorithm.SHA256, bytes([n]) * 32) for n in range(3)]
TAG = TagName(Repository("app"), Tag("v1"))
OTHER_TAG = TagName(Repository("app"), Tag("v2"))

_repositories = st.sampled_from([Repository("app"), Repository("lib/base")])
_names: st.SearchStrategy[Name] = st.one_of(
    st.builds(TagName, _repositories, st.sampled_from([Tag("v1"), Tag("v2")])),
    st.builds(ManifestName, _repositories, st.sampled_from(DIGESTS)),
)
_values = st.builds(
    Pushed,
    st.integers(0, 3),
    st.sampled_from(DIGESTS),
    st.sampled_from([OCI_MANIFEST, "a/b"]),
    st.integers(0, 2),
    st.sampled_from(["op1", "op2"]),
    st.none() | st.sampled_from(DIGESTS),
    st.none() | st.just("a/b"),
)
_registers = st.builds(
    Register,
    st.dictionaries(st.sampled_from(ACTORS), st.integers(1, 3), min_size=1),
    st.dictionaries(
        st.builds(Dot, st.sampled_from(ACTORS), st.integers(1, 2)), _values, max_size=2
    ),
)
_states = st.dictionaries(_names, _registers, max_size=4)


def _roots(state: State, order: random.Random | None = None) -> Roots:
    names = list(state)
    (order or random.Random(0)).shuffle(names)
    total = Sum()
    for name in names:
        total.add(name, state[name])
    return total.roots


def _summed(hashes: Mapping[Name, int]) -> Roots:
    total = Sum()
    total.add_hashes(hashes)
    return total.roots


@given(_states, _states)
def test_roots_are_equal_where_the_states_are(one: State, other: State) -> None:
    """Both ways: what differs in anything has other sums, tombstones and contexts count too."""
    assert (_roots(one).sums == _roots(other).sums) == (dict(one) == dict(other))


@given(_states, _names, _registers, st.randoms(use_true_random=False))
def test_one_difference_shows_in_one_bucket(
    state: State, name: Name, register: Register[Pushed], order: random.Random
) -> None:
    """The order of adding is all one, and what differs is found by its bucket alone."""
    changed = {**state, name: register}
    expected = [] if state.get(name) == register else [bucket_of(name)]
    assert _roots(state, order).differing(_roots(changed)) == expected


@given(_names, _registers)
def test_a_register_that_was_written_down_has_its_hash(
    name: Name, register: Register[Pushed]
) -> None:
    """Whatever order the stored form has, two sites that hold the same compute the same."""
    again = codec.decode_register(codec.encode_register(register))
    ctx, siblings = list(again.ctx.items()), list(again.siblings.items())
    backwards = Register(dict(ctx[::-1]), dict(siblings[::-1]))
    assert hash_of(name, backwards) == hash_of(name, register)


@given(_states)
def test_the_hashes_of_buckets_agree_with_the_roots(state: State) -> None:
    """A list of names is whole or is seen not to be."""
    hashes = {name: hash_of(name, register) for name, register in state.items()}
    roots = _roots(state)
    assert _summed(hashes).agrees(roots, range(BUCKETS))
    for name in hashes:
        others = {one: hashed for one, hashed in hashes.items() if one != name}
        assert not _summed(others).agrees(roots, [bucket_of(name)])
        assert _summed(others).agrees(roots, {*range(BUCKETS)} - {bucket_of(name)})


def test_live_registers_and_tombstones_are_counted() -> None:
    """A tombstone is a register like any, and is told apart."""
    value = Pushed(1, DIGESTS[0], OCI_MANIFEST, 2, "op")
    live = Register({"fra#1": 1}, {Dot("fra#1", 1): value})
    dead = live.delete(Dot("fra#1", 2))
    roots = _roots({TAG: dead, OTHER_TAG: live})
    assert (roots.live, roots.tombstones, roots.registers) == (1, 1, 2)


def test_the_hash_is_the_one_that_every_version_computes() -> None:
    """It is part of the protocol: sites of two versions compare by it."""
    value = Pushed(5, DIGESTS[1], OCI_MANIFEST, 8, "op", DIGESTS[2], "a/b")
    register = Register({"nyc#1": 3, "fra#1": 7}, {Dot("fra#1", 7): value})
    assert f"{hash_of(TAG, register):032x}" == "f8558436849a117bf8a400c3f47d1a9a"
    plain = replace(value, subject=None, artifact_type=None)
    name = ManifestName(Repository("app"), DIGESTS[1])
    told = Register(register.ctx, {Dot("fra#1", 7): plain})
    assert f"{hash_of(name, told):032x}" == "a2d1f7779887982c357648eaff69f74f"
    assert bucket_of(TAG) == 48


@pytest.mark.parametrize(
    ("name", "passing"),
    [
        (TagName(Repository("app"), Tag("v1")), True),
        (TagName(Repository("app"), Tag("x1")), False),
        (TagName(Repository("lib"), Tag("v1")), False),
        (ManifestName(Repository("app"), DIGESTS[0]), True),
        (ManifestName(Repository("lib"), DIGESTS[0]), False),
    ],
)
def test_both_filters_decide(name: Name, passing: bool) -> None:
    """What either site does not take is compared by neither."""
    assert passes(name, (Filter(("app",)), Filter(tags=("v*",)))) is passing
    assert passes(name, (Filter(tags=("v*",)), Filter(("app",)))) is passing
