"""Where an image is, as the command line shows it and waits for it, by a site's admin API."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode, urlsplit

from pydantic import BaseModel
from rich.filesize import decimal

from node.admin_client import AdminClient, NotDone, NotReachable, SiteUnknown, asking
from node.digest import Digest
from node.errors import TagInvalid
from node.reference import Repository, parse_repository, parse_tag

_PATH: Final = "/api/v1/images"
_LOOK_S: Final = 0.25
_THERE: Final = "there"
_ON_ITS_WAY: Final = "on its way"
_PARKED: Final = "parked"
_NOT_TAKEN: Final = "not taken"


class PlaceAnswer(BaseModel):
    """One site, and whether it has the image; see `node.whereabouts.Place`."""

    site: str
    state: str
    detail: str
    address: str | None = None
    since_ms: int | None = None
    acked: int | None = None
    behind: int | None = None
    heard_ms: int | None = None
    attempts: int | None = None
    next_ms: int | None = None
    error: str | None = None
    bytes_to_go: int | None = None
    expected_ms: int | None = None

    @property
    def tells(self) -> bool:
        """Whether there is more to say than in `detail`: something fails, or is on its way."""
        return self.error is not None or self.state in {_ON_ITS_WAY, _PARKED}


class ImageAnswer(BaseModel):
    """What the reference shows at the site that was asked; see `node.whereabouts.Image`."""

    digest: str
    revision: int
    pushed_ms: int
    pushed_at: str
    sites: list[PlaceAnswer]
    now_ms: int

    def at(self, site: str) -> PlaceAnswer:
        """The one about a site."""
        for place in self.sites:
            if place.site == site:
                return place
        raise SiteUnknown(f"it is not known of {site}")


class _Sources(BaseModel):
    sources: list[PlaceAnswer] = []
    now_ms: int | None = None


class _Error(BaseModel):
    message: str
    detail: _Sources = _Sources()


class AbsentAnswer(BaseModel):
    """The site that was asked has no such image: what it says, and why each peer's is not here."""

    errors: list[_Error]

    @property
    def message(self) -> str:
        """What it says."""
        return self.errors[0].message if self.errors else "it is not there"

    @property
    def sources(self) -> list[PlaceAnswer]:
        """The peers from which it might have come."""
        return self.errors[0].detail.sources if self.errors else []

    @property
    def now_ms(self) -> int | None:
        """When it said so, by its clock."""
        return self.errors[0].detail.now_ms if self.errors else None


class _SiteAnswer(BaseModel):
    site: str
    peers: list[str]


@dataclass(frozen=True, slots=True)
class ImageName:
    """A repository, and a tag or digest in it."""

    repository: Repository
    reference: str

    def __str__(self) -> str:
        return f"{self.repository}{'@' if ':' in self.reference else ':'}{self.reference}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a site has an image: in words, and all that is known of it.

    `asked` is the site that says so, `answer` None where no site has answered.
    """

    image: ImageName
    site: str
    asked: str
    there: bool
    reason: str
    answer: ImageAnswer | AbsentAnswer | None

    @property
    def raw(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        found = self.answer if isinstance(self.answer, ImageAnswer) else None
        sources = self.answer.sources if isinstance(self.answer, AbsentAnswer) else []
        return {
            "image": str(self.image),
            "site": self.site,
            "asked": self.asked,
            "there": self.there,
            "reason": self.reason,
            "digest": found.digest if found else None,
            "place": found.at(self.site).model_dump() if found else None,
            "sources": [source.model_dump() for source in sources],
        }


def parse_image(text: str, url: str) -> ImageName:
    """Read REPOSITORY:TAG or REPOSITORY@DIGEST; the address of the site may stand before it.

    Raises:
        InvalidRequest: It is neither.
    """
    text = text.removeprefix(f"{urlsplit(url).netloc}/")
    repository, at, digest = text.partition("@")
    if at:
        return ImageName(parse_repository(repository), str(Digest.parse(digest)))
    repository, colon, tag = text.rpartition(":")
    if not colon:
        raise TagInvalid("")
    return ImageName(parse_repository(repository), parse_tag(tag))


async def why(url: str, tls: ssl.SSLContext, image: ImageName, site: str) -> Verdict:
    """Whether a site has an image, and if not, why.

    Raises:
        SiteUnknown: It is neither the site that is asked nor a peer of it.
        NotReachable: The site that is asked does not answer in time, or not as Entrepot does.
    """
    async with asking(url, tls) as client:
        return await _look(client, image, site, await _asked(client, site))


async def wait(
    url: str, tls: ssl.SSLContext, image: ImageName, site: str, timeout_s: float
) -> Verdict:
    """Wait until a site has the image that the reference shows now, for so long at the most.

    A tag that is pushed again meanwhile is not waited for anew: it is the image of the first look
    that has to be there.  A site that does not answer for a while is asked again.

    Raises:
        SiteUnknown: It is neither the site that is asked nor a peer of it.
        NotReachable: The site that is asked does not answer, and has not before.
        NotDone: The image was deleted meanwhile.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout_s
    async with asking(url, tls) as client:
        asked = await _asked(client, site)
    awaited = _Awaited(image, site, asked)
    while True:
        with suppress(NotReachable):
            async with asking(url, tls) as client:
                await awaited.look(client)
        if awaited.verdict.there or clock() >= deadline:
            return awaited.verdict
        await asyncio.sleep(min(_LOOK_S, max(0.0, deadline - clock())))


