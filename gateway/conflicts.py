"""Conflicts over HTTP: which tags are in one, and choosing what such a tag shows."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.answers import Answer
from gateway.headers import link, matches_strongly, parse_page
from gateway.incoming import SmallBodies
from gateway.registry import Registry
from gateway.routes import Target
from node.conflicts import Conflict, Conflicts
from node.digest import Digest
from node.errors import ConflictChanged, RequestInvalid
from node.keys import TagName
from node.reference import parse_repository, parse_tag

_PATH: Final = "/api/v1/conflicts"
_PAGE: Final = 100
_MOST_BYTES: Final = 64 << 10
_JSON: Final = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Choice(BaseModel):
    """What a tag in conflict is to show."""

    model_config = ConfigDict(extra="forbid", strict=True)

    repository: str
    tag: str
    digest: str


class ConflictsApi:
    """The handlers; `page` is the most conflicts on one page."""

    def __init__(self, conflicts: Conflicts, registry: Registry, page: int) -> None:
        self._conflicts = conflicts
        self._registry = registry
        self._page = page
        self._bodies = SmallBodies(_MOST_BYTES)

    async def list(self, _request: web.BaseRequest, target: Target) -> Answer:
        """The conflicts by name, of one repository or of all, page by page."""
        n = parse_page(target.parameter("n"), self._page, _PAGE)
        name = target.parameter("repository")
        repository = None if name is None else parse_repository(name)
        found, last = await self._conflicts.page(repository, target.parameter("last"), n)
        headers = dict(_JSON)
        if last is not None:
            of = [] if repository is None else [("repository", str(repository))]
            headers |= link(_PATH, [*of, ("last", last), ("n", str(n))])
        content = {"conflicts": [_shown(conflict) for conflict in found]}
        return Answer(200, headers, json.dumps(content).encode())

    async def resolve(self, request: web.BaseRequest, _target: Target) -> Answer:
        """Let the tag show one digest; 412 if it is not in the conflict that was seen.

        Seen is what `If-Match` says, by a conflict's `etag`; without it, what is here now.
        """
        choice = _parse(await self._bodies.read(request))
        name = TagName(parse_repository(choice.repository), parse_tag(choice.tag))
        digest = Digest.parse(choice.digest)
        conflict = await self._conflicts.find(name)
        if conflict is None:
            raise ConflictChanged(name.tag, ())
        seen = request.headers.getall("If-Match", ())
        if seen and not matches_strongly(seen, conflict.etag):
            siblings = tuple(str(sibling.digest) for sibling in conflict.siblings)
            raise ConflictChanged(name.tag, siblings)
        await self._registry.resolve_conflict(conflict, digest)
        return Answer(200, _JSON, choice.model_dump_json().encode())


def _parse(body: bytes) -> Choice:
    try:
        return Choice.model_validate_json(body)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise RequestInvalid(f"{where}: {first['msg']}" if where else first["msg"]) from err


def _shown(conflict: Conflict) -> dict[str, object]:
    shown = conflict.siblings[0].digest
    return {
        "repository": conflict.repository,
        "tag": conflict.tag,
        "etag": conflict.etag,
        "siblings": [
            {
                "digest": str(sibling.digest),
                "media_type": sibling.media_type,
                "size": sibling.size,
                "pushed_ms": sibling.pushed_ms,
                "site": sibling.site,
                "shown": sibling.digest == shown,
            }
            for sibling in conflict.siblings
        ],
    }
