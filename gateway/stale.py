"""Pulls while the metadata has no majority: answered as far as it is known, and marked.

One member of the store may not have heard of the latest pushes and deletes.  What it holds was true
once and is shown with a `Warning` (G11); of what it does not hold nothing can be said, so that is
503 and no 404, which clients would take for an answer; nor an empty list of referrers, which they
would take for "not signed".  Nobody may keep such an answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import TypeAlias

from aiohttp import web

from gateway.answers import Answer
from gateway.routes import Target
from node.errors import MetadataUnavailable, NotFound, PreconditionFailed
from node.showing import Showing, showing, shown_now

Shows: TypeAlias = Callable[[web.BaseRequest, Target], Awaitable[Answer]]


def headers_of(shown: Showing) -> Mapping[str, str]:
    """What an answer with this has to say, if any of it may be stale."""
    if shown.stale is None:
        return {}
    warning = f'299 - "metadata may be stale: {shown.stale}"'
    return {"Warning": warning, "Cache-Control": "no-store"}


@contextmanager
def shown_anyway() -> Iterator[Showing]:
    """Let what is read inside the block be stale, but nothing be missing for that.

    Raises:
        MetadataUnavailable: In place of NotFound, where a stale read was the reason.
    """
    with showing() as shown:
        try:
            yield shown
        except (NotFound, PreconditionFailed) as err:
            if shown.stale:
                raise MetadataUnavailable("it is not known here whether there is such") from err
            raise


def require_some(found: Sized) -> None:
    """Return if something was found, or if nobody knows of more.

    Raises:
        MetadataUnavailable: Nothing was, by a stale read: what there is may be newer.
    """
    shown = shown_now()
    if not found and shown is not None and shown.stale:
        raise MetadataUnavailable("it is not known here whether there are any")


def marked(shows: Shows) -> Shows:
    """The handler, whose answers may be stale and then say so."""

    async def answer(request: web.BaseRequest, target: Target) -> Answer:
        with shown_anyway() as shown:
            said = await shows(request, target)
        return said._replace(headers={**said.headers, **headers_of(shown)})

    return answer
