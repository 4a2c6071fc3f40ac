"""Three sites and all that can happen to them, driven by one seed in one thread.

Everything that runs is a coroutine that the world advances from one pause to the next, in an order
that only the seed decides; nothing awaits a real event, so a seed replays exactly.  After every
step the site that may have changed is checked; at the end all faults stop, the sites exchange
what they have until nothing moves, and must be equal, sound, and what the oracle says.
"""

from __future__ import annotations

import random
from collections.abc import Coroutine, Sequence
from typing import Any

from node.conflicts import Conflicts
from node.digest import Digest
from node.errors import MetadataUnavailable, PeerUnavailable, RegistryError
from node.keys import ManifestName, Name, TagName
from node.kv import Guard, Op
from node.records import Pushed
from node.reference import Repository, Tag
from node.register import Register
from node.transaction import CHUNK
from tests.clock import Clock
from tests.fake_kv import Fault, MemoryKV
from tests.scenario.checker import Violation, require
from tests.scenario.comparing import Comparison
from tests.scenario.follower import Follower
from tests.scenario.images import BY_DIGEST, IMAGES, Image
from tests.scenario.judge import Judge
from tests.scenario.known import following, manifests, registers, with_children
from tests.scenario.oracle import Intent
from tests.scenario.profile import (
    ANYTHING,
    MIXTURES,
    REPOSITORIES,
    STRIDES,
    TAGS,
    Profile,
    archives,
    leaning,
)
from tests.scenario.rest import come_to_rest, prove
from tests.scenario.site import SimSite
from tests.scenario.tasks import Pause, Task
from tests.scenario.watched_kv import WatchedKV


