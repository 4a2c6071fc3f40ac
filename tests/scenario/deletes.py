"""Stories of deletes: across a cut, told again, met by an old state, kept by an archive."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

from tests.scenario.checker import require
from tests.scenario.profile import AN_ARCHIVE
from tests.scenario.site import SimSite
from tests.scenario.stories import Teller

_LONG = 40


def _everywhere(teller: Teller, image: str, *tags: str) -> None:
    """A pushes, and the others hear of it."""
    teller.push(teller.a, image, *tags)
    for site in (teller.b, teller.c):
        teller.follow(site, teller.a)


def _all_are(teller: Teller, what: str, *, live: bool) -> None:
    for site in teller.world.sites:
        _is(teller, site, what, live=live)


def _is(teller: Teller, site: SimSite, what: str, *, live: bool) -> None:
    found = teller.live(site, what)
    require(found is live, "{} is {}live at {}", what, "" if found else "not ", site.name)


def deleted_while_it_is_pushed_again() -> None:
    """A deletes during a cut, by digest or by tag, and B pushes again: the push had not seen it."""
    for again in ("c", "d"):
        for what in ("c", "t"):
            teller = Teller()
            _everywhere(teller, "c", "t")
            teller.cut(teller.a, teller.b)
            teller.delete(teller.a, what)
            teller.push(teller.b, again, "t")
            teller.follow(teller.c, teller.a)
            teller.follow(teller.c, teller.b)
            teller.world.settle()
            _all_are(teller, again, live=True)
            _all_are(teller, "t", live=True)


def deleted_after_it_was_pushed_again() -> None:
    """Whoever had seen the second push deletes it for all, whatever they hear, and when."""
    for order in permutations(range(3)):
        teller = Teller()
        _everywhere(teller, "c", "t")
        teller.push(teller.b, "c", "t")
        teller.follow(teller.a, teller.b)
        teller.delete(teller.a, "c")
        for at in order:
            for source in teller.world.sites:
                teller.retry(teller.world.sites[at], source)
        teller.world.settle()
        for what in "ct":
            _all_are(teller, what, live=False)


def told_everything_again() -> None:
    """A full resync between any two sites, before or after they hear, brings nothing back."""
    for site, source in permutations(range(3), 2):
        for images in ("c", "i", "x", "s"):
            teller = Teller()
            _everywhere(teller, images, "t")
            teller.delete(teller.a, images)
            teller.follow(teller.b, teller.a)
            for one, other in ((site, source), (source, site)):
                teller.retry(teller.world.sites[one], teller.world.sites[other])
            for what in (images, "t"):
                for told in {site, source} & {0, 1}:
                    _is(teller, teller.world.sites[told], what, live=False)
            teller.world.settle()
            _all_are(teller, images, live=False)
            _all_are(teller, "t", live=False)


def back_with_an_old_state() -> None:
    """C was away while all was deleted, and tells what it has to those who know better."""
    for pauses in range(1, _LONG, 3):
        teller = Teller()
        _everywhere(teller, "x", "t", "u")
        for image in "xic":
            teller.delete(teller.a, image)
        teller.follow(teller.b, teller.a)
        with teller.meanwhile(pauses):
            teller.follow(teller.c, teller.b)
        for site in (teller.a, teller.b):
            teller.retry(site, teller.c)
            for what in "xictu":
                _is(teller, site, what, live=False)
        teller.world.settle()
        for what in "xictu":
            _all_are(teller, what, live=False)


def restored_from_before_the_delete() -> None:
    """C's metadata are restored: what it had pushed comes back to it, what was deleted does not."""
    for told in (False, True):
        teller = Teller()
        _everywhere(teller, "c", "t")
        saved = teller.c.kv.copy()
        teller.follow(teller.c, teller.a)
        teller.push(teller.c, "d", "u")
        teller.follow(teller.a, teller.c)
        teller.delete(teller.a, "c")
        if told:
            teller.follow(teller.c, teller.a)
        teller.restore(teller.c, saved)
        _is(teller, teller.c, "c", live=True)
        for site in (teller.a, teller.b):
            teller.retry(site, teller.c)
        teller.push(teller.c, "s", "t")
        teller.world.settle()
        _all_are(teller, "c", live=False)
        for what in "dsut":
            _all_are(teller, what, live=True)


# --- B does not take what A and C delete


