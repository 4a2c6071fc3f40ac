"""The port's reads and transactions as SQL on one connection: no threads, no locks, no clock.

Each sqlite3 step gives up the interpreter's lock and asks for it again, which costs more than the
step while the event loop is busy.  So a joined read of single entries is one statement that answers
one row, and so are all the guards of a transaction; and what it puts is one statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import cache
from typing import Final

from node.errors import MetadataUnavailable
from node.kv import (
    Absent,
    Changes,
    Compacted,
    Created,
    Delete,
    DeleteRange,
    Empty,
    Entry,
    Exists,
    Failed,
    Guard,
    Lease,
    Modified,
    Ok,
    Op,
    Outcome,
    Put,
    Range,
    Snapshot,
    only,
)

# SQLite joins at most 64 tables.  Sizes are powers of two so that few statements are ever prepared.
JOINED: Final = 32
CHANGES: Final = 500

PAGE: Final = """
    SELECT key, value, created, modified FROM rows WHERE key >= ? AND key < ?
    ORDER BY key LIMIT ?"""
FIRST: Final = """
    LEFT JOIN rows AS a{0} ON a{0}.key = (
        SELECT key FROM rows WHERE key >= ?{1} AND key < ?{2} ORDER BY key LIMIT 1)"""
# Of CHANGED the inner SELECT is answered by the index alone.
CHANGED: Final = """
    SELECT r.key, r.value, r.created, r.modified FROM (
        SELECT key FROM rows INDEXED BY by_modified
        WHERE modified > ? AND modified <= ? AND key >= ? AND key < ? ORDER BY modified LIMIT ?
    ) AS c CROSS JOIN rows AS r ON r.key = c.key ORDER BY r.modified, r.key"""

PUT: Final = """
    INSERT INTO rows (key, value, created, modified, lease) VALUES {}
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, modified = excluded.modified, lease = excluded.lease"""


@cache
def _firsts_sql(count: int) -> str:
    columns = "".join(f", a{i}.key, a{i}.value, a{i}.created, a{i}.modified" for i in range(count))
    joins = "".join(FIRST.format(i, 2 * i + 1, 2 * i + 2) for i in range(count))
    return f"SELECT state.revision{columns} FROM state {joins}"  # noqa: S608 (only numbers)


@cache
def _put_sql(count: int) -> str:
    return PUT.format(", ".join(["(?, ?, ?, ?, ?)"] * count))


def _firsts(
    connection: sqlite3.Connection, ranges: Sequence[Range]
) -> tuple[int, list[Entry | None]]:
    """The revision, and the first entry of each range; of one moment up to `JOINED` ranges."""
    revision = 0
    found: list[Entry | None] = []
    for begin in range(0, max(len(ranges), 1), JOINED):
        part = ranges[begin : begin + JOINED]
        size = 1 << max(len(part) - 1, 0).bit_length()
        bounds = [bound for one in part for bound in one[:2]]
        bounds += [b""] * (2 * (size - len(part)))
        (row,) = connection.execute(_firsts_sql(size), bounds).fetchall()
        revision = row[0]
        found += [
            None if row[at] is None else Entry(*row[at : at + 4])
            for at in range(1, 4 * len(part) + 1, 4)
        ]
    return revision, found


def read(connection: sqlite3.Connection, ranges: Sequence[Range]) -> Snapshot:
    """Answer all ranges from one moment."""
    single = [one for one in ranges if one.limit == 1]
    try:
        if len(single) < len(ranges) or len(single) > JOINED:  # else one statement is one moment
            connection.execute("BEGIN")
        revision, found = _firsts(connection, single)
        firsts = iter(found)
        answers: list[tuple[Entry, ...]] = []
        for one in ranges:
            if one.limit == 1:
                entry = next(firsts)
                answers.append(() if entry is None else (entry,))
            else:
                rows = connection.execute(PAGE, (one.start, one.end, one.limit or -1))
                answers.append(tuple(map(Entry._make, rows.fetchall())))
        return Snapshot(tuple(answers), revision)
    finally:
        connection.rollback()


def changed(connection: sqlite3.Connection, within: Range, after: int) -> Changes:
    """The next changes after a revision: about `CHANGES` entries, whole revisions.

    Raises:
        Compacted: The store is not there yet, so it is not the store it was.
    """
    connection.execute("BEGIN")
    try:
        revision, _ = _firsts(connection, ())
        if after > revision:
            raise Compacted

        def window(low: int, high: int, limit: int) -> tuple[Entry, ...]:
            bounds = (low, high, within.start, within.end, limit)
            return tuple(map(Entry._make, connection.execute(CHANGED, bounds).fetchall()))

        entries = window(after, revision, CHANGES + 1)
        if len(entries) <= CHANGES:
            return Changes(entries, revision)
        cut = entries[-1].modified
        whole = tuple(entry for entry in entries if entry.modified < cut)
        if whole:
            return Changes(whole, whole[-1].modified)
        return Changes(window(after, cut, -1), cut)
    finally:
        connection.rollback()


def _where(guard: Guard) -> Range:
    return Range(guard.start, guard.end, 1) if isinstance(guard, Empty) else only(guard.key)


def _holds(guard: Guard, entry: Entry | None) -> bool:
    match guard:
        case Absent() | Empty():
            return entry is None
        case Exists():
            return entry is not None
        case Created(_, revision):
            return entry is not None and entry.created == revision
        case Modified(_, revision):
            return entry is not None and entry.modified == revision


class Batch:
    """An open write transaction: several of the port's, each at its own revision, one commit.

    A transaction sees what earlier ones of the batch wrote.  One that fails a guard writes nothing
    and leaves the others alone.
    """

    def __init__(self, connection: sqlite3.Connection, now: float) -> None:
        self._connection = connection
        self._now = now
        self._before, _ = _firsts(connection, ())
        self.revision = self._before
        deadlines = dict(connection.execute("SELECT id, deadline FROM leases").fetchall())
        self._leases = set(deadlines)
        for lease, deadline in deadlines.items():
            if deadline <= now:
                self.revoke(Lease(lease))

    @property
    def changed(self) -> bool:
        """Whether any key was written or removed."""
        return self.revision > self._before

    def seal(self) -> None:
        """Note the last revision; the commit follows."""
        if self.changed:
            self._connection.execute("UPDATE state SET revision = ?", (self.revision,))

    def txn(self, guards: Sequence[Guard], ops: Sequence[Op]) -> Outcome:
        """Apply the operations if the guards hold.

        Raises:
            MetadataUnavailable: A put names a lease that is gone; nothing was written.
        """
        _, found = _firsts(self._connection, [_where(guard) for guard in guards])
        if not all(map(_holds, guards, found)):
            return Failed(tuple(found))
        named = {op.lease for op in ops if isinstance(op, Put) and op.lease is not None}
        if gone := named - self._leases:
            raise MetadataUnavailable(f"lease {min(gone)} is gone")
        revision = self.revision + 1
        if self._put(ops, revision) + self._delete(ops):
            self.revision = revision
        return Ok(self.revision)

    def _put(self, ops: Sequence[Op], revision: int) -> int:
        puts = [
            (op.key, op.value, revision, revision, op.lease) for op in ops if isinstance(op, Put)
        ]
        for begin in range(0, len(puts), JOINED):
            part = puts[begin : begin + JOINED]
            size = 1 << (len(part) - 1).bit_length()
            part += part[-1:] * (size - len(part))
            self._connection.execute(_put_sql(size), [value for row in part for value in row])
        return len(puts)

    def _delete(self, ops: Sequence[Op]) -> int:
        keys = [(op.key,) for op in ops if isinstance(op, Delete)]
        spans = [(op.start, op.end) for op in ops if isinstance(op, DeleteRange)]
        gone = 0
        if keys:
            gone += self._connection.executemany("DELETE FROM rows WHERE key = ?", keys).rowcount
        if spans:
            ranged = "DELETE FROM rows WHERE key >= ? AND key < ?"
            gone += self._connection.executemany(ranged, spans).rowcount
        return gone

    def grant(self, ttl_s: float) -> Lease:
        """A new lease from now on."""
        made = self._connection.execute(
            "INSERT INTO leases (ttl, deadline) VALUES (?, ?) RETURNING id",
            (ttl_s, self._now + ttl_s),
        )
        ((lease,),) = made.fetchall()
        self._leases.add(lease)
        return Lease(lease)

    def keep_alive(self, lease: Lease) -> bool:
        """Give the lease its whole time again; False if it is gone."""
        if lease not in self._leases:
            return False
        again = "UPDATE leases SET deadline = ? + ttl WHERE id = ?"
        self._connection.execute(again, (self._now, lease))
        return True

    def revoke(self, lease: Lease) -> None:
        """End the lease and remove its keys."""
        if lease not in self._leases:
            return
        self._leases.discard(lease)
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        if self._connection.execute("DELETE FROM rows WHERE lease = ?", (lease,)).rowcount:
            self.revision += 1