class World:
    """One history."""

    def __init__(self, seed: int, profile: Profile = ANYTHING) -> None:
        dice = random.Random(seed)
        self.random = dice
        self.seed = seed
        self.trace: list[str] = []
        self.current: Task | None = None
        self.tasks: list[Task] = []
        self.cuts: set[tuple[str, str]] = set()
        self.broken = False
        self.settling, self.orderly = False, profile.orderly
        self.faulty = dice.random() < 0.5 if profile.faulty is None else profile.faulty
        self.weights = dict(profile.weights or leaning(dice))
        # How far a task goes at a time: some histories are all races, some hardly any.
        self.strides = profile.strides or dice.choice(STRIDES)
        self.images = [IMAGES[name] for name in profile.images or dice.choice(MIXTURES)]
        # Some histories commit what has more than one layer in several transactions.
        self.chunk = profile.chunk or (3 if seed % 4 == 3 else CHUNK)
        self.grace_ms = dice.choice([500, 4_000, 60_000])
        kept_from = archives(seed) if profile.kept_from is None else profile.kept_from
        self.sites = [self._site(name, kept_from.get(name, frozenset())) for name in "ABC"]
        self.judge = Judge(self.sites)

    def _site(self, name: str, kept_from: frozenset[str]) -> SimSite:
        clock = Clock(skew_ms=self.random.choice([0, 0, -5_000, 900_000]))
        kv, grace_ms, chunk = WatchedKV(self), self.grace_ms, self.chunk
        return SimSite(name, kv, clock, self, kept_from, grace_ms=grace_ms, chunk=chunk)

    # --- what sites ask of the world

    async def pause(self) -> None:
        """Let anything else happen."""
        await Pause()

    def chance(self, share: float) -> bool:
        """Throw dice; when all settles there is no more chance."""
        return not (self.settling or self.orderly) and self.random.random() < share

    def peers(self, site: SimSite) -> Sequence[SimSite]:
        """The other sites, in a random order."""
        others = [other for other in self.sites if other is not site]
        self.random.shuffle(others)
        return others

    def reach(self, site: SimSite, other: SimSite) -> None:
        """Raise if the link is cut; links fail one way."""
        if (site.name, other.name) in self.cuts:
            raise PeerUnavailable(other.name, "the link is cut")

    def fault(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Fault | None:
        """What goes wrong with a transaction."""
        fails = self.faulty and self.fails()
        return self.random.choice(list(Fault)) if fails else None

    def fails(self) -> bool:
        """Whether something that may fail does."""
        return self.broken or (self.faulty and self.random.random() < 0.06)

    def intent(self) -> Intent:
        """On whose behalf things happen now."""
        assert self.current is not None
        return self.current.intent

    def wrote(self, kv: MemoryKV, intent: Intent, key: bytes, before: Register[Pushed]) -> None:
        """A register was written."""
        self.judge.wrote(next(s for s in self.sites if s.kv is kv), intent, key, before)

    def operation(self, op: str) -> None:
        """An operation was applied."""
        self.judge.oracle.operation(op)

    # --- running

    def run(self) -> None:
        """Let things happen, then settle.

        Raises:
            Violation: A promise was broken; the seed and the trace say how.
        """
        try:
            if self.random.random() < 0.6:
                self._begin()
            for _ in range(self.random.randrange(15, 90)):
                self._step()
            self.settle()
        except Exception as err:
            story = "\n".join(self.trace[-120:])
            raise Violation(f"seed {self.seed}: {err!r}, after\n{story}") from err
        finally:
            for task in self.tasks:
                task.end()

    def _begin(self) -> None:
        """Something is everywhere, or on its way."""
        first = self.sites[0]
        for image in self.images[: self.random.randrange(1, 4)]:
            tags = tuple(tag for tag in TAGS if self.random.random() < 0.3)
            self._push_image(first, REPOSITORIES[0], image, tags)
        while self.tasks:
            self._advance(self.tasks[0], 1000)
        for site in self.sites[1 : self.random.randrange(1, 4)]:
            self._replicate(site, "follow", first, Follower(site, first, self).follow())

    def _step(self) -> None:
        if self.tasks and self.random.random() < 0.5:
            self._advance(self.random.choice(self.tasks), self.random.choice(self.strides))
            return
        (name,) = self.random.choices(list(self.weights), list(self.weights.values()))
        for site in self.sites:
            site.clock.advance(self.random.randrange(1500))
        site = self.random.choice(self.sites)
        getattr(self, f"_{name}")(site)

    def _start(self, site: SimSite, intent: Intent, coroutine: Coroutine[Any, Any, None]) -> None:
        task = Task(site, intent, coroutine)
        self.tasks.append(task)
        self._advance(task, self.random.choice(self.strides))

    def _advance(self, task: Task, pauses: int) -> None:
        self.trace.append(f"{task.site.name}: {task.intent.label}, {pauses} on")
        self.current = task
        try:
            for _ in range(pauses):
                task.coroutine.send(None)
        except StopIteration:
            self._ended(task, None)
        except RegistryError as err:
            self._ended(task, err)
        finally:
            self.current = None
        self.judge.check(task.site)

    def _ended(self, task: Task, error: RegistryError | None) -> None:
        self.tasks.remove(task)
        self.trace.append(f"{task.site.name}: {task.intent.label}: {error or 'done'}")
        known = error is None or isinstance(error, (MetadataUnavailable, PeerUnavailable))
        require(known, "{} failed: {}", task.intent.label, error)

    # --- what can happen

    def _push(self, site: SimSite) -> None:
        repository = self._repository()
        image = self.random.choice(self.images)
        tags = tuple(tag for tag in TAGS if self.random.random() < 0.4)
        self._push_image(site, repository, image, tags)

    def _push_image(
        self, site: SimSite, repository: Repository, image: Image, tags: tuple[Tag, ...]
    ) -> None:
        names: set[Name] = {TagName(repository, tag) for tag in tags}
        names |= {ManifestName(repository, one.digest) for one in with_children(image)}
        intent = Intent(f"push {repository} {image.name} {','.join(tags)}", frozenset(names))
        self._client(site, intent, self._pushing(site, repository, image, tags))

    async def _pushing(
        self, site: SimSite, repository: Repository, image: Image, tags: tuple[Tag, ...]
    ) -> None:
        """Push as clients do: children first, those that are not there."""
        for child in image.children:
            if not await site.pushed(repository, child):
                await self._pushing(site, repository, child, ())
        op = site.new_id()
        await self._answering(op, site.push(repository, image, tags, op))

    async def _answering(self, op: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except MetadataUnavailable:
            raise
        except RegistryError:
            self.judge.oracle.refuse(op)
            raise
        self.judge.oracle.answered(op)

    def _resolve(self, site: SimSite) -> None:
        """Choose what a tag in conflict shows: mostly one of its siblings."""
        tags = [name for name, of in registers(site, TagName).items() if len(of.siblings) > 1]
        if tags:
            name = self.random.choice(tags)
            live = [one.digest for one, of in manifests(site).items() if of.live]
            of = [value.digest for value in registers(site, TagName)[name].siblings.values()]
            digest = self.random.choice([*of, *of, *of, *live])
            self._resolve_to(site, name, BY_DIGEST[digest])

    def _resolve_to(self, site: SimSite, name: TagName, image: Image) -> None:
        names = {ManifestName(name.repository, one.digest) for one in with_children(image)}
        label = f"resolve {name.repository}:{name.tag} {image.name}"
        intent = Intent(label, frozenset({name, *names}), saw=set())
        self._client(site, intent, self._resolving(site, name, image, intent))

    async def _resolving(self, site: SimSite, name: TagName, image: Image, intent: Intent) -> None:
        conflict = await Conflicts(site.kv).find(name)
        if conflict is not None and intent.saw is not None:
            intent.saw.update(conflict.dots)
            op = site.new_id()
            await self._answering(op, site.resolve(conflict, image, op))

    def _delete_manifest(self, site: SimSite) -> None:
        live = [name for name, register in manifests(site).items() if register.live]
        other = ManifestName(self._repository(), self.random.choice(self.images).digest)
        self._delete(site, self.random.choice([*live, *live, other]))

    def _delete(self, site: SimSite, name: ManifestName) -> None:
        repository, image = name.repository, BY_DIGEST[name.digest]
        label = f"delete {repository} {image.name}"
        work = site.metadata.delete_manifest(repository, image.digest, image.manifest)
        self._client(site, Intent(label, frozenset({name})), work)

    def _delete_tag(self, site: SimSite) -> None:
        self._untag(site, TagName(self._repository(), self.random.choice(TAGS)))

    def _untag(self, site: SimSite, name: TagName) -> None:
        label = f"delete {name.repository}:{name.tag}"
        work = site.metadata.delete_tag(name.repository, name.tag)
        self._client(site, Intent(label, frozenset({name})), work)

    def _hide(self, site: SimSite) -> None:
        work = site.hide(self._repository(), self._blob())
        self._client(site, Intent("hide"), work)

    def _mount(self, site: SimSite) -> None:
        work = site.mount(REPOSITORIES[1], REPOSITORIES[0], self._blob())
        self._client(site, Intent("mount"), work)

    def _blob(self) -> Digest:
        return self.random.choice([d for image in self.images for d in image.blobs])

    def _client(self, site: SimSite, intent: Intent, work: Coroutine[Any, Any, None]) -> None:
        async def answered() -> None:
            try:
                await work
            except RegistryError as err:
                self.trace.append(f"{site.name}: {intent.label}: answered {err}")

        self._start(site, intent, answered())

    def _repository(self) -> Repository:
        return REPOSITORIES[0] if self.random.random() < 0.9 else REPOSITORIES[1]

    def _follow(self, site: SimSite) -> None:
        source = self.random.choice(self.peers(site))
        self._replicate(site, "follow", source, Follower(site, source, self).follow())

    def _retry(self, site: SimSite) -> None:
        source, repository = self.random.choice(self.peers(site)), self._repository()
        self._replicate(site, "retry", source, Follower(site, source, self).retry(repository))

    def _replicate(
        self, site: SimSite, label: str, source: SimSite, work: Coroutine[Any, Any, None]
    ) -> None:
        """Start a follower's work, unless it is at it: there is one leader for each source."""
        lane = f"{label} {site.name}<-{source.name}"
        if any(task.intent.label == lane for task in self.tasks):
            work.close()
        else:
            self._start(site, following(lane, site, source), work)

    def _compare(self, site: SimSite) -> None:
        source = self.random.choice(self.peers(site))
        comparison = Comparison(site, source, self, self.judge)
        self._replicate(site, "compare", source, comparison.compare())

    def _relay(self, site: SimSite) -> None:
        source = self.random.choice(self.peers(site))
        names = [change.name for change in source.registers()]
        if names:
            self._tell(site, source, self.random.choice(names))

    def _tell(self, site: SimSite, source: SimSite, name: Name) -> None:
        intent = following(f"relay {site.name}<-{source.name} {name}", site, source)
        self._start(site, intent, Follower(site, source, self).relay(name))

    def _collect(self, site: SimSite) -> None:
        self._start(site, Intent("collect"), site.collect())

    def _tidy(self, site: SimSite) -> None:
        self._start(site, Intent("tidy"), site.tidy())

    def _crash(self, site: SimSite) -> None:
        self.trace.append(f"{site.name}: crash")
        for task in [task for task in self.tasks if task.site is site]:
            task.end()
            self.tasks.remove(task)
        site.start()

    def _cut(self, site: SimSite) -> None:
        other = self.random.choice(self.peers(site))
        both = {(site.name, other.name), (other.name, site.name)}
        self.cuts |= both if self.random.random() < 0.6 else {(site.name, other.name)}
        self.trace.append(f"cut: {sorted(self.cuts)}")

    def _heal(self, site: SimSite) -> None:
        self.cuts = {cut for cut in self.cuts if site.name not in cut}
        self.trace.append(f"cut: {sorted(self.cuts)}")

    def _land(self, site: SimSite) -> None:
        kv = site.kv
        if kv.ghosts:
            try:
                outcome = kv.land(self.random.randrange(len(kv.ghosts)))
            except MetadataUnavailable as err:
                outcome = None
                self.trace.append(f"{site.name}: a ghost is refused: {err}")
            self.trace.append(f"{site.name}: a ghost lands: {outcome}")
            self.judge.check(site)

    def _wait(self, site: SimSite) -> None:
        for one in self.sites:
            one.clock.advance(5_000)
        self.trace.append("time passes")

    # --- the end

    def settle(self) -> None:
        """Faults stop; everything in work ends; the sites exchange until nothing moves."""
        self.trace.append("settle")
        self.faulty = False
        self.settling = True
        self.cuts.clear()
        while self.tasks:
            self._advance(self.tasks[0], 100_000)
        for site in self.sites:
            while site.kv.ghosts:
                self._land(site)
        come_to_rest(self)
        self.judge.compare()
        prove(self)

    def finish(self, site: SimSite, intent: Intent, work: Coroutine[Any, Any, None]) -> None:
        """Do something to its end."""
        task = Task(site, intent, work)
        self.tasks.append(task)
        self._advance(task, 100_000)
