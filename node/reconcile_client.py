"""Have a site compare itself with its peers, and wait for what comes of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from pydantic import BaseModel
from rich.console import Group
from rich.text import Text

from node.admin_client import AdminClient, SiteUnknown, asking
from node.status import ComparedAnswer, PeerAnswer, PeersAnswer

_LOOK_S: Final = 0.5
_HOLDING: Final = {"same": "in sync", "holds": "has all of it"}
# What another comparison will not change.
_FINAL: Final = frozenset({*_HOLDING, "unsupported"})


class _Asked(BaseModel):
    revision: int


async def reconcile(
    url: str, tls: ssl.SSLContext, peers: Sequence[str], *, full: bool, within_s: float
) -> list[PeerAnswer]:
    """Ask for a comparison with these peers, or with all that the site follows.

    How each is when the site has all that the peers have, or when the time is over; with
    `compared` None where nothing was compared since.

    Raises:
        NotReachable: The site does not answer in time, or not as Entrepot does.
        SiteUnknown: It follows no such peer.
    """
    async with asking(url, tls) as client:
        followed = [peer.site for peer in await _peers(client) if peer.state != "off"]
        for peer in peers:
            if peer not in followed:
                known = ", ".join(followed) or "none"
                raise SiteUnknown(f"no peer {peer} is followed from here; it follows {known}")
        asked = {peer: await _ask(client, peer, full=full) for peer in peers or followed}
    until = time.monotonic() + within_s
    while True:
        # A client of its own each time: the limit of one is for all that it asks.
        async with asking(url, tls) as client:
            told = await _peers(client)
        found = [_since(peer, asked[peer.site]) for peer in told if peer.site in asked]
        if all(_result(peer) in _FINAL for peer in found) or time.monotonic() >= until:
            return found
        await asyncio.sleep(_LOOK_S)


async def _ask(client: AdminClient, peer: str, *, full: bool) -> int:
    path = f"/api/v1/peers/{quote(peer, safe='')}/reconcile"
    body = await client.post(f"{path}?full=true" if full else path, {}, {})
    return _Asked.model_validate_json(body).revision


async def _peers(client: AdminClient) -> list[PeerAnswer]:
    return PeersAnswer.model_validate_json(await client.get("/api/v1/peers")).peers


def _since(peer: PeerAnswer, revision: int) -> PeerAnswer:
    """With what a comparison that began after a revision found; one that failed names none."""
    compared = peer.compared
    if compared is None or 0 < compared.revision < revision:
        return peer.model_copy(update={"compared": None})
    return peer


def _result(peer: PeerAnswer) -> str | None:
    return None if peer.compared is None else peer.compared.result


def holds_all(found: Sequence[PeerAnswer]) -> bool:
    """Whether the site has all that each of them has."""
    return all(_result(peer) in _HOLDING for peer in found)


def render_compared(found: Sequence[PeerAnswer]) -> Group:
    """What was found, a line for each peer."""
    if not found:
        return Group(Text("no peer is followed"))
    return Group(*(Text(f"{peer.site}: {_said(peer)}") for peer in found))


def _said(peer: PeerAnswer) -> str:
    match peer.compared:
        case None:
            why = f": {peer.last_error}" if peer.last_error else ""
            return f"not compared in time ({peer.state}{why})"
        case ComparedAnswer(result="differs", differing=keys):
            why = f": {peer.last_error}" if peer.parked and peer.last_error else ""
            return f"has {keys} keys that are not here yet{why}"
        case ComparedAnswer(result="unknown", reason=reason):
            return f"can't say: {reason}"
        case ComparedAnswer(result="unsupported"):
            return "can't say: it is of a version that can't be compared with"
        case ComparedAnswer(result=result):
            return _HOLDING.get(result, result)
