"""Which life a site is in (RELIABILITY 6.4).

Metadata that is restored from a backup goes back in time: dots of this site would be used a second
time, and what peers know of it would be older than they think.  So a file beside the blobs keeps
the site's incarnation and how far its metadata has come.  Metadata that is behind it, of another
incarnation, or gone, begins a new life: its dots can't repeat old ones, and peers scan it anew.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import structlog

from node import keys
from node.config import ConfigError
from node.errors import MetadataUnavailable, StorageFailed
from node.kv import KV, Entry, Ok, Put, only, unchanged
from node.lifecycle import StartAgain
from node.records import SiteRecord
from node.wire import codec

FILE: Final = "site.json"
EVERY_S: Final = 5.0
# Another process compares in milliseconds, unless it is stopped.
_LOCK_S: Final = 10.0

_log = structlog.stdlib.get_logger(__name__)


class LifeEnded(StartAgain):
    """The site has begun a new life, or has to: this process starts again in that."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose blobs these are, in which incarnation, and a revision that its metadata had reached."""

    name: str
    incarnation: str
    revision: int


def why_not(mark: Mark | None, record: SiteRecord | None, revision: int) -> str | None:
    """Why metadata may not be believed; None if it may be."""
    if mark is None:
        return None
    if record is None:
        return "the site's metadata is gone"
    if record.incarnation != mark.incarnation:
        return "the site's metadata is of another life than its blobs"
    if revision < mark.revision:
        return f"the site's metadata is at revision {revision}, and was at {mark.revision}"
    return None


