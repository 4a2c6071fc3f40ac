"""What a history says that sites have to show: the oracle of all stories, itself tried."""

from __future__ import annotations

import pytest

from tests.faults.history import Delete, History, Outcome, Push

APP = "team/app"


def _push(
    history: History, site: str, tag: str, digest: str, at: float, *, shared: bool = False
) -> Push:
    push = Push(site, APP, tag, digest, shared, began=at, ended=at, outcome=Outcome.OK)
    return history.begin(push)


def _delete(history: History, site: str, reference: str, *, seen: float, at: float) -> Delete:
    delete = Delete(site, APP, reference, seen, began=at, ended=at, outcome=Outcome.OK)
    return history.begin_delete(delete)


def _shown(history: History) -> set[str]:
    return {reference for _, reference in history.standing}


@pytest.mark.parametrize("reference", ["v1", "sha256:1"])
def test_a_delete_takes_what_it_had_seen(reference: str) -> None:
    """A tag goes alone, a digest with its tags; what is gone may come back nowhere."""
    history = History()
    _push(history, "fra", "v1", "sha256:1", at=1)
    _delete(history, "nyc", reference, seen=2, at=3)
    assert _shown(history) == ({"sha256:1"} if reference == "v1" else set())
    assert history.gone == {(APP, reference), (APP, "v1")}


def test_a_delete_takes_nothing_that_it_had_not_seen() -> None:
    """A push at another site during a cut survives it; one at the same site before it does not."""
    history = History()
    _push(history, "fra", "v1", "sha256:1", at=3)
    _push(history, "nyc", "v2", "sha256:2", at=3)
    _delete(history, "fra", "v1", seen=2, at=4)
    _delete(history, "fra", "sha256:2", seen=2, at=4)
    assert _shown(history) == {"sha256:1", "sha256:2", "v2"}
    assert history.gone == {(APP, "v1")}


def test_what_is_pushed_again_lives() -> None:
    """Also where the first push was deleted meanwhile elsewhere."""
    history = History()
    _push(history, "fra", "v1", "sha256:1", at=1)
    _delete(history, "nyc", "sha256:1", seen=2, at=3)
    _push(history, "fra", "v1", "sha256:1", at=3)
    assert _shown(history) == {"sha256:1", "v1"}
    assert not history.gone


def test_the_last_pushes_of_two_sites_are_in_conflict() -> None:
    """Each site's last push to a tag of both, since a cut; the same content is no conflict."""
    history = History()
    _push(history, "fra", "latest", "sha256:0", at=1, shared=True)
    _push(history, "fra", "latest", "sha256:1", at=3, shared=True)
    _push(history, "fra", "latest", "sha256:2", at=4, shared=True)
    _push(history, "nyc", "latest", "sha256:3", at=3, shared=True)
    for site in ("fra", "nyc"):
        _push(history, site, "edge", "sha256:4", at=3, shared=True)
    both = {("sha256:2", "fra"), ("sha256:3", "nyc")}
    assert history.in_conflict(since=2) == {(APP, "latest"): both}
