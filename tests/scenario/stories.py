"""Turns of events that chance finds too rarely, told step by step.

Each story plays its steps in a world without faults, in every interleaving that it is about, and
lets it settle: the world's own checks are the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from node.digest import Digest
from node.keys import ManifestName, Name, TagName
from node.reference import Repository, Tag
from tests.fake_kv import MemoryKV
from tests.scenario.checker import require
from tests.scenario.follower import Follower
from tests.scenario.images import IMAGES
from tests.scenario.profile import REPOSITORIES, Profile
from tests.scenario.site import SimSite
from tests.scenario.world import World

_FAR = 100_000
_CALM = Profile(faulty=False, strides=(_FAR,), orderly=True)
NOTHING_KEPT: Final[Mapping[str, frozenset[str]]] = {}
_APP: Repository = REPOSITORIES[0]
# More pauses than any one thing takes.
_LONG = 40


class Teller:
    """A world that does what it is told, each thing to its end or a number of pauses far."""

    def __init__(self, kept_from: Mapping[str, frozenset[str]] = NOTHING_KEPT) -> None:
        self.world = World(0, replace(_CALM, kept_from=kept_from))
        self.a, self.b, self.c = self.world.sites

    def push(self, site: SimSite, image: str, *tags: str) -> None:
        """Push an image and what it needs."""
        self.world._push_image(site, _APP, IMAGES[image], tuple(Tag(tag) for tag in tags))

    def delete(self, site: SimSite, what: str) -> None:
        """Delete an image by its digest, or a tag."""
        match self.named(what):
            case ManifestName() as name:
                self.world._delete(site, name)
            case TagName() as name:
                self.world._untag(site, name)

    def resolve(self, site: SimSite, tag: str, image: str) -> None:
        """Choose what a tag in conflict shows."""
        self.world._resolve_to(site, self.tag(tag), IMAGES[image])

    def conflict(self, tag: str) -> None:
        """A and B each push to a tag, c and d, and A hears of both."""
        self.push(self.a, "c", tag)
        self.push(self.b, "d", tag)
        self.follow(self.a, self.b)

    def tell(self, site: SimSite, source: SimSite, *names: str) -> None:
        """Let a site apply some of a source's keys, in this order."""
        for name in names:
            self.world._tell(site, source, self.named(name))

    def follow(self, site: SimSite, source: SimSite) -> None:
        """Let a site take what is new."""
        self.world._replicate(site, "follow", source, Follower(site, source, self.world).follow())

    def retry(self, site: SimSite, source: SimSite) -> None:
        """Let a site go through a parked repository."""
        self.world._replicate(site, "retry", source, Follower(site, source, self.world).retry(_APP))

    @contextmanager
    def meanwhile(self, pauses: int) -> Iterator[None]:
        """What is begun here goes only so many pauses far; the rest of it happens later."""
        self.world.strides = (pauses,)
        yield
        self.world.strides = (_FAR,)

    def cut(self, site: SimSite, other: SimSite) -> None:
        """Neither hears of the other until the world settles."""
        self.world.cuts |= {(site.name, other.name), (other.name, site.name)}

    def restore(self, site: SimSite, saved: MemoryKV) -> None:
        """A site's metadata are what they were, and it begins a new life."""
        site.kv.restore(saved)
        site.life += 1
        site.start()

    def live(self, site: SimSite, what: str) -> bool:
        """Whether an image or a tag is live there."""
        change = site.register(self.named(what))
        return change is not None and change.register.live

    def shown(self, site: SimSite, tag: str) -> Digest | None:
        """What a tag shows there."""
        change = site.register(self.tag(tag))
        value = None if change is None else change.register.shown()
        return None if value is None else value.digest

    def named(self, what: str) -> Name:
        """The name of an image or a tag."""
        return self.name(what) if what in IMAGES else self.tag(what)

    @staticmethod
    def name(image: str) -> ManifestName:
        """The name of an image."""
        return ManifestName(_APP, IMAGES[image].digest)

    @staticmethod
    def tag(name: str) -> TagName:
        """The name of a tag."""
        return TagName(_APP, Tag(name))


def child_deleted_before_its_index_came() -> None:
    """B deletes a child whose index it has not heard of; the index keeps its child."""
    teller = Teller()
    teller.push(teller.a, "i", "t")
    teller.tell(teller.b, teller.a, "c")
    teller.delete(teller.b, "c")
    teller.tell(teller.a, teller.b, "c")
    teller.world.settle()
    for site in teller.world.sites:
        require(teller.live(site, "c"), "the child is lost at {}", site.name)


