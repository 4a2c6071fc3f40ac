"""How a site is, as its own admin API tells it (`/api/v1/site` and `/api/v1/peers`)."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

from pydantic import BaseModel
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from node.admin_client import NotNow, asking

_MOST_BEHIND: Final = 1000
_COLOURS: Final = {"following": "green", "scanning": "cyan", "starting": "cyan"}


class StoreAnswer(BaseModel):
    """What is wrong with the site's store, a line each; a version before this one says nothing."""

    problems: tuple[str, ...] = ()


class SiteAnswer(BaseModel):
    """Which site answers, how far its metadata has come, where its gateways tell their health.

    Where its store answers nobody, the revision is None.
    """

    site: str
    incarnation: str
    version: str
    revision: int | None
    health: list[str]
    store: StoreAnswer = StoreAnswer()


class ComparedAnswer(BaseModel):
    """What comparing both sites found last; times are in ms since the epoch, by the site's clock.

    `result` is same, holds, differs, unknown (see `reason`) or unsupported.  The revisions are of
    these incarnations of the site and of its peer.
    """

    result: str
    ms: int
    revision: int
    peer_revision: int
    differing: int
    live: int
    tombstones: int
    reason: str
    same_ms: int
    incarnation: str = ""
    peer_incarnation: str = ""


class ProgressAnswer(BaseModel):
    """How far a scan of a peer has come; what nobody knows yet is None."""

    items_done: int
    items: int | None
    bytes_done: int
    bytes_to_go: int
    seconds_left: int | None


class PeerAnswer(BaseModel):
    """How the site follows one peer: keys and seconds behind, and what went wrong last.

    `behind` is how many tags and manifests of the site the peer lacks, 1000 if so many or more.

    What a gateway cannot know, before the first contact say, is None.
    """

    site: str
    state: str
    lag_keys: int | None
    lag_s: float | None
    parked: int
    last_error: str | None
    cursor: int | None
    acked: int | None
    behind: int | None = None
    in_sync: bool = False
    compared: ComparedAnswer | None = None
    progress: ProgressAnswer | None = None
    bytes_to_go: int = 0
    seconds_left: int | None = None


class PeersAnswer(BaseModel):
    """All peers of the site."""

    peers: list[PeerAnswer]


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """What a site said of itself and of its peers; if it can say nothing of them, then why."""

    url: str
    site: SiteAnswer
    peers: list[PeerAnswer]
    why_no_peers: str = ""

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong with its store, and every peer is followed that is to be."""
        if self.site.store.problems or self.why_no_peers:
            return False
        return all(peer.state in {"following", "off"} for peer in self.peers)

    @property
    def raw(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        told = {"url": self.url, "site": self.site.model_dump()}
        if self.why_no_peers:
            return {**told, "peers": None, "why_no_peers": self.why_no_peers}
        return {**told, "peers": [peer.model_dump() for peer in self.peers]}


async def fetch(url: str, tls: ssl.SSLContext) -> SiteStatus:
    """Ask a site; `tls` is for https.

    Raises:
        NotReachable: It does not answer within ten seconds, or not as Entrepot does.
    """
    async with asking(url, tls) as client:
        site = SiteAnswer.model_validate_json(await client.get("/api/v1/site"))
        try:
            content = await client.ask("/api/v1/peers")
        except NotNow as err:
            return SiteStatus(client.url, site, [], str(err))
        return SiteStatus(client.url, site, PeersAnswer.model_validate_json(content).peers)


def render(status: SiteStatus, now_ms: int) -> Group:
    """The status for a terminal, at a time in ms since the epoch."""
    site = status.site
    head = Text(f"Site {site.site} at {status.url}", style="bold")
    health = ", ".join(site.health)
    facts = Text(f"version {site.version}, revision {_shown(site.revision)}, health at {health}")
    troubles = [Text(f"store {problem}", style="red") for problem in site.store.problems]
    if status.why_no_peers:
        unknown = Text(f"nothing is known of the peers: {status.why_no_peers}", style="red")
        return Group(head, facts, *troubles, unknown)
    if not status.peers:
        return Group(head, facts, *troubles, Text("no peers"))
    table = Table(box=None, pad_edge=False)
    for column in ("peer", "state", "compared"):
        table.add_column(column, no_wrap=True)
    for column in ("keys\nbehind", "seconds\nbehind", "parked", "it lacks"):
        table.add_column(column, justify="right")
    for peer in status.peers:
        table.add_row(
            peer.site,
            Text(peer.state, style=_COLOURS.get(peer.state, "red")),
            _compared(peer, now_ms),
            _shown(peer.lag_keys),
            _shown(peer.lag_s),
            str(peer.parked),
            f"{_MOST_BEHIND}+" if peer.behind == _MOST_BEHIND else _shown(peer.behind),
        )
    work = [
        Text(f"{peer.site}: {told}", style="cyan")
        for peer in status.peers
        for told in (_work(peer), _doubt(peer))
        if told is not None
    ]
    errors = [
        Text(f"{peer.site}: {peer.last_error}", style="red")
        for peer in status.peers
        if peer.last_error
    ]
    return Group(head, facts, *troubles, table, *work, *errors)


def _compared(peer: PeerAnswer, now_ms: int) -> Text:
    """What both sites were found to have in common last, and how long ago."""
    compared = peer.compared
    if compared is None:
        return Text("–")
    if peer.in_sync:
        return Text(f"in sync, {_age(now_ms - compared.ms)} ago", style="green")
    if compared.result == "holds":
        return Text(f"has all of it, {_age(now_ms - compared.ms)} ago")
    if compared.same_ms:
        return Text(f"was in sync {_age(now_ms - compared.same_ms)} ago")
    return Text(compared.result)


def _doubt(peer: PeerAnswer) -> str | None:
    """Why nothing could be said when both sites were compared last, if that is so."""
    if peer.in_sync or peer.compared is None or peer.compared.result != "unknown":
        return None
    return f"nothing could be said at the last comparison: {peer.compared.reason}"


def _age(ms: int) -> str:
    seconds = max(0, round(ms / 1000))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


def _shown(number: float | None) -> str:
    if number is None:
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.1f}"


def _work(peer: PeerAnswer) -> str | None:
    """What is brought from a peer now, in words, if anything takes long enough to be seen."""
    if peer.progress is not None:
        return f"scanning: {_progress(peer.progress)}"
    if not peer.bytes_to_go:
        return None
    return ", ".join(
        [f"fetching: {decimal(peer.bytes_to_go)} to go", *_time_left(peer.seconds_left)]
    )


def _progress(progress: ProgressAnswer) -> str:
    """How far a scan has come, in words."""
    of = "" if progress.items is None else f" of {progress.items:,}"
    told = [f"{progress.items_done:,}{of} items", f"{decimal(progress.bytes_done)} done"]
    if progress.bytes_to_go:
        told.append(f"{decimal(progress.bytes_to_go)} to go")
    return ", ".join([*told, *_time_left(progress.seconds_left)])


def _time_left(seconds: int | None) -> list[str]:
    if seconds is None:
        return []
    return [f"about {seconds} s" if seconds < 90 else f"about {round(seconds / 60)} min"]
