"""Whether what the sites did is what they had promised: after every step, and at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from node import keys
from node.keys import Name, TagName
from node.kv import Entry
from node.records import Action, Pushed
from node.register import Register, merge
from node.wire import codec
from tests.scenario.checker import State, check_site, parse_register, require
from tests.scenario.images import BY_DIGEST
from tests.scenario.oracle import Intent, Oracle, Write
from tests.scenario.site import SimSite

NEVER: Final[Register[Pushed]] = Register()
View: TypeAlias = dict[Name, Register[Pushed]]


class Judge:
    """Watches some sites; every check raises a Violation."""

    def __init__(self, sites: Sequence[SimSite]) -> None:
        self.oracle = Oracle()
        self._sites = sites
        self._checked: dict[str, int] = {}
        self._cursors: dict[tuple[str, str], int] = {}
        self._parks: dict[tuple[str, str], list[Entry]] = {}
        # Who else is to look after each write of a register.
        self.watching: list[Callable[[], None]] = []

    def wrote(self, site: SimSite, intent: Intent, key: bytes, before: Register[Pushed]) -> None:
        """A site has just written a register."""
        name = parse_register(key)
        assert name is not None
        after = register(site, name)
        write = Write(site.actor, intent, name, before, after, lambda of: register(site, of))
        self.oracle.wrote(write)
        for look in self.watching:
            look()

    def check(self, site: SimSite) -> None:
        """Check a site, if anything was written there since it was checked last."""
        if self._checked.get(site.name) == site.revision:
            return
        self._checked[site.name] = site.revision
        self._check_now(site, quiet=False)
        for source in self._sites:
            if source is not site:
                self._check_cursor(site, source)

    def cursor(self, site: SimSite, source: SimSite) -> int:
        """How far a source was applied or parked at a site when it was checked last."""
        return self._cursors.get((site.actor, source.actor), 0)

    def _check_now(self, site: SimSite, *, quiet: bool) -> State:
        state = check_site(site.kv.entries(), lambda d: BY_DIGEST[d].manifest, quiet=quiet)
        for digest, record in state.blobs.items():
            held = (digest, record.generation) in site.files
            require(held, "{} has a record of {} and no file", site.name, digest)
        return state

    def _check_cursor(self, site: SimSite, source: SimSite) -> None:
        """All up to the cursor is applied or parked, and the cursor never goes back."""
        rows = site.kv._stored.rows
        entry = rows.get(keys.cursor(source.name))
        record = None if entry is None else codec.decode_cursor(entry.value)
        told = record is not None and record.incarnation == source.actor
        cursor = record.revision if record is not None and told else 0
        lane = (site.actor, source.actor)
        known = self._cursors.get(lane, 0)
        parks = site.kv._stored.within(*keys.all_parked(source.name))
        if cursor == known and parks == self._parks.get(lane, []):
            return
        self._parks[lane] = parks
        require(cursor >= known, "the cursor {} goes back", lane)
        self._cursors[lane] = cursor
        for change in source.registers():
            if change.revision > cursor:
                break
            mine = register(site, change.name)
            if merge(mine, change.register) == mine:
                continue
            if source.name in site.kept_from and all(map(mine.has_seen, change.register.siblings)):
                continue
            parked = rows.get(keys.parked(source.name, change.name.repository))
            require(parked is not None, "the cursor {} passed {}, not applied", lane, change.name)
            if parked is not None:
                span = codec.decode_parked(parked.value)
                inside = span.first <= change.revision <= span.last
                require(inside, "the park of {} leaves {} out", lane, change.name)

    def compare(self) -> None:
        """All sites are equal, sound, and what the oracle says; an archive has all that they have.

        Whoever takes the deletes of one peer learns of all of them.
        """
        views: list[View] = []
        archives: list[View] = []
        for site in self._sites:
            state = self._check_now(site, quiet=True)
            archive = len(site.kept_from) == len(self._sites) - 1
            view: View = {}
            view.update(state.manifests.items())
            view.update(state.tags.items())
            (archives if archive else views).append(view)
        told = views[0]
        require(all(view == told for view in views), "sites differ")
        for view in archives:
            _check_archive(view, told)
        for name in self.oracle.created:
            left = told.get(name, NEVER).siblings
            require(left == self.oracle.survivors(name), "{} is not what the oracle says", name)
        self._check_conflicts(told)

    def _check_conflicts(self, view: View) -> None:
        """Every push that is not shown has raised its event, at each site (P5)."""
        told = {
            (site.name, event.repository, event.tag, event.digest)
            for site in self._sites
            for event in (
                codec.decode_event(value)
                for key, value in site.kv.entries().items()
                if key.startswith(b"ev/")
            )
            if event.action is Action.CONFLICT
        }
        for name, register in view.items():
            shown = register.shown()
            if isinstance(name, TagName) and shown is not None:
                for value in register.siblings.values():
                    for site in self._sites:
                        event = (site.name, *name, value.digest)
                        hidden = value.digest != shown.digest
                        require(not hidden or event in told, "{} is in conflict, untold", name)


def _check_archive(view: View, told: View) -> None:
    """What lives elsewhere is here just so; what else is here comes back nowhere."""
    for name in {*view, *told}:
        mine, theirs = view.get(name, NEVER), told.get(name, NEVER)
        require(mine == theirs or not theirs.live, "{} is not as told at the archive", name)
        require(merge(theirs, mine) == theirs, "{} would come back from the archive", name)


def register(site: SimSite, name: Name) -> Register[Pushed]:
    """The register of a name at a site at this moment."""
    change = site.register(name)
    return NEVER if change is None else change.register
