"""How a site is, as its own admin API tells it (`/api/v1/site` and `/api/v1/peers`)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import aiohttp
from pydantic import BaseModel, ValidationError
from rich.console import Group
from rich.table import Table
from rich.text import Text

LIMIT_S: Final = 10.0
_COLOURS: Final = {"following": "green", "scanning": "cyan", "starting": "cyan"}


class NotReachable(Exception):
    """The site did not answer, or not as Entrepot does."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason


class SiteAnswer(BaseModel):
    """Which site answers, and how far its metadata has come."""

    site: str
    incarnation: str
    version: str
    revision: int


class PeerAnswer(BaseModel):
    """How the site follows one peer: keys and seconds behind, and what went wrong last.

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


class PeersAnswer(BaseModel):
    """All peers of the site."""

    peers: list[PeerAnswer]


@dataclass(frozen=True, slots=True)
class SiteStatus:
    """What a site said of itself and of its peers."""

    url: str
    site: SiteAnswer
    peers: list[PeerAnswer]

    @property
    def is_well(self) -> bool:
        """Whether every peer is followed that is to be."""
        return all(peer.state in {"following", "off"} for peer in self.peers)

    @property
    def raw(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        return {
            "url": self.url,
            "site": self.site.model_dump(),
            "peers": [peer.model_dump() for peer in self.peers],
        }


async def fetch(url: str) -> SiteStatus:
    """Ask a site.

    Raises:
        NotReachable: It does not answer within ten seconds, or not as Entrepot does.
    """
    base = url.rstrip("/")
    try:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=LIMIT_S), raise_for_status=True
        ) as client:
            async with client.get(f"{base}/api/v1/site") as answer:
                site = SiteAnswer.model_validate_json(await answer.read())
            async with client.get(f"{base}/api/v1/peers") as answer:
                peers = PeersAnswer.model_validate_json(await answer.read())
    except aiohttp.ClientResponseError as err:
        raise NotReachable(base, f"answered {err.status} to {err.request_info.url.path}") from err
    except aiohttp.ClientConnectorError as err:
        raise NotReachable(base, f"not reachable: {os.strerror(err.errno or 0)}") from err
    except aiohttp.InvalidURL as err:
        raise NotReachable(base, "is no URL") from err
    except TimeoutError as err:
        raise NotReachable(base, f"no answer within {LIMIT_S:g} s") from err
    except (aiohttp.ClientError, OSError) as err:
        raise NotReachable(base, f"not reachable: {err}") from err
    except ValidationError as err:
        raise NotReachable(base, "does not answer as Entrepot does") from err
    return SiteStatus(base, site, peers.peers)


def render(status: SiteStatus) -> Group:
    """The status for a terminal."""
    site = status.site
    head = Text(f"Site {site.site} at {status.url}", style="bold")
    facts = Text(f"version {site.version}, revision {site.revision}")
    if not status.peers:
        return Group(head, facts, Text("no peers"))
    table = Table(box=None, pad_edge=False)
    for column in ("peer", "state"):
        table.add_column(column)
    for column in ("keys behind", "seconds behind", "parked"):
        table.add_column(column, justify="right")
    table.add_column("last error")
    for peer in status.peers:
        table.add_row(
            peer.site,
            Text(peer.state, style=_COLOURS.get(peer.state, "red")),
            _shown(peer.lag_keys),
            _shown(peer.lag_s),
            str(peer.parked),
            Text(peer.last_error or ""),
        )
    return Group(head, facts, table)


def _shown(number: float | None) -> str:
    if number is None:
        return "–"
    return str(number) if isinstance(number, int) else f"{number:.1f}"