def _archive() -> Teller:
    return Teller(AN_ARCHIVE)


def archive_keeps_what_was_deleted() -> None:
    """By digest, by tag, as an index and its children: B has it all, and nobody gets it back."""
    for deleted in ("xic", "t", "tx"):
        teller = _archive()
        _everywhere(teller, "x", "t", "u")
        for what in deleted:
            teller.delete(teller.a, what)
        for site in (teller.b, teller.c):
            teller.follow(site, teller.a)
        for site in (teller.a, teller.c):
            teller.retry(site, teller.b)
        teller.world.settle()
        for what in "xictu":
            _is(teller, teller.b, what, live=True)
        for what in deleted:
            for site in (teller.a, teller.c):
                _is(teller, site, what, live=False)


def archive_hears_of_the_next_push() -> None:
    """What was deleted and is pushed again replaces what B has kept."""
    for image in "cd":
        teller = _archive()
        _everywhere(teller, "c", "t")
        teller.delete(teller.a, "c")
        teller.follow(teller.b, teller.a)
        teller.push(teller.a, image, "t")
        teller.world.settle()
        _all_are(teller, image, live=True)
        _all_are(teller, "t", live=True)
        shown = [teller.shown(site, "t") for site in teller.world.sites]
        require(shown == [teller.name(image).digest] * 3, "the archive does not show the push")


def archive_deletes_what_it_kept() -> None:
    """A delete at B itself is one like any other."""
    teller = _archive()
    _everywhere(teller, "c", "t")
    teller.delete(teller.a, "t")
    teller.follow(teller.b, teller.a)
    teller.delete(teller.b, "c")
    teller.world.settle()
    for what in "ct":
        _all_are(teller, what, live=False)


def archive_pushes_over_what_it_kept() -> None:
    """An index that a client pushes at B brings its children back to all, for it needs them."""
    teller = _archive()
    _everywhere(teller, "c")
    teller.delete(teller.a, "c")
    teller.follow(teller.b, teller.a)
    teller.push(teller.b, "i", "t")
    teller.world.settle()
    for what in "cit":
        _all_are(teller, what, live=True)


def archive_keeps_children_for_all() -> None:
    """A deletes a child whose index, pushed at B, it has not heard of: all keep both."""
    teller = _archive()
    teller.push(teller.b, "i", "t")
    teller.tell(teller.a, teller.b, "c")
    teller.delete(teller.a, "c")
    for site in (teller.b, teller.c):
        teller.tell(site, teller.a, "c")
    teller.world.settle()
    for what in "cit":
        _all_are(teller, what, live=True)


def archive_keeps_children_to_itself_of_what_is_deleted() -> None:
    """A deletes an index, then its child; B keeps both, in whichever order it hears, and alone."""
    for order in permutations("xic"):
        teller = _archive()
        _everywhere(teller, "x")
        for image in "xic":
            teller.delete(teller.a, image)
        teller.tell(teller.b, teller.a, *order)
        teller.world.settle()
        for what in "xic":
            _is(teller, teller.b, what, live=True)
            _is(teller, teller.c, what, live=False)


def archive_hears_of_a_push_that_is_being_deleted() -> None:
    """A tag moves to an image that is deleted at any moment of B's hearing of it."""
    for pauses in range(1, _LONG, 2):
        teller = _archive()
        _everywhere(teller, "c", "t")
        teller.push(teller.a, "d", "t")
        with teller.meanwhile(pauses):
            teller.follow(teller.b, teller.a)
        with teller.meanwhile(pauses // 2 + 1):
            teller.delete(teller.a, "d")
        teller.push(teller.a, "d")
        teller.world.settle()
        _is(teller, teller.b, "t", live=True)


ARCHIVE: tuple[Callable[[], None], ...] = (
    archive_keeps_what_was_deleted,
    archive_hears_of_the_next_push,
    archive_deletes_what_it_kept,
    archive_pushes_over_what_it_kept,
    archive_keeps_children_for_all,
    archive_keeps_children_to_itself_of_what_is_deleted,
    archive_hears_of_a_push_that_is_being_deleted,
)

DELETES: tuple[Callable[[], None], ...] = (
    deleted_while_it_is_pushed_again,
    deleted_after_it_was_pushed_again,
    told_everything_again,
    back_with_an_old_state,
    restored_from_before_the_delete,
)
