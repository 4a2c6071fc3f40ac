"""Sites in network namespaces of their own, joined by a router whose packets the tests drop.

    fra ---+
    nyc ---+--- router: what may pass, from whom to whom, and how many bytes did
    sgp ---+

A cut is what a network does, not what a process does: packets vanish, connections hang.  The tests
themselves call each site from inside of its namespace, so nothing here cuts them off.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import permutations
from pathlib import Path
from typing import Final

from tests.faults import skewed
from tests.faults.netns import Namespace, namespaces
from tests.faults.registry import Registry
from tests.sites import Site, ended
from tests.waiting import eventually

SETTLED_S: Final = 120.0

_PORT: Final = 5000
# For measurements of networks (RFC 2544): no machine's own.
_ADDRESS: Final = "198.18.{}.{}"
_TABLE: Final = """
table inet lab {
  chain cuts { type filter hook forward priority 0; }
  chain passed { type filter hook forward priority 10; }
}
"""


class Lab:
    """Some sites and what is between them.

    `at` are clients of their registries, by site; `peers` the pairs that know each other.
    """

    def __init__(self, router: Namespace, sites: Sequence[Site], at: Mapping[str, Registry]):
        self.sites = {site.name: site for site in sites}
        self.at = at
        self.peers: list[tuple[str, str]] = []
        self._router = router
        self._cuts: set[tuple[str, str]] = set()
        self._lost_percent = 0

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Each site with each other one, both ways."""
        return list(permutations(self.sites, 2))

    # --- the network

    def cut(self, one: str, other: str) -> None:
        """Let nothing pass between two sites."""
        self._now(self._cuts | {(one, other), (other, one)})

    def cut_all(self) -> None:
        """Let nothing pass between any."""
        self._now(set(self.pairs))

    def mute(self, source: str, target: str) -> None:
        """Let nothing pass from one site to another; the other way all passes."""
        self._now(self._cuts | {(source, target)})

    def heal(self) -> None:
        """Let everything pass."""
        self._now(set())

    def lose(self, percent: int) -> None:
        """Lose this share of all packets by chance; `heal` does not end it."""
        self._lost_percent = percent
        self._now(self._cuts)

    def unplug(self, name: str) -> None:
        """Take a site's link down; `plug` brings it up again."""
        self._router.run("ip", "link", "set", name, "down")

    def plug(self, name: str) -> None:
        """Bring a site's link up."""
        self._router.run("ip", "link", "set", name, "up")

    @contextmanager
    def limited(self, megabits: int) -> Iterator[None]:
        """Let each site receive no more than this in a second, for as long as this is open."""
        for name in self.sites:
            rate = ("rate", f"{megabits}mbit", "burst", "64kb", "latency", "50ms")
            self._router.run("tc", "qdisc", "add", "dev", name, "root", "tbf", *rate)
        try:
            yield
        finally:
            for name in self.sites:
                self._router.run("tc", "qdisc", "del", "dev", name, "root")

    def _now(self, cuts: set[tuple[str, str]]) -> None:
        self._cuts = cuts
        rules = [f"{self._way(*one)} drop" for one in sorted(cuts)]
        if self._lost_percent:
            rules.append(f"numgen random mod 100 < {self._lost_percent} drop")
        script = ["flush chain inet lab cuts", *(f"add rule inet lab cuts {r}" for r in rules)]
        self._router.run("nft", "-f", "-", stdin="\n".join(script) + "\n")

    def count(self) -> None:
        """Begin to count what passes."""
        rules = [f'{self._way(*way)} counter comment "{"-".join(way)}"' for way in self.pairs]
        script = ["flush chain inet lab passed", *(f"add rule inet lab passed {r}" for r in rules)]
        self._router.run("nft", "-f", "-", stdin="\n".join(script) + "\n")

    def passed_bytes(self) -> int:
        """The bytes of all packets that have passed since `count`, between any two sites."""
        listed = json.loads(self._router.run("nft", "-j", "list", "chain", "inet", "lab", "passed"))
        rules = [one["rule"]["expr"] for one in listed["nftables"] if "rule" in one]
        return sum(part["counter"]["bytes"] for rule in rules for part in rule if "counter" in part)

    def _way(self, source: str, target: str) -> str:
        return f"ip saddr {self.sites[source].host} ip daddr {self.sites[target].host}"

    # --- the sites

    def join(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Make each of these pairs peers of each other, and no others; counts from a start on."""
        for site in self.sites.values():
            site.unfollow()
        self.peers = list(pairs)
        for names in self.peers:
            one, other = (self.sites[name] for name in names)
            secret = one.folder.parent / f"{one.name}-{other.name}.secret"
            secret.write_text(secrets.token_hex(16))
            secret.chmod(0o600)
            for site, peer in ((one, other), (other, one)):
                site.follow(peer, secret_file=str(secret))

    async def start(self) -> None:
        """Start what does not run, and wait until all is ready."""
        async with asyncio.TaskGroup() as group:
            for site in self.sites.values():
                group.create_task(site.start())

    async def stop(self) -> None:
        """Stop all sites; each has to end well."""
        async with asyncio.TaskGroup() as group:
            for site in self.sites.values():
                group.create_task(site.stop_all())

    async def resync(self, site: str, peer: str) -> None:
        """Have a site take all that a peer has anew; it is done on return."""
        path = f"/api/v1/peers/{peer}/reconcile?full=true"
        answer = await self.at[site].call("POST", path)
        answer.require(202, path)
        revision = json.loads(answer.body)["revision"]

        async def compared() -> bool:
            last = (await self.sites[site].peer(peer))["compared"]
            assert last is not None
            return bool(last["revision"] >= revision)

        await eventually(compared, SETTLED_S, f"{site} has taken all of {peer} anew")

    async def revisions(self) -> dict[str, int]:
        """The revision of each site's KV."""
        answers = {name: await at.call("GET", "/api/v1/site") for name, at in self.at.items()}
        return {name: json.loads(answer.body)["revision"] for name, answer in answers.items()}

    def show_logs(self) -> None:
        """Show what the sites have logged since the last call, if the test fails."""
        for site in self.sites.values():
            site.show_logs()

    async def settled(self, deadline_s: float = SETTLED_S) -> None:
        """Wait until each site says that it has all of each of its peers."""
        for site in self.sites.values():

            async def applied(site: Site = site) -> bool:
                for status in await site.peers():
                    assert status["state"] == "following", status
                    assert (status["lag_keys"], status["parked"]) == (0, 0), status
                return True

            await eventually(applied, deadline_s, f"{site.name} has all of its peers")


async def lasts(seconds: float) -> None:
    """Let a fault last for so long."""
    until = time.monotonic() + seconds
    await eventually(lambda: time.monotonic() >= until, 2 * seconds + 60, "time goes by")


@asynccontextmanager
async def lab(
    folder: Path,
    names: Sequence[str] = ("fra", "nyc", "sgp"),
    clocks_s: Mapping[str, int] | None = None,
) -> AsyncIterator[Lab]:
    """Sites that know no peers and have not started; no process, link or rule is left at the end.

    `clocks_s` says by how many seconds the clock of which site is wrong.
    """
    async with AsyncExitStack() as stack:
        router, *places = stack.enter_context(namespaces(1 + len(names)))
        router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        router.run("nft", "-f", "-", stdin=_TABLE)
        sites = []
        for number, (name, place) in enumerate(zip(names, places, strict=True)):
            _plug_in(router, place, name, number)
            site = Site(
                name,
                folder / name,
                port=_PORT,
                host=_ADDRESS.format(number, 2),
                place=place,
                launcher=_launcher((clocks_s or {}).get(name, 0)),
            )
            sites.append(site)
        stack.enter_context(ended(*sites))
        at = {
            site.name: await stack.enter_async_context(Registry.at(site.url, place.socket))
            for site, place in zip(sites, places, strict=True)
        }
        yield Lab(router, sites, at)


def _launcher(seconds: int) -> tuple[str, ...]:
    return (skewed.__file__, str(seconds)) if seconds else ("-m",)


def _plug_in(router: Namespace, place: Namespace, name: str, number: int) -> None:
    """Join a namespace to the router by a link that has the site's name there."""
    ours, theirs = _ADDRESS.format(number, 1), _ADDRESS.format(number, 2)
    ends = ("link", "add", name, "type", "veth", "peer", "name", "wan", "netns", str(place.pid))
    router.run("ip", *ends)
    router.run("ip", "address", "add", f"{ours}/24", "dev", name)
    router.run("ip", "link", "set", name, "up")
    place.run("ip", "address", "add", f"{theirs}/24", "dev", "wan")
    place.run("ip", "link", "set", "wan", "up")
    place.run("ip", "route", "add", "default", "via", ours)


def keep(site: Site, copy: Path) -> None:
    """Copy all that a stopped site has."""
    shutil.copytree(site.folder, copy, ignore=shutil.ignore_patterns("*.log"))


def put_back(site: Site, copy: Path, *, metadata_only: bool = False) -> None:
    """Give a stopped site back what it had, instead of what it has."""
    for file in site.folder.glob("metadata.db*"):
        file.unlink()
    for file in copy.glob("metadata.db*"):
        shutil.copy2(file, site.folder)
    if not metadata_only:
        shutil.rmtree(site.blobs)
        shutil.copytree(copy / site.blobs.name, site.blobs)
