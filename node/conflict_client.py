"""Conflicts as the command line shows and resolves them, by a site's admin API."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from pydantic import BaseModel
from rich.console import Group
from rich.text import Text

from node.admin_client import NotDone, asking

_PATH: Final = "/api/v1/conflicts"


class SiblingAnswer(BaseModel):
    """One of the pushes; `pushed_ms` is since the epoch, by the clock of its site."""

    digest: str
    media_type: str
    size: int
    pushed_ms: int
    site: str
    shown: bool


class ConflictAnswer(BaseModel):
    """A tag in conflict, and the entity tag of what was seen of it."""

    repository: str
    tag: str
    etag: str
    siblings: list[SiblingAnswer]


class _Page(BaseModel):
    conflicts: list[ConflictAnswer]


async def fetch_conflicts(
    url: str, tls: ssl.SSLContext, repository: str | None = None
) -> list[ConflictAnswer]:
    """All conflicts of a site, or those of one repository.

    Raises:
        NotReachable: It does not answer in time, or not as Entrepot does.
    """
    query = "" if repository is None else f"?{urlencode({'repository': repository})}"
    found: list[ConflictAnswer] = []
    path: str | None = _PATH + query
    async with asking(url, tls) as client:
        while path is not None:
            body, path = await client.page(path)
            found += _Page.model_validate_json(body).conflicts
    return found


async def resolve(url: str, tls: ssl.SSLContext, repository: str, tag: str, digest: str) -> None:
    """Let a tag that is in conflict show one digest; nobody's push is replaced unseen.

    Raises:
        NotReachable: The site does not answer in time, or not as Entrepot does.
        NotDone: The tag is in no conflict, the digest is not there, or a push came in between.
    """
    seen = await fetch_conflicts(url, tls, repository)
    (conflict,) = [one for one in seen if one.tag == tag] or (None,)
    if conflict is None:
        raise NotDone(f"{repository}:{tag} is not in conflict")
    choice = {"repository": repository, "tag": tag, "digest": digest}
    async with asking(url, tls) as client:
        await client.post(f"{_PATH}/resolve", choice, {"If-Match": f'"{conflict.etag}"'})


def render_conflicts(conflicts: Sequence[ConflictAnswer]) -> Group:
    """The conflicts for a terminal: lines, as digests are there to be copied whole."""
    lines: list[Text] = []
    for conflict in conflicts:
        lines.append(Text(f"{conflict.repository}:{conflict.tag}", style="bold"))
        lines += map(_line, conflict.siblings)
    return Group(*(lines or [Text("no conflicts")]))


def _line(sibling: SiblingAnswer) -> Text:
    at = datetime.fromtimestamp(sibling.pushed_ms / 1000, UTC)
    state = Text("  shown   ") if sibling.shown else Text("  hidden  ", style="red")
    pushed = f"pushed at {sibling.site}, {at:%Y-%m-%d %H:%M:%S} UTC"
    return Text.assemble(state, f"{sibling.digest}  {pushed}")
