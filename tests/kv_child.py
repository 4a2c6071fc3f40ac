"""A process of its own at a SQLite KV, for tests: `python -m tests.kv_child <what> <file> <key>`.

It talks by lines: what it has done goes to standard output, what it shall do comes from its input.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Final

from node.kv import KV, Ok, Put, unchanged
from node.kv_sqlite import SqliteKV
from tests.kv_calls import get

COUNTS: Final = 500
TASKS: Final = 4


async def count(kv: KV, key: bytes) -> None:
    """Add 500 to the number at the key, one by one, and say how long the longest call took."""
    longest = 0.0

    async def add(times: int) -> None:
        nonlocal longest
        while times:
            seen = await get(kv, key)
            value = int(seen.value) + 1 if seen else 1
            begin = time.monotonic()
            outcome = await kv.txn([unchanged(key, seen)], [Put(key, b"%d" % value)])
            longest = max(longest, time.monotonic() - begin)
            times -= isinstance(outcome, Ok)

    await asyncio.gather(*(add(COUNTS // TASKS) for _ in range(TASKS)))
    say(f"{longest:.3f}")


async def fill(kv: KV, key: bytes) -> None:
    """Write `<key><n>` for ever, eight at a time, and say each n when it is acknowledged."""
    numbers = iter(range(10**9))

    async def write() -> None:
        for number in numbers:
            name = b"%b%d" % (key, number)
            outcome = await kv.txn([], [Put(name, b"v" * 500), Put(b"same", name)])
            assert isinstance(outcome, Ok)
            say(f"{number}")

    await asyncio.gather(*(write() for _ in range(8)))


async def tell(kv: KV, key: bytes) -> None:
    """For each line that comes, say what stands at the key."""
    say("ready")
    while await asyncio.to_thread(sys.stdin.readline):
        entry = await get(kv, key)
        say(entry.value.decode() if entry else "nothing")


def say(line: str) -> None:
    """One line to whoever started this."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(what: str, path: str, key: str) -> None:
    """Open the store, do it, close."""
    kv = await SqliteKV.open(Path(path))
    try:
        await {"count": count, "fill": fill, "tell": tell}[what](kv, key.encode())
    finally:
        await kv.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
