"""The file behind the SQLite KV: where it may lie, what is in it, how it is opened.

It is opened through sqlite3 only: POSIX locks of a process drop when it closes any descriptor of
the file, so a stray `open()` would let two writers in.  For the same reason it is never opened on a
network file system, whose locks and shared memory do not reach the other host.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from node.errors import MetadataUnavailable

APPLICATION_ID: Final = 0x456E7470  # "Entp", so that file(1) and we know our own
SCHEMA_VERSION: Final = 1
LOCK_S: Final = 5.0
RETRY_S: Final = 0.0005
TURN_S: Final = 1.0

NETWORKED: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.sshfs", "nfs", "nfs4", "smb3", "smbfs"}
)
MOUNTS: Final = Path("/proc/self/mounts")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

# Clustered by key: a lookup is one descent, and `by_modified` holds the keys, so that following a
# range reads the values of its own entries only.  AUTOINCREMENT: a lease's number names keys
# (elections), so it must never come back.
SCHEMA: Final = (
    """CREATE TABLE IF NOT EXISTS rows (
        key BLOB NOT NULL PRIMARY KEY, value BLOB NOT NULL,
        created INTEGER NOT NULL, modified INTEGER NOT NULL, lease INTEGER
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS by_modified ON rows (modified)",
    "CREATE INDEX IF NOT EXISTS by_lease ON rows (lease) WHERE lease IS NOT NULL",
    """CREATE TABLE IF NOT EXISTS leases (
        id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL, deadline REAL NOT NULL
    )""",
    "CREATE TABLE IF NOT EXISTS state (revision INTEGER NOT NULL, boot TEXT NOT NULL)",
    "INSERT INTO state SELECT 1, '' WHERE NOT EXISTS (SELECT 1 FROM state)",
)


class StorageUnsuitable(ValueError):
    """The metadata file can't live there, or is not one of ours; waiting will not help."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def boottime() -> float:
    """Seconds since the machine started, asleep or awake; no step of the wall clock moves it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """What tells this run of the machine from the one before."""
    return BOOT_ID.read_text("ascii").strip()


def file_system(path: Path) -> str:
    """The type of the file system that holds the path, as the kernel names it; "" if unknown."""
    try:
        mounts = MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return ""
    depth, found = -1, ""
    for line in mounts:
        _, point, kind, *_ = line.split(" ")
        folder = Path(point.replace("\\040", " "))
        # Of two mounts on one folder the later hides the earlier.
        if path.is_relative_to(folder) and len(folder.parts) >= depth:
            depth, found = len(folder.parts), kind
    return found


def retry_pause() -> None:
    """Wait a moment before asking for a lock again: waiters that ask in step would stay so."""
    time.sleep(RETRY_S * random.uniform(0.5, 1.0))


class Turnstile:
    """Lets the writers of several processes take turns: SQLite's lock goes to whoever asks first.

    Whoever waits for SQLite's lock stands in here, so who has just let go of that can't take it
    again before him; without it a busy process starves another for seconds.  A courtesy, no lock:
    nothing is wrong if somebody goes round it, so nobody waits here for more than a second.
    """

    def __init__(self, path: Path) -> None:
        """Use this file, which stays empty; it is not the database's.

        Raises:
            OSError: It can't be made.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Stand in the turnstile, or after a second beside it."""
        deadline = time.monotonic() + TURN_S
        while not (entered := self._enter()) and time.monotonic() < deadline:
            retry_pause()
        try:
            yield
        finally:
            if entered:
                fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _enter(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # held, or locks do not work here: it is a courtesy
            return False
        return True


def connect(path: Path, *, query_only: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode that any one thread at a time may use; it waits for locks.

    Raises:
        sqlite3.Error: It can't be opened.
    """
    connection = sqlite3.connect(
        path, timeout=LOCK_S, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA query_only = {query_only:d}")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


class SameFile:
    """Knows the file that stands at a path from any that stands there later.

    A connection goes on with a file that was moved or removed, and what it writes is lost to
    whoever opens the path; one that was put in its place is another history.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: tuple[int, int] | None = None

    def require(self) -> None:
        """Return if the file is there that was there at the first call.

        Raises:
            MetadataUnavailable: It is not.
        """
        try:
            found = self._path.stat()
        except OSError as err:
            raise MetadataUnavailable(f"its file is gone: {err.strerror}") from err
        here = found.st_dev, found.st_ino
        if here != (self._known or here):
            raise MetadataUnavailable("another file is in the place of its own; start anew")
        self._known = here


def prepare(path: Path, now: float) -> None:
    """Make the file ours if it is new, and give leases of an earlier boot their whole time again.

    After a reboot nobody knows how long the machine was down; a lease that lives too long only
    delays a new leader, as etcd's do after a change of leader.

    Raises:
        StorageUnsuitable: A network file system, another program's file, a later version's.
        MetadataUnavailable: The file can't be opened or written now.
    """
    kind = file_system(path.absolute().parent.resolve())
    if kind in NETWORKED:
        raise StorageUnsuitable(path, f"SQLite does not work between hosts on {kind}")
    try:
        connection = connect(path)
        try:
            _check(connection, path)
            _enter_wal(connection)
            _fill(connection, now)
        finally:
            connection.close()
    except sqlite3.Error as error:
        if _code(error) == sqlite3.SQLITE_NOTADB:
            raise StorageUnsuitable(path, "is no SQLite file") from error
        raise MetadataUnavailable(f"{path}: {error}") from error


def busy(error: sqlite3.Error) -> bool:
    """Somebody else holds a lock; nothing is wrong."""
    return _code(error) in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


def _code(error: sqlite3.Error) -> int:
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _check(connection: sqlite3.Connection, path: Path) -> None:
    # In one transaction: between two, another process may make the file ours.
    connection.execute("BEGIN")
    try:
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
    finally:
        connection.rollback()
    if application != APPLICATION_ID and (application or tables):
        raise StorageUnsuitable(path, "belongs to another program")
    if version > SCHEMA_VERSION:
        raise StorageUnsuitable(path, f"was written by a later version (schema {version})")


def _enter_wal(connection: sqlite3.Connection) -> None:
    deadline = time.monotonic() + LOCK_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
        except sqlite3.OperationalError as error:
            # Two processes that make the file at once would wait for each other for ever, so SQLite
            # answers BUSY at once, whatever the time-out.
            if not busy(error) or time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _fill(connection: sqlite3.Connection, now: float) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        boot = boot_id()
        if connection.execute("UPDATE state SET boot = ?1 WHERE boot <> ?1", (boot,)).rowcount:
            connection.execute("UPDATE leases SET deadline = ? + ttl", (now,))
        connection.execute("COMMIT")
    finally:
        connection.rollback()
