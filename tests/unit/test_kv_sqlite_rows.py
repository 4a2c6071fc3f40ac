"""What a group of transactions sees of itself."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

from node.errors import MetadataUnavailable
from node.kv import Ok, Put
from node.kv_sqlite import SqliteKV
from node.kv_sqlite_file import connect
from node.kv_sqlite_rows import Batch


async def _made(path: Path) -> None:
    await (await SqliteKV.open(path)).close()


def test_a_lease_that_ends_takes_no_more_keys(tmp_path: Path) -> None:
    """Also in the very group of transactions in which it ends, or is granted."""
    path = tmp_path / "kv.db"
    asyncio.run(_made(path))
    with closing(connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        batch = Batch(connection, 0.0)
        lease = batch.grant(10.0)
        assert isinstance(batch.txn([], [Put(b"a", b"", lease)]), Ok)
        assert batch.keep_alive(lease)
        batch.revoke(lease)
        assert not batch.keep_alive(lease)
        with pytest.raises(MetadataUnavailable):
            batch.txn([], [Put(b"b", b"", lease)])
        late = batch.grant(10.0)
        assert isinstance(batch.txn([], [Put(b"c", b"", late)]), Ok)
        with pytest.raises(MetadataUnavailable):
            Batch(connection, 11.0).txn([], [Put(b"c", b"", late)])
        connection.execute("ROLLBACK")
