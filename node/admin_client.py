"""A site's admin API, asked from the command line: whatever goes wrong is one line for a person."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aiohttp
from pydantic import ValidationError
from yarl import URL

LIMIT_S: Final = 10.0


class NotReachable(Exception):
    """The site did not answer, or not as Entrepot does."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason


class NotNow(Exception):
    """The site can't answer that at the moment; the message is its own."""


class NotDone(Exception):
    """The site did not do what it was asked to; the message is its own."""


class SiteUnknown(Exception):
    """The site that was named is neither the one that was asked nor one of its peers."""


class Found(NamedTuple):
    """An answer, or what is said of that there is none."""

    found: bool
    content: bytes


class AdminClient:
    """One site, at a URL without a slash at its end."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url = url
        self._http = http

    async def get(self, path: str) -> bytes:
        """The answer to a GET of a path with its query."""
        return (await self.page(path))[0]

    async def find(self, path: str) -> Found:
        """The answer to a GET of what may not be there."""
        async with self._http.get(f"{self.url}{path}") as answer:
            if answer.status != 404:
                answer.raise_for_status()
            return Found(answer.status != 404, await answer.read())

    async def ask(self, path: str) -> bytes:
        """The answer to a GET of what the site may not be able to tell just now.

        Raises:
            NotNow: It can't, and says why.
        """
        async with self._http.get(f"{self.url}{path}") as answer:
            body = await answer.read()
            if answer.status == 503:
                raise NotNow(_message(body, answer.status))
            answer.raise_for_status()
            return body

    async def page(self, path: str) -> tuple[bytes, str | None]:
        """One page of a list, and the path of the next if there is one."""
        async with self._http.get(f"{self.url}{path}") as answer:
            answer.raise_for_status()
            following = answer.links.get("next")
            body = await answer.read()
            return body, None if following is None else URL(following["url"]).path_qs

    async def post(self, path: str, content: object, headers: Mapping[str, str]) -> bytes:
        """Send JSON; the body of the answer.

        Raises:
            NotDone: The site refused it.
        """
        url = f"{self.url}{path}"
        async with self._http.post(url, json=content, headers=headers) as answer:
            if 400 <= answer.status < 500:
                raise NotDone(_message(await answer.read(), answer.status))
            answer.raise_for_status()
            return await answer.read()


@asynccontextmanager
async def asking(url: str, tls: ssl.SSLContext) -> AsyncIterator[AdminClient]:
    """A site to ask; `tls` is for https.

    Raises:
        NotReachable: It does not answer within ten seconds, or not as Entrepot does.
    """
    base = url.rstrip("/")
    try:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=LIMIT_S),
            connector=aiohttp.TCPConnector(ssl=tls),
        ) as http:
            yield AdminClient(base, http)
    except aiohttp.ClientResponseError as err:
        raise NotReachable(base, f"answered {err.status} to {err.request_info.url.path}") from err
    except aiohttp.ClientSSLError as err:
        raise NotReachable(base, f"no TLS with it: {err.os_error}") from err
    except aiohttp.ClientConnectorError as err:
        raise NotReachable(base, f"not reachable: {err.os_error.strerror or err.os_error}") from err
    except aiohttp.InvalidURL as err:
        raise NotReachable(base, "is no URL") from err
    except TimeoutError as err:
        raise NotReachable(base, f"no answer within {LIMIT_S:g} s") from err
    except (aiohttp.ClientError, OSError) as err:
        raise NotReachable(base, f"not reachable: {err}") from err
    except ValidationError as err:
        raise NotReachable(base, "does not answer as Entrepot does") from err


def _message(body: bytes, status: int) -> str:
    """What an error's answer says, if it is one of ours."""
    try:
        content: Any = json.loads(body)
        return str(content["errors"][0]["message"])
    except (ValueError, LookupError, TypeError):
        return f"refused with {status}"
