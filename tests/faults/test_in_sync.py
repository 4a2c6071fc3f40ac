"""The watcher of "in sync" itself: it sees a site that says so wrongly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
from multidict import CIMultiDict

from tests.faults.history import Delete, History, Outcome, Push
from tests.faults.in_sync import InSync
from tests.faults.registry import Answer, Broken

APP = "team/app"


@dataclass(slots=True)
class Told:
    """A site that says what it is told to say, and shows what it is told to show."""

    peer: str
    revision: int
    compared: tuple[int, int]
    in_sync: bool = True
    life: str = "one"
    lives: tuple[str, str] = ("one", "one")
    shown: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str) -> Answer:
        assert method == "GET"
        mine, theirs = self.compared
        compared: dict[str, object] = {"result": "same", "revision": mine, "peer_revision": theirs}
        compared |= zip(("incarnation", "peer_incarnation"), self.lives, strict=True)
        status = {"site": self.peer, "in_sync": self.in_sync, "compared": compared}
        content = {
            "/api/v1/site": {"incarnation": self.life, "revision": self.revision},
            "/api/v1/peers": {"peers": [status]},
        }
        return Answer(200, CIMultiDict(), json.dumps(content[path]).encode())

    async def shows(self, repository: str, reference: str) -> str | None:
        assert repository == APP
        return self.shown.get(reference)


def _pushed(history: History, site: str, tag: str) -> dict[str, str]:
    push = history.begin(Push(site, APP, tag, f"sha256:{tag}", shared=False))
    push.end(Outcome.OK)
    return {push.tag: push.digest, push.digest: push.digest}


async def test_what_both_show_is_in_sync() -> None:
    """A site that says so rightly is believed, and what it says is counted."""
    history = History()
    shown = _pushed(history, "fra", "v1") | _pushed(history, "nyc", "v2")
    fra, nyc = (Told(peer, 7, (7, 7), shown=shown) for peer in ("nyc", "fra"))
    watcher = InSync({"fra": fra, "nyc": nyc}, history)
    await watcher.look()
    assert watcher.claims == 2
    assert watcher.stands == {("fra", "nyc"), ("nyc", "fra")}


@pytest.mark.parametrize("pusher", ["fra", "nyc"])
@pytest.mark.parametrize("lacking", ["fra", "nyc"])
async def test_a_push_that_one_lacks_is_noticed(pusher: str, lacking: str) -> None:
    """Whoever has acknowledged it, and whoever does not show it."""
    history = History()
    shown = _pushed(history, pusher, "v1")
    sites = {site: Told(peer, 7, (7, 7)) for site, peer in (("fra", "nyc"), ("nyc", "fra"))}
    for site, told in sites.items():
        told.shown = {} if site == lacking else shown
    with pytest.raises(Broken):
        await InSync(sites, history).look()


async def test_a_delete_that_one_lacks_is_noticed() -> None:
    """A site that still shows it is not in sync with the one where it was deleted."""
    history = History()
    shown = _pushed(history, "fra", "v1")
    history.begin_delete(Delete("fra", APP, "v1", history.pushes[0].ended)).end(Outcome.OK)
    fra, nyc = Told("nyc", 7, (7, 7)), Told("fra", 7, (7, 7), shown=shown)
    with pytest.raises(Broken):
        await InSync({"fra": fra, "nyc": nyc}, history).look()


async def test_what_came_after_the_comparison_is_not_asked_for() -> None:
    """The peer may have gone on; the site itself may not, unless it says so no more."""
    history = History()
    shown = _pushed(history, "nyc", "v1")
    fra = Told("nyc", 7, (7, 5))
    nyc = Told("fra", 7, (5, 7), in_sync=False, shown=shown)
    await InSync({"fra": fra, "nyc": nyc}, history).look()
    nyc.in_sync = True
    with pytest.raises(Broken):
        await InSync({"fra": fra, "nyc": nyc}, history).look()


def _pushed_shared(history: History, *sites: str) -> None:
    for site in sites:
        history.begin(Push(site, APP, "latest", f"sha256:{site}", shared=True)).end(Outcome.OK)


async def test_a_shared_tag_that_shows_two_things_is_noticed() -> None:
    """Which push is shown nobody can tell, but it is the same one at both, if all was heard."""
    history = History()
    _pushed_shared(history, "fra", "nyc")
    fra, nyc = (
        Told(peer, 7, (7, 7), shown={f"sha256:{site}": f"sha256:{site}" for site in ("fra", "nyc")})
        for peer in ("nyc", "fra")
    )
    fra.shown["latest"] = nyc.shown["latest"] = "sha256:nyc"
    await InSync({"fra": fra, "nyc": nyc}, history).look()
    fra.shown["latest"] = "sha256:fra"
    with pytest.raises(Broken):
        await InSync({"fra": fra, "nyc": nyc}, history).look()
    history.begin(Push("fra", APP, "latest", "sha256:new", shared=True))
    await InSync({"fra": fra, "nyc": nyc}, history).look()


async def test_a_shared_tag_of_a_third_site_is_looked_at_where_one_has_heard_of_it() -> None:
    """Its push may be at one of two and not yet at the other; not if the claim is about it."""
    history = History()
    _pushed_shared(history, "sgp")
    shown = {"sha256:sgp": "sha256:sgp"}
    sites = {
        "fra": Told("nyc", 9, (6, 7), False, shown=shown | {"latest": "sha256:sgp"}),
        "nyc": Told("fra", 7, (7, 6), False, shown=shown),
        "sgp": Told("fra", 7, (7, 8), shown=shown | {"latest": "sha256:sgp"}),
    }
    watcher = InSync(sites, history)
    await watcher.look()
    sites["fra"].compared = (7, 7)
    await watcher.look()
    sites["fra"].compared = (8, 7)
    with pytest.raises(Broken):
        await watcher.look()


async def test_nobody_is_asked_for_what_was_said_before_the_first_look() -> None:
    """Unless it is said still: the site may have been changed behind its back since."""
    history = History()
    shown = _pushed(history, "fra", "v1")
    fra, nyc = Told("nyc", 7, (7, 7), False, shown=shown), Told("fra", 7, (7, 7), False)
    watcher = InSync({"fra": fra, "nyc": nyc}, history)
    await watcher.look()
    assert watcher.claims == 0
    fra.in_sync = True
    with pytest.raises(Broken):
        await watcher.look()


async def test_what_is_said_of_a_life_that_has_ended_is_not_looked_at() -> None:
    """A site that was put back in time shows nothing of it; that nobody has noticed is no proof."""
    history = History()
    shown = _pushed(history, "fra", "v1")
    fra, nyc = Told("nyc", 7, (7, 7), shown=shown), Told("fra", 3, (3, 7), in_sync=False)
    nyc.life, nyc.lives = "two", ("one", "one")
    watcher = InSync({"fra": fra, "nyc": nyc}, history)
    await watcher.look()
    assert (watcher.claims, watcher.stands) == (0, set())
    fra.lives = ("one", "two")
    with pytest.raises(Broken):
        await watcher.look()


async def test_a_new_life_that_believes_what_the_old_one_proved_is_noticed() -> None:
    """That the site is in sync, by its own revisions of before."""
    fra, nyc = Told("nyc", 7, (7, 7)), Told("fra", 3, (3, 7))
    nyc.life = "two"
    with pytest.raises(Broken):
        await InSync({"fra": fra, "nyc": nyc}, History()).look()
