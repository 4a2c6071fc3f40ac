"""A client that sends any bytes, and believes no answer: each is checked as it is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

# Far beyond what any answer takes, and below the gateway's own limits: 30 s for a head.
DEADLINE_S: Final = 120.0

_BODILESS: Final = frozenset({100, 204, 304})
_KNOWN: Final = frozenset(status.value for status in HTTPStatus)


class Wrong(AssertionError):
    """An answer that must not be, or none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response; `body` is None if the connection ended within it, or it has none."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None

    @property
    def is_last(self) -> bool:
        """Whether the connection ends with it."""
        return self.headers.get("connection") == "close"


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    """A connection to this port of the machine; aborted at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.transport.abort()


class Wire:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def send(self, content: bytes, *, end: bool = False) -> None:
        """Send bytes, and with `end` no more after them.

        Raises:
            ConnectionError: The registry has cut it; what it said before can still be read.
        """
        self._writer.write(content)
        if end and self._writer.can_write_eof():
            self._writer.write_eof()
        await self._writer.drain()

    async def answer(self, method: str) -> Answer:
        """The next answer, which is to a request of this method.

        Raises:
            EOFError, ConnectionError: There is none.
            Wrong: It is not what any answer has to be.
        """
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await self._answer(method)
                while answer.status == HTTPStatus.CONTINUE:
                    answer = await self._answer(method)
        except TimeoutError as err:
            raise Wrong(f"no answer within {DEADLINE_S} s") from err
        check(answer)
        return answer

    async def _answer(self, method: str) -> Answer:
        head = await self._reader.readuntil(b"\r\n\r\n")
        status, headers = parse_head(head[:-4])
        if method == "HEAD" or status in _BODILESS:
            return Answer(status, headers, None)
        return Answer(
            status, headers, await self._reader.readexactly(int(headers["content-length"]))
        )

    async def rest(self) -> list[Answer]:
        """All answers to the end of the connection, to requests of any method.

        Raises:
            Wrong: It does not end, or one is not what any answer has to be.
        """
        content = bytearray()
        try:
            async with asyncio.timeout(DEADLINE_S):
                while part := await self._reader.read(1 << 16):
                    content += part
        except TimeoutError as err:
            raise Wrong(f"not ended after {DEADLINE_S} s and {bytes(content[-300:])!r}") from err
        except ConnectionError:
            pass
        answers = list(_split(bytes(content)))
        for answer in answers:
            check(answer)
        return answers


def _split(content: bytes) -> list[Answer]:
    answers = []
    while b"\r\n\r\n" in content:
        head, _, content = content.partition(b"\r\n\r\n")
        status, headers = parse_head(head)
        length = int(headers.get("content-length", "0"))
        if status in _BODILESS or content.startswith(b"HTTP/1.1 ") or len(content) < length:
            body = None  # the answer to a HEAD, or cut
        else:
            body, content = content[:length], content[length:]
        if status != HTTPStatus.CONTINUE:
            answers.append(Answer(status, headers, body))
        if body is None and not content.startswith(b"HTTP/1.1 "):
            break
    return answers


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """The status and the headers, names in lower case.

    Raises:
        Wrong: It is no head.
    """
    first, *lines = head.split(b"\r\n")
    version, _, said = first.partition(b" ")
    if version != b"HTTP/1.1" or not said[:3].isdigit():
        raise Wrong(f"no status line: {first[:200]!r}")
    headers = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(": ")
        if not colon or not name.replace("-", "").isalnum() or "\r" in value or "\n" in value:
            raise Wrong(f"no header: {line[:200]!r}")
        headers[name.lower()] = value
    return int(said[:3]), headers


def check(answer: Answer) -> None:
    """What holds for every answer of a registry that is well.

    Raises:
        Wrong: It does not.
    """
    if answer.status == HTTPStatus.CONTINUE:
        return
    if answer.status not in _KNOWN or answer.status >= 500:
        raise Wrong(f"status {answer.status}: {answer.body!r}")
    if answer.headers.get("docker-distribution-api-version") != "registry/2.0":
        raise Wrong(f"{answer.status} does not say what it is")
    if answer.status < 400:
        return
    if answer.headers.get("content-type") != "application/json":
        raise Wrong(f"{answer.status} is no JSON")
    if answer.body is not None:
        _check_errors(answer.body)


def _check_errors(body: bytes) -> None:
    try:
        errors = json.loads(body)["errors"]
        well = errors and all(
            error.keys() == {"code", "message", "detail"}
            and error["code"].replace("_", "").isupper()
            and isinstance(error["message"], str)
            for error in errors
        )
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        raise Wrong(f"not the form of errors: {body[:300]!r}") from err
    if not well:
        raise Wrong(f"not the form of errors: {body[:300]!r}")
