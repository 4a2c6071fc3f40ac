"""Whether what the sites did is what they had promised: after every step, and at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

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


class Judge:
    """Watches some sites; every check raises a Violation."""

    def __init__(self, sites: Sequence[SimSite]) -> None:
        self.oracle = Oracle()
        self._sites = sites
        self._checked: dict[str, int] = {}
        self._cursors: dict[tuple[str, str], int] = {}
        self._parks: dict[tuple[str, str], list[Entry]] = {}

    def wrote(self, site: SimSite, intent: Intent, key: bytes, before: Register[Pushed]) -> None:
        """A site has just written a register."""
        name = parse_register(key)
        assert name is not None
        after = register(site, name)
        write = Write(site.name, intent, name, before, after, lambda of: register(site, of))
        self.oracle.wrote(write)

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
        return self._cursors.get((site.name, source.name), 0)

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
        cursor = 0 if entry is None else codec.decode_cursor(entry.value).revision
        lane = (site.name, source.name)
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
            parked = rows.get(keys.parked(source.name, change.name.repository))
            require(parked is not None, "the cursor {} passed {}, not applied", lane, change.name)
            if parked is not None:
                span = codec.decode_parked(parked.value)
                inside = span.first <= change.revision <= span.last
                require(inside, "the park of {} leaves {} out", lane, change.name)

    def compare(self) -> None:
        """All sites are equal, sound, and what the oracle says."""
        views: list[dict[Name, Register[Pushed]]] = []
        for site in self._sites:
            state = self._check_now(site, quiet=True)
            view: dict[Name, Register[Pushed]] = {}
            view.update(state.manifests.items())
            view.update(state.tags.items())
            views.append(view)
        for site, view in zip(self._sites, views, strict=True):
            require(view == views[0], "{} and A differ", site.name)
        for name in self.oracle.created:
            left = views[0].get(name, NEVER).siblings
            require(left == self.oracle.survivors(name), "{} is not what the oracle says", name)
        self._check_conflicts(views[0])

    def _check_conflicts(self, view: dict[Name, Register[Pushed]]) -> None:
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


def register(site: SimSite, name: Name) -> Register[Pushed]:
    """The register of a name at a site at this moment."""
    change = site.register(name)
    return NEVER if change is None else change.register
