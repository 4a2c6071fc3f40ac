"""What is left of the v1 API: the ping and the search of `docker search` and `podman search`."""

from __future__ import annotations

import json
from typing import Final

from aiohttp import web

from gateway.answers import Answer
from gateway.headers import parse_page
from gateway.routes import Target
from node.catalog import Listed
from node.search import Search

# TL11: what docker asks for where its user names no number.
_RESULTS: Final = 25
_PAGES: Final = 1_000_000

_JSON: Final = {"Content-Type": "application/json"}


class SearchApi:
    """The handlers; `page` is the most results on one page."""

    def __init__(self, search: Search, page: int) -> None:
        self._search = search
        self._page = page

    async def ping(self, _request: web.BaseRequest, _target: Target) -> Answer:
        """TL11: docker asks this before it searches; standalone is who needs no login elsewhere."""
        headers = {**_JSON, "X-Docker-Registry-Standalone": "true"}
        return Answer(200, headers, b'{"standalone": true}')

    async def search(self, _request: web.BaseRequest, target: Target) -> Answer:
        """TL10, TL11: the repositories that match `q`, best first; all of them without it."""
        term = target.parameter("q") or ""
        n = parse_page(target.parameter("n"), self._page, _RESULTS)
        page = max(1, parse_page(target.parameter("page"), _PAGES, 1))
        found = await self._search.find(term, (page - 1) * n, n)
        answer = {
            "query": term,
            "num_results": found.total,
            "num_pages": -(-found.total // n) if n else 0,
            "page": page,
            "page_size": n,
            "results": [_result(row) for row in found.rows],
        }
        return Answer(200, _JSON, json.dumps(answer).encode())


def _result(row: Listed) -> dict[str, object]:
    return {
        "name": row.name,
        "description": row.description,
        "star_count": 0,
        "is_official": False,
        "is_automated": False,
    }
