"""What is remembered of an etcd's long ranges."""

from __future__ import annotations

from node.kv import Range
from node.kv_etcd_landmarks import Landmarks

WHOLE = Range(b"a", b"z", 10)


def test_nothing_is_cut_before_anything_is_known() -> None:
    """A range is asked for as it is where no page of it has cost much."""
    landmarks = Landmarks(far=100)
    landmarks.learn(b"m", 99)
    assert landmarks.near(WHOLE) == WHOLE


def test_a_page_is_asked_for_up_to_where_one_has_ended() -> None:
    """A landmark is an end for whoever begins before it, and for nobody else."""
    landmarks = Landmarks(far=100)
    landmarks.learn(b"m", 100)
    assert landmarks.near(WHOLE) == Range(b"a", b"m", 10)
    assert landmarks.near(Range(b"m", b"z")) == Range(b"m", b"z")
    assert landmarks.near(Range(b"a", b"m")) == Range(b"a", b"m")
    assert landmarks.near(Range(b"a", b"b")) == Range(b"a", b"b")


def test_landmarks_can_be_passed_over() -> None:
    """Whoever finds too little before one goes on to one that is further ahead."""
    landmarks = Landmarks(far=1)
    for end in (b"k", b"c", b"g", b"c"):
        landmarks.learn(end, 1)
    ends = [landmarks.near(WHOLE, ahead).end for ahead in (1, 2, 3, 4)]
    assert ends == [b"c", b"g", b"k", b"z"]


def test_they_do_not_fill_the_memory() -> None:
    """There are never more than so many, and new ones are still learnt."""
    landmarks = Landmarks(far=1, most=3)
    for number in range(10):
        landmarks.learn(b"%d" % number, 1)
        assert len(landmarks._keys) <= 3
    assert landmarks.near(Range(b"", b"z")).end == b"9"