class Life:
    """The life of a site. `root` is the folder of its blobs; `new_id` makes ids never used twice.

    All processes of a site share the folder, and change the file one at a time.
    """

    def __init__(self, kv: KV, root: Path, name: str, *, new_id: Callable[[], str]) -> None:
        self._kv = kv
        self._file = root / FILE
        self._name = name
        self._new_id = new_id
        self._reached = 0
        # A revision that the metadata of this life has come to: nothing is decided on less.
        self.at_least = 0

    async def begin(self) -> SiteRecord:
        """The site's identity: that of its metadata where it may be believed, else a new one.

        Raises:
            ConfigError: The metadata or the blobs are another site's.
            MetadataUnavailable: The metadata does not answer.
            StorageFailed: The folder is not that of the site's blobs, or does not work.
        """
        async with self._alone():
            mark = await asyncio.to_thread(self._read)
            if mark is not None and mark.name != self._name:
                raise ConfigError(f"site: these blobs are of site {mark.name}, not {self._name}")
            try:
                entry, record, revision = await self._look()
            except MetadataUnavailable:
                return await self._known(mark)
            self.at_least = revision
            if mark is None and record is not None:
                # A disk that is not mounted, or another folder: the site's blobs lie elsewhere.
                raise StorageFailed(f"{self._file} is missing: these are not the site's blobs")
            reason = why_not(mark, record, revision)
            if record is None or reason is not None:
                return await self._renew(entry, revision, reason)
            await asyncio.to_thread(self._write, Mark(self._name, record.incarnation, revision))
            return record

    async def _known(self, mark: Mark | None) -> SiteRecord:
        """The identity, where the metadata has no majority and is still the mark's: for pulls.

        Nothing is decided before the metadata has come to the mark: see `at_least`.
        """
        (found,) = (await self._kv.read([only(keys.SITE)], may_be_stale=True)).ranges
        record = codec.decode_site(found[0].value) if found else None
        if mark is None or record != SiteRecord(mark.name, mark.incarnation):
            raise MetadataUnavailable("it is not certain that it is this site's")
        self.at_least = mark.revision
        return record

    async def _renew(self, entry: Entry | None, revision: int, reason: str | None) -> SiteRecord:
        """Begin a life.  The mark comes first: alone, it makes the next start begin another.

        Raises:
            MetadataUnavailable: It is not certain that it has begun.
        """
        fresh = SiteRecord(self._name, self._new_id())
        mark = Mark(self._name, fresh.incarnation, revision)
        await asyncio.to_thread(self._write, mark)
        put = Put(keys.SITE, codec.encode_site(fresh))
        outcome = await self._kv.txn([unchanged(keys.SITE, entry)], [put])
        if not isinstance(outcome, Ok):
            raise MetadataUnavailable("the site's record could not be written")
        if reason is not None:
            _log.warning("a new life begins", reason=reason, incarnation=fresh.incarnation)
        return fresh

    async def heard(self, record: SiteRecord, revision: int) -> None:
        """A peer knows of a write of this life at a revision: so the metadata must have come to it.

        Raises:
            LifeEnded: It has not, so it was restored; a new life has begun.
            MetadataUnavailable, StorageFailed: They do not work now.
        """
        if revision <= self._reached:
            return
        _, _, self._reached = await self._look()
        if revision <= self._reached:
            return
        async with self._alone():
            entry, found, reached = await self._look()
            if found == record and reached < revision:
                await self._renew(entry, reached, f"a peer knows revision {revision} of it")
        raise LifeEnded(f"a peer knows revision {revision} of this life, which is at {reached}")

    async def watch(
        self,
        record: SiteRecord,
        *,
        every_s: float = EVERY_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Keep the mark up to date, for ever.

        Raises:
            LifeEnded: The metadata went back, or another process has begun a new life.
        """
        while True:
            with suppress(MetadataUnavailable, StorageFailed):
                await self.keep(record)
            await sleep(every_s)

    async def leave(self, record: SiteRecord) -> None:
        """Write down how far the metadata has come, as the last thing; best effort."""
        with suppress(MetadataUnavailable, StorageFailed, LifeEnded):
            await self.keep(record)

    async def keep(self, record: SiteRecord) -> None:
        """Write down how far the metadata has come.

        Raises:
            LifeEnded: The metadata went back, or another process has begun a new life.
            MetadataUnavailable, StorageFailed: They do not work now.
        """
        async with self._alone():
            mark = await asyncio.to_thread(self._read)
            _, found, revision = await self._look()
            reason = why_not(mark, found, revision)
            if reason is None and found != record:
                reason = "another process has begun a new life"
            if reason is not None:
                raise LifeEnded(reason)
            if mark is None:
                raise StorageFailed(f"{self._file} is missing: these are not the site's blobs")
            if mark.revision < revision:
                fresh = Mark(self._name, record.incarnation, revision)
                await asyncio.to_thread(self._write, fresh)

    async def _look(self) -> tuple[Entry | None, SiteRecord | None, int]:
        snapshot = await self._kv.read([only(keys.SITE)])
        (found,) = snapshot.ranges
        entry = found[0] if found else None
        record = None if entry is None else codec.decode_site(entry.value)
        if record is not None and record.name != self._name:
            raise ConfigError(f"site: this metadata is of site {record.name}, not {self._name}")
        return entry, record, snapshot.revision

    # --- the file; in threads

    def _read(self) -> Mark | None:
        try:
            content = json.loads(self._file.read_bytes())
            return Mark(content["site"], content["incarnation"], int(content["revision"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise StorageFailed(f"{self._file} can't be read: {err!r}") from err

    def _write(self, mark: Mark) -> None:
        try:
            self._replace(mark)
        except OSError as err:
            raise StorageFailed(f"{self._file.name}: {err}") from err

    def _replace(self, mark: Mark) -> None:
        content = {"site": mark.name, "incarnation": mark.incarnation, "revision": mark.revision}
        fresh = self._file.with_suffix(".new")
        with fresh.open("w") as file:
            json.dump(content, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Be the only process that looks at the file and the metadata to compare them."""
        lock = await asyncio.to_thread(self._lock)
        try:
            yield
        finally:
            lock.close()

    def _lock(self) -> IO[str]:
        try:
            lock = self._file.with_suffix(".lock").open("w")
        except OSError as err:
            raise StorageFailed(f"{self._file.name}: {err}") from err
        until = time.monotonic() + _LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as err:
                if time.monotonic() >= until:
                    lock.close()
                    raise StorageFailed(f"{self._file.name} is held by another process") from err
                time.sleep(_LOCK_S / 100)
            else:
                return lock
