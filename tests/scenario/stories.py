"""Turns of events that chance finds too rarely, told step by step.

Each story plays its steps in a world without faults, in every interleaving that it is about, and
lets it settle: the world's own checks are the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from node.keys import ManifestName, Name, TagName
from node.reference import Repository, Tag
from tests.scenario.checker import require
from tests.scenario.follower import Follower
from tests.scenario.images import IMAGES
from tests.scenario.profile import REPOSITORIES, Profile
from tests.scenario.site import SimSite
from tests.scenario.world import World

_FAR = 100_000
_CALM = Profile(faulty=False, strides=(_FAR,))
_APP: Repository = REPOSITORIES[0]
# More pauses than any one thing takes.
_LONG = 40


class Teller:
    """A world that does what it is told, each thing to its end or a number of pauses far."""

    def __init__(self) -> None:
        self.world = World(0, _CALM)
        self.a, self.b, self.c = self.world.sites

    def push(self, site: SimSite, image: str, *tags: str) -> None:
        """Push an image and what it needs."""
        self.world._push_image(site, _APP, IMAGES[image], tuple(Tag(tag) for tag in tags))

    def delete(self, site: SimSite, image: str) -> None:
        """Delete by digest."""
        self.world._delete(site, self.name(image))

    def tell(self, site: SimSite, source: SimSite, *names: str) -> None:
        """Let a site apply some of a source's keys, in this order."""
        for name in names:
            self.world._tell(site, source, self.name(name) if name in IMAGES else self.tag(name))

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

    def live(self, site: SimSite, image: str) -> bool:
        """Whether it is live there."""
        change = site.register(self.name(image))
        return change is not None and change.register.live

    @staticmethod
    def name(image: str) -> ManifestName:
        """The name of an image."""
        return ManifestName(_APP, IMAGES[image].digest)

    @staticmethod
    def tag(name: str) -> Name:
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


STORIES: tuple[Callable[[], None], ...] = (
    child_deleted_before_its_index_came,
    child_deleted_after_its_index,
    index_comes_while_its_child_is_deleted,
    parked_while_the_park_is_gone_through,
    tag_of_a_push_that_a_delete_had_not_seen,
)
