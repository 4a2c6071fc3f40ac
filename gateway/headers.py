"""Headers of the v2 API, read and written; pure.

Locations and links carry a path only unless the operator says what the registry is called from
outside: that survives every proxy (PROTOCOL G6, G9).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import urlencode

from multidict import CIMultiDictProxy

from node.condition import ANY, Condition
from node.digest import Digest
from node.errors import PageInvalid
from node.reference import Reference, Repository

# On every response, errors too. G1: old clients know a registry by its version.
ALWAYS: Final = {"Docker-Distribution-API-Version": "registry/2.0", "Server": "entrepot"}

_CONTENT_RANGE: Final = re.compile(
    r"(?:bytes )?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?"
)
_NUMBER: Final = re.compile(r"[0-9]+")
# Longer numbers than any page has: Python refuses to read thousands of digits.
_MOST_DIGITS: Final = 9


def manifest_path(repository: Repository, digest: Digest) -> str:
    """Where a manifest is found for ever."""
    return f"/v2/{repository}/manifests/{digest}"


def blob_path(repository: Repository, digest: Digest) -> str:
    """Where a blob is found."""
    return f"/v2/{repository}/blobs/{digest}"


def upload_path(repository: Repository, session_id: str) -> str:
    """Where an upload goes on, without its query."""
    return f"/v2/{repository}/blobs/uploads/{session_id}"


def upload_headers(location: str, session_id: str, offset: int) -> dict[str, str]:
    """Where an upload goes on and how much of it is held.

    The location carries a query, because scripts append `&digest=` to it (U3).  The range has no
    unit (docker scans for two numbers, U2), and of nothing it is 0-0.
    """
    return {
        "Location": f"{location}?_state=open",
        "Range": f"0-{max(0, offset - 1)}",
        "Docker-Upload-UUID": session_id,
    }


def etag(digest: Digest) -> str:
    """The entity tag of content: its digest, quoted."""
    return f'"{digest}"'


def matches(if_none_match: Iterable[str], digest: Digest) -> bool:
    """Whether the client has the content already: quoted, bare, weak, in a list, or `*` (MG7).

    Each item is a line of the header; there may be several (H8).
    """
    return not _entity_tags(if_none_match).isdisjoint({ANY, str(digest)})


def matches_strongly(if_match: Iterable[str], tag: str) -> bool:
    """Whether an If-Match lets this entity tag pass: as `matches`, but weak ones never do."""
    return not _entity_tags(if_match, weak=False).isdisjoint({ANY, tag})


def parse_condition(headers: CIMultiDictProxy[str], reference: Reference) -> Condition | None:
    """What a request makes its condition by If-Match and If-None-Match; None if it has none.

    A weak tag never matches where content has to be the same (RFC 9110 13.1.1).
    """
    wanted, unwanted = headers.getall("If-Match", ()), headers.getall("If-None-Match", ())
    if not wanted and not unwanted:
        return None
    strong = _entity_tags(wanted, weak=False) if wanted else None
    return Condition(reference, strong, _entity_tags(unwanted))


def _entity_tags(lines: Iterable[str], *, weak: bool = True) -> frozenset[str]:
    tags = [tag.strip() for line in lines for tag in line.split(",")]
    return frozenset(
        tag.removeprefix("W/").strip('"') for tag in tags if weak or not tag.startswith("W/")
    )


def parse_content_range(text: str) -> tuple[int, int] | None:
    """First and last byte of a chunk, `a-b` or `bytes a-b/*`; None if it is neither."""
    found = _CONTENT_RANGE.fullmatch(text.strip())
    if found is None or int(found[2]) < int(found[1]):
        return None
    return int(found[1]), int(found[2])


def parse_page(given: str | None, limit: int, default: int | None = None) -> int:
    """How many results to answer: what is asked for, clamped, never refused for its size (TL5).

    Where nothing is asked for it is the default, or the limit if that is less or there is none.

    Raises:
        PageInvalid: It is no number, or negative.
    """
    if not given:
        return limit if default is None else min(default, limit)
    if not _NUMBER.fullmatch(given):
        raise PageInvalid(given)
    return limit if len(given) > _MOST_DIGITS else min(int(given), limit)


def link(path: str, query: Mapping[str, str | int] | list[tuple[str, str]]) -> dict[str, str]:
    """The header that leads to the next page, on the same host by saying none (G9)."""
    return {"Link": f'<{path}?{urlencode(query)}>; rel="next"'}
