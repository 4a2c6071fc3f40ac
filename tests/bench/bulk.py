"""Put what the model made into real stores, a lot at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Final

from node.kv import KV, MAX_OPS, Ok, Put

# etcd takes some of them in one sync, SQLite in one commit.
_AT_ONCE: Final = 16


async def put_all(kv: KV, puts: Sequence[Put]) -> None:
    """Put keys, each of them once, by transactions that are as large as may be."""
    chunks = (puts[start : start + MAX_OPS] for start in range(0, len(puts), MAX_OPS))
    while some := list(islice(chunks, _AT_ONCE)):
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(kv.txn([], chunk)) for chunk in some]
        outcomes = [task.result() for task in tasks]
        assert all(isinstance(outcome, Ok) for outcome in outcomes), outcomes