class _Awaited:
    """An image that is waited for; from the first look that shows it on, it is that one."""

    def __init__(self, image: ImageName, site: str, asked: str) -> None:
        self._image = image
        self._first: ImageAnswer | None = None
        self.verdict = Verdict(image, site, asked, there=False, reason="no answer", answer=None)

    async def look(self, client: AdminClient) -> None:
        """Look once more.

        Raises:
            NotDone: It was there, and is deleted.
        """
        site, asked = self.verdict.site, self.verdict.asked
        found = await _look(client, self._image, site, asked)
        if self._first is None:
            self._first = found.answer if isinstance(found.answer, ImageAnswer) else None
        elif not isinstance(found.answer, ImageAnswer) or found.answer.digest != self._first.digest:
            found = await self._of_first(client, self._first)
        self.verdict = found

    async def _of_first(self, client: AdminClient, first: ImageAnswer) -> Verdict:
        """The verdict of what the tag showed, now that it shows something else."""
        verdict = self.verdict
        name = ImageName(self._image.repository, first.digest)
        found = await _look(client, name, verdict.site, verdict.asked)
        if not isinstance(found.answer, ImageAnswer):
            raise NotDone(f"{first.digest} was deleted at {verdict.asked} meanwhile")
        acked = found.answer.at(verdict.site).acked
        # The manifest is older than the tag's move: to have it is not to have been told of that.
        if acked is not None and acked < first.revision:
            return Verdict(
                self._image, verdict.site, verdict.asked, False, verdict.reason, found.answer
            )
        return found


async def _asked(client: AdminClient, site: str) -> str:
    """Which site it is that is asked."""
    asked = _SiteAnswer.model_validate_json(await client.get("/api/v1/site"))
    if site not in {asked.site, *asked.peers}:
        peers = ", ".join(asked.peers) or "none"
        raise SiteUnknown(f"{asked.site} has no peer {site}; its peers are: {peers}")
    return asked.site


async def _look(client: AdminClient, image: ImageName, site: str, asked: str) -> Verdict:
    query = urlencode({"repository": image.repository, "reference": image.reference})
    body = await client.find(f"{_PATH}?{query}")
    if body.found:
        answer = ImageAnswer.model_validate_json(body.content)
        place = answer.at(site)
        there = place.state == _THERE
        return Verdict(image, site, asked, there, place.detail, answer)
    absent = AbsentAnswer.model_validate_json(body.content)
    return Verdict(image, site, asked, False, absent.message, absent)


# --- for a person


def render(verdict: Verdict) -> list[str]:
    """What is known, line by line; times are UTC."""
    match verdict.answer:
        case ImageAnswer() as answer:
            return list(_told(verdict, answer))
        case AbsentAnswer() as absent:
            lines = [absent.message]
            for source in absent.sources:
                if source.tells:
                    lines += _about(source, source.site, verdict.asked, absent.now_ms)
                else:
                    lines.append(f"  {source.detail}")
            return lines
        case None:
            return [verdict.reason]


def _told(verdict: Verdict, answer: ImageAnswer) -> Iterator[str]:
    place = answer.at(verdict.site)
    pushed = f"pushed at {answer.pushed_at}, {_at(answer.pushed_ms)}"
    yield f"{verdict.image} is {answer.digest}, {pushed}"
    if verdict.there:
        yield f"{place.site} has it: {place.detail}"
        return
    yield f"{place.site} does not, as far as {verdict.asked} knows ({place.state}): {place.detail}"
    yield from _about(place, verdict.asked, place.site, answer.now_ms)


def _about(place: PlaceAnswer, source: str, taker: str, now_ms: int | None) -> Iterator[str]:
    """What keeps `taker` from having what `source` has."""
    takes = place.state != _NOT_TAKEN
    rows = {
        "job": f"{taker} fetches and applies what {source} tells" if takes else None,
        "link": f"{place.site}, {place.address}" if place.address else None,
        "error": place.error,
        "since": _at(place.since_ms, now_ms),
        "tried": f"{place.attempts} times in vain" if place.attempts else None,
        "next": _ahead(place.next_ms, now_ms),
        "expected": _expected(place, now_ms),
        "heard": _at(place.heard_ms, now_ms),
    }
    for name, text in rows.items():
        if text:
            yield f"  {name:8} {text}"


def _expected(place: PlaceAnswer, now_ms: int | None) -> str:
    """When what is on its way is expected, where nothing keeps it from coming."""
    if place.state != _ON_ITS_WAY or place.error is not None:
        return ""
    told = _ahead(place.expected_ms, now_ms) or "not known yet"
    return f"{told}, {decimal(place.bytes_to_go)} to go" if place.bytes_to_go else told


def _ahead(ms: int | None, now_ms: int | None) -> str:
    """A time that is to come; one that has passed is now, since what it is about goes on."""
    return "now" if ms and now_ms and ms <= now_ms else _at(ms, now_ms)


def _at(ms: int | None, now_ms: int | None = None) -> str:
    if not ms:
        return ""
    at = f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if now_ms is None:
        return at
    seconds = round((now_ms - ms) / 1000)
    return f"{at} ({seconds} s ago)" if seconds >= 0 else f"{at} (in {-seconds} s)"
