"""What somebody asked to be compared is answered by who leads, and by nobody who did."""

from __future__ import annotations

from node import keys
from node.replication_status import ask_to_compare
from tests.feeds import dialled
from tests.following import Here, There
from tests.kv_calls import must_get


async def test_a_deposed_leader_leaves_a_request_to_the_next() -> None:
    """What it found is not written down, so the next leader has to do it once more."""
    here, there = Here(), There()
    await ask_to_compare(here.kv, "fra")
    asked = await must_get(here.kv, keys.request("fra"))
    async with dialled(there.peer) as client:
        deposed = await here.leads()
        leader = await here.leads()
        reconcile = here.reconcile(client)
        await reconcile._answer(asked, deposed)
        assert await must_get(here.kv, keys.request("fra")) == asked
        await reconcile._answer(asked, leader)
    assert keys.request("fra") not in here.kv.entries()