def index_pushed_over_a_child_that_is_deleted_elsewhere() -> None:
    """Who hears of both has the index at once, though its author has not heard of the delete."""
    teller = Teller()
    teller.push(teller.a, "c")
    for site in (teller.b, teller.c):
        teller.follow(site, teller.a)
    teller.delete(teller.a, "c")
    teller.push(teller.b, "i", "t")
    teller.follow(teller.c, teller.a)
    teller.follow(teller.c, teller.b)
    for image in "ci":
        require(teller.live(teller.c, image), "{} is not live where both were heard of", image)
    teller.world.settle()


def child_deleted_after_its_index() -> None:
    """B deletes an index, then its child; the child's tombstone arrives first, and both go."""
    teller = Teller()
    teller.push(teller.a, "x")
    teller.follow(teller.b, teller.a)
    for image in "xic":
        teller.delete(teller.b, image)
    teller.tell(teller.a, teller.b, "c", "i", "x")
    teller.world.settle()
    for site in teller.world.sites:
        require(not teller.live(site, "c"), "the child is kept at {}", site.name)


def index_comes_while_its_child_is_deleted() -> None:
    """An index may arrive at any moment of its child's delete."""
    for pauses in range(1, _LONG):
        teller = Teller()
        teller.push(teller.a, "i")
        teller.tell(teller.b, teller.a, "c")
        with teller.meanwhile(pauses):
            teller.delete(teller.b, "c")
        teller.tell(teller.b, teller.a, "i")
        teller.world.settle()


def parked_while_the_park_is_gone_through() -> None:
    """What is parked while a parked repository is gone through stays parked."""
    for pauses in range(1, 160, 5):
        teller = Teller()
        teller.push(teller.a, "c")
        teller.world.broken = True
        teller.follow(teller.b, teller.a)
        teller.world.broken = False
        with teller.meanwhile(pauses):
            teller.retry(teller.b, teller.a)
        teller.push(teller.a, "d")
        teller.world.broken = True
        teller.follow(teller.b, teller.a)
        teller.world.broken = False
        teller.world.settle()


def tag_of_a_push_that_a_delete_had_not_seen() -> None:
    """A manifest is pushed again, with a tag, while another site deletes the first push of it."""
    teller = Teller()
    teller.push(teller.a, "c")
    for site in (teller.b, teller.c):
        teller.follow(site, teller.a)
    teller.delete(teller.b, "c")
    teller.push(teller.a, "c", "t")
    teller.tell(teller.c, teller.a, "t")
    teller.tell(teller.c, teller.b, "c")
    teller.world.settle()
    for site in teller.world.sites:
        change = site.register(teller.tag("t"))
        require(change is not None and change.register.live, "the tag is lost at {}", site.name)


def conflict_resolved() -> None:
    """What is chosen at one site is what all show, and nothing is hidden any more."""
    for image in "cds":
        teller = Teller()
        teller.push(teller.a, "s")
        teller.conflict("t")
        teller.resolve(teller.a, "t", image)
        teller.world.settle()
        for site in teller.world.sites:
            change = site.register(teller.tag("t"))
            left = [] if change is None else list(change.register.siblings.values())
            chosen = [value.digest for value in left] == [IMAGES[image].digest]
            require(chosen, "{} is not what {} shows alone", image, site.name)


def conflict_resolved_while_a_push_arrives() -> None:
    """A push that comes at any moment of the choice was seen, or is not replaced by it."""
    for pauses in range(1, _LONG):
        for here in (True, False):
            teller = Teller()
            teller.push(teller.c, "k", "t")
            teller.conflict("t")
            with teller.meanwhile(pauses):
                teller.resolve(teller.a, "t", "c")
            if here:
                teller.push(teller.a, "s", "t")
            else:
                teller.follow(teller.a, teller.c)
            teller.world.settle()


def conflict_resolved_while_what_is_chosen_is_deleted() -> None:
    """A choice does not bring back what was deleted before it was made."""
    for pauses in range(1, _LONG):
        for image in "cds":
            teller = Teller()
            teller.push(teller.a, "s")
            teller.conflict("t")
            with teller.meanwhile(pauses):
                teller.resolve(teller.a, "t", image)
            teller.delete(teller.a, image)
            teller.world.settle()


STORIES: tuple[Callable[[], None], ...] = (
    child_deleted_before_its_index_came,
    index_pushed_over_a_child_that_is_deleted_elsewhere,
    child_deleted_after_its_index,
    index_comes_while_its_child_is_deleted,
    parked_while_the_park_is_gone_through,
    tag_of_a_push_that_a_delete_had_not_seen,
    conflict_resolved,
    conflict_resolved_while_a_push_arrives,
    conflict_resolved_while_what_is_chosen_is_deleted,
)
