"""Whom to ask for bytes: the peer that told of them, then every other that may have them.

A source that could not be reached, or broke off, is asked last for a while, and one that lied for
longer; none is ever left out, so a peer that is back is of use at once.  Which source has a blob
is found out by asking for it: a 404 costs the same round trip as any other question.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Final, Protocol, TypeAlias

import structlog
from prometheus_client import Counter

from node.digest import Digest
from node.errors import BlobUnknown, ManifestUnknown, PeerLied, PeerUnavailable
from node.globs import Filter
from node.reference import Repository
from node.remote import RemoteBlob
from replicator.bandwidth import Throttle

FAILED_S: Final = 30.0
LIED_S: Final = 600.0
# A source that brings less, in so many seconds of waiting for it, is as good as away.
FLOOR_BYTES_PER_S: Final = 1024
FLOOR_S: Final = 60.0

Failure: TypeAlias = PeerUnavailable | PeerLied
# What a source may answer in place of bytes.
FAILURES: Final = (BlobUnknown, ManifestUnknown, PeerUnavailable, PeerLied)

_log = structlog.stdlib.get_logger(__name__)


class Registry(Protocol):
    """Where bytes come from: `node.remote.Remote`."""

    @property
    def site(self) -> str:
        """What errors call it."""
        ...

    def blob(
        self, repository: Repository, digest: Digest, start: int = 0, most: int | None = None
    ) -> AbstractAsyncContextManager[RemoteBlob]:
        """The bytes of a blob from an offset, to its end or so many; see `Remote.blob`."""
        ...

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """The body of a manifest, verified; see `Remote.manifest`."""
        ...


class Source:
    """One peer to fetch from, as all of this process see it: how fast, and how well it does.

    `takes` says of which repositories this site takes anything from it; `clock` is monotonic.
    """

    def __init__(
        self,
        registry: Registry,
        takes: Filter,
        throttle: Throttle,
        received: Counter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.site = registry.site
        # How much to ask for at a time; None: all there is.
        self.most = throttle.asked
        self._registry = registry
        self._takes = takes
        self._throttle = throttle
        self._received = received
        self._clock = clock
        self._failed_until = 0.0
        self._lied_until = 0.0

    def takes(self, repository: Repository) -> bool:
        """Whether this site takes anything of that repository from it."""
        return self._takes.takes(repository)

    @property
    def doubt(self) -> int:
        """How it did of late: 0 well, 1 it failed, 2 it lied."""
        now = self._clock()
        return 2 if now < self._lied_until else int(now < self._failed_until)

    def did(self, error: Exception, digest: Digest) -> Failure:
        """Remember how it failed to bring something; the failure in words of the caller."""
        match error:
            case PeerLied():
                self.lied(error)
                return error
            case PeerUnavailable():
                self._failed_until = self._clock() + FAILED_S
                return error
            case _:
                return PeerUnavailable(self.site, f"it does not have {digest}")

    def lied(self, lie: PeerLied) -> None:
        """Ask it last from now on."""
        _log.warning("a source lied", source=self.site, digest=lie.digest, sent=lie.actual)
        self._lied_until = self._clock() + LIED_S

    @asynccontextmanager
    async def blob(
        self,
        repository: Repository,
        digest: Digest,
        start: int = 0,
        most: int | None = None,
        pace: Pace | None = None,
    ) -> AsyncIterator[RemoteBlob]:
        """As `Remote.blob`: counted, held to the link's bandwidth, and of the length it said.

        The iterator raises `PeerLied` for more bytes than that, `PeerUnavailable` for fewer, and
        for a source that brings next to nothing (over all connections of one pace).

        Raises:
            BlobUnknown, PeerLied, PeerUnavailable: See `Remote.blob`.
        """
        pace, asked = pace or Pace(), self._clock()
        async with self._registry.blob(repository, digest, start, most) as blob:
            pace.waited(self._clock() - asked)
            end = blob.size if most is None else min(blob.size, start + most)
            measured = self._measured(repository, digest, blob, range(start, end), pace)
            async with aclosing(measured) as chunks:
                yield RemoteBlob(blob.size, chunks)

    async def _measured(
        self, repository: Repository, digest: Digest, blob: RemoteBlob, asked: range, pace: Pace
    ) -> AsyncGenerator[bytes, None]:
        offset, end = asked.start, asked.stop
        while (chunk := await self._next(blob, pace)) is not None:
            offset += len(chunk)
            if offset > end:
                raise PeerLied(self.site, str(digest), f"more than {end} bytes")
            for part in self._throttle.parts(chunk):
                await self._throttle.passed(repository, len(part))
                yield part
        if offset < end:
            raise PeerUnavailable(self.site, f"ended at byte {offset} of {end}")

    async def _next(self, blob: RemoteBlob, pace: Pace) -> bytes | None:
        asked = self._clock()
        try:
            chunk = await anext(blob.chunks, None)
        finally:
            pace.waited(self._clock() - asked)
        if chunk is not None:
            self._received.inc(len(chunk))
            if pace.is_too_slow(len(chunk)):
                reason = f"sends less than {FLOOR_BYTES_PER_S} bytes a second"
                raise PeerUnavailable(self.site, reason, reached=False)
        return chunk

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """See `Remote.manifest`."""
        return await self._registry.manifest(repository, digest, size)


class Pace:
    """Whether a source still sends; only the time counts in which it was waited for. Pure."""

    def __init__(self) -> None:
        self._waited_s = 0.0
        self._brought = 0

    def waited(self, seconds: float) -> None:
        """It was waited for so long."""
        self._waited_s += seconds

    def is_too_slow(self, size: int) -> bool:
        """It brought so many bytes: is what it brings below the floor?"""
        self._brought += size
        if self._waited_s < FLOOR_S:
            return False
        too_slow = self._brought < FLOOR_BYTES_PER_S * self._waited_s
        self._waited_s, self._brought = 0.0, 0
        return too_slow


class Sources:
    """Where the content of one peer's changes may be had: of that peer, or of others."""

    def __init__(self, told_by: Source, others: Sequence[Source] = ()) -> None:
        self.site = told_by.site
        self._all = (told_by, *others)

    def order(self, repository: Repository) -> list[Source]:
        """Whom to ask, one after the other: who told first, if there is no doubt about it."""
        known = [s for s in self._all if s.site == self.site or s.takes(repository)]
        return sorted(known, key=lambda source: source.doubt)

    async def manifest(self, repository: Repository, digest: Digest, size: int) -> bytes:
        """The body of a manifest, verified, from whoever has it.

        Raises:
            PeerUnavailable: Nobody reachable has it.
            PeerLied: The only one that could be asked sent something else.
        """
        failures: list[Failure] = []
        for source in self.order(repository):
            try:
                return await source.manifest(repository, digest, size)
            except PeerLied as err:
                failures.append(err)  # about its size who told of it may have lied
            except FAILURES as err:
                failures.append(source.did(err, digest))
        raise self.failed(failures)

    def failed(self, failures: Sequence[Failure]) -> Failure:
        """What is said when nobody could help: of each who was asked, why."""
        if len(failures) == 1:
            return failures[0]
        reasons = [f"source {f.site}: {_reason(f)}" for f in failures]
        reached = any(isinstance(f, PeerLied) or f.reached for f in failures)
        return PeerUnavailable(self.site, "; ".join(reasons), reached=reached)


def _reason(failure: Failure) -> str:
    if isinstance(failure, PeerUnavailable):
        return failure.reason
    return f"sent {failure.actual} as {failure.digest}"
