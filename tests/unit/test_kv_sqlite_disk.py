"""What the SQLite KV does when the disk is full: a small tmpfs, where the test may mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.errors import MetadataUnavailable
from node.kv import Absent, Ok, Put, Unknown
from node.kv_sqlite import SqliteKV
from tests.kv_calls import commit, get


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 2 MiB and no more."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


async def test_a_full_disk_loses_nothing_and_recovers(disk: Path) -> None:
    """What was `Ok` stays, what was refused is not there, and with space the store goes on."""
    kv = await SqliteKV.open(disk / "kv.db")
    filler = disk / "filler"
    filler.write_bytes(b"0" * (1 << 20))
    ends: list[type] = []
    while ends.count(Ok) == len(ends) or len(ends) < 200:
        key = b"n/%d" % len(ends)
        try:
            ends.append(type(await kv.txn([], [Put(key, b"v" * 9_000)])))
        except MetadataUnavailable:
            ends.append(MetadataUnavailable)
    assert set(ends) <= {Ok, Unknown, MetadataUnavailable}
    assert ends[0] is Ok
    filler.unlink()
    await commit(kv, Put(b"more", b""), guards=[Absent(b"more")])
    for number, end in enumerate(ends):
        found = await get(kv, b"n/%d" % number) is not None
        assert found or end is not Ok
        assert not found or end is not MetadataUnavailable
    await kv.close()
