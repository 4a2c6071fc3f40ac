"""Where a follower's book stands in the KV, written as leader only.

The cursor's key is the version of all of it: every write is guarded by the leader's key and by that
key as it was last seen, so a write that arrives late, or a deposed leader's, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, assert_never

from node import keys
from node.election import Deposed, Leadership
from node.errors import MetadataUnavailable
from node.kv import KV, Delete, Entry, Failed, Ok, Op, Put, Unknown, only, unchanged
from node.records import Cursor, Parked
from node.reference import Repository
from node.wire import codec, follow_codec
from node.wire.follow_codec import FollowRecord

# Operations in one transaction, with room below etcd's 128.
_CHUNK: Final = 100
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """What was written down last."""

    cursor: Cursor
    parked: Mapping[Repository, Parked]


class Checkpoint:
    """Loads and saves one source's cursor, parks and status."""

    def __init__(self, kv: KV, source: str, leadership: Leadership) -> None:
        self._kv = kv
        self._source = source
        self._leadership = leadership
        self._seen: Entry | None = None

    async def load(self) -> Standing:
        """What stands; a cursor at 0 of no life where nothing does.

        Raises:
            MetadataUnavailable: No answer in time.
        """
        key, within = keys.cursor(self._source), keys.all_parked(self._source)
        cursors, parked = (await self._kv.read([only(key), within])).ranges
        self._seen = cursors[0] if cursors else None
        return Standing(
            codec.decode_cursor(self._seen.value) if self._seen else Cursor("", 0),
            {keys.parked_repository(e.key): codec.decode_parked(e.value) for e in parked},
        )

    async def save(
        self,
        cursor: Cursor,
        parks: Mapping[Repository, Parked | None],
        status: FollowRecord,
    ) -> None:
        """Write all of it; parks first where it is too much for one transaction.

        Raises:
            Deposed: Somebody else leads; nothing more was written.
            MetadataUnavailable: Some of it may be written; saving again is right.
        """
        ops = [self._park(repository, record) for repository, record in parks.items()]
        last = codec.encode_cursor(cursor)
        while len(ops) > _CHUNK:
            before = self._seen.value if self._seen else codec.encode_cursor(Cursor("", 0))
            await self._write(before, ops[:_CHUNK])
            ops = ops[_CHUNK:]
        status_key = keys.status(self._source)
        ops.append(Put(status_key, follow_codec.encode_follow(status), self._leadership.lease))
        await self._write(last, ops)

    def _park(self, repository: Repository, record: Parked | None) -> Op:
        key = keys.parked(self._source, repository)
        return Delete(key) if record is None else Put(key, codec.encode_parked(record))

    async def _write(self, cursor: bytes, ops: Sequence[Op]) -> None:
        key = keys.cursor(self._source)
        guards = [self._leadership.guard]
        for _ in range(_ATTEMPTS):
            outcome = await self._kv.txn(
                [*guards, unchanged(key, self._seen)], [Put(key, cursor), *ops]
            )
            match outcome:
                case Ok(revision=revision):
                    created = self._seen.created if self._seen else revision
                    self._seen = Entry(key, cursor, created, revision)
                    return
                case Failed(found=(leader, entry)):
                    if leader is None or leader.created != self._leadership.token:
                        raise Deposed
                    # An attempt of ours that was thought lost has landed. Once more is no harm.
                    self._seen = entry
                case Failed() | Unknown():
                    (found,) = (await self._kv.read([only(key)])).ranges
                    self._seen = found[0] if found else None
                case _:
                    assert_never(outcome)
        raise MetadataUnavailable("the cursor could not be saved")
