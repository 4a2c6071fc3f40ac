"""How long the members of an etcd are asked, and what is said of those that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from operator import attrgetter
from typing import Any, Final

import grpc
import pytest
from aetcd.rpc.rpc_pb2 import RangeRequest, RangeResponse
from grpc import aio

from node.errors import MetadataUnavailable
from node.kv_etcd_lines import Access
from node.kv_etcd_members import Members
from tests.waiting import eventually

WITHIN_S: Final = 6.0
PATIENCE_S: Final = 2.0
HANGS: Final = 3600.0

_RANGE: Final = attrgetter("kv.Range")


class Server(grpc.GenericRpcHandler):
    """A member that answers after a time, or refuses with these details at once."""

    def __init__(self, late_s: float = 0.0, refuses: str = "") -> None:
        self.late_s = late_s
        self.refuses = refuses
        self.asked = 0

    def service(self, handler_call_details: object) -> grpc.RpcMethodHandler[Any, Any]:
        """Take every method."""
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, context: Any) -> bytes:
        self.asked += 1
        if self.refuses:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"etcdserver: {self.refuses}")
        await asyncio.sleep(self.late_s)
        return bytes(RangeResponse(count=7).SerializeToString())


def slow(late_s: float) -> Server:
    """One that answers after a time."""
    return Server(late_s)


def unled() -> Server:
    """One that has no leader."""
    return Server(refuses="no leader")


@asynccontextmanager
async def asking(servers: Sequence[Server]) -> AsyncIterator[Members]:
    """A client that asks them in this order; all are connected."""
    async with AsyncExitStack() as stack:
        endpoints = []
        for server in servers:
            serving = aio.server()
            serving.add_generic_rpc_handlers((server,))
            endpoints.append(f"127.0.0.1:{serving.add_insecure_port('127.0.0.1:0')}")
            await serving.start()
            stack.push_async_callback(serving.stop, None)
        members = Members(Access(tuple(endpoints)))
        stack.push_async_callback(members.close)
        members.reads.lines.sort(key=lambda line: endpoints.index(line.endpoint))
        await eventually(lambda: connected(members), 60, "all are connected")
        yield members


def connected(members: Members) -> bool:
    """Whether all of its lines are ready; those that are not begin to connect."""
    return [line.is_ready for line in members.reads.lines].count(False) == 0


async def _ask(members: Members) -> Any:
    return await members.ask(_RANGE, RangeRequest(), within_s=WITHIN_S, patience_s=PATIENCE_S)


async def _refused(members: Members) -> tuple[bool, float]:
    """Whether it was said that there is no leader, and how long that took."""
    clock = asyncio.get_running_loop().time
    began = clock()
    with pytest.raises(MetadataUnavailable) as caught:
        await _ask(members)
    return caught.value.unled, clock() - began


@pytest.mark.parametrize("size", [1, 3])
async def test_a_slow_member_has_all_the_time(size: int) -> None:
    """An answer that comes late, and in time, is taken, however many members are as slow."""
    async with asking([slow(0.6 * WITHIN_S) for _ in range(size)]) as members:
        assert (await _ask(members)).count == 7


async def test_a_slow_member_is_waited_for_beside_one_without_a_leader() -> None:
    """That one of them has lost its leader does not shorten the time of the others."""
    async with asking([unled(), slow(0.6 * WITHIN_S), Server(refuses="no leader")]) as members:
        assert (await _ask(members)).count == 7


async def test_members_that_hang_do_not_take_all_the_time() -> None:
    """The last of three is asked in time, and before the others from then on."""
    well = Server()
    hung = [slow(HANGS), slow(HANGS)]
    async with asking([*hung, well]) as members:
        assert (await _ask(members)).count == 7
        assert (await _ask(members)).count == 7
        assert [one.asked for one in hung] == [1, 1]
        assert well.asked == 2


async def test_a_leader_is_looked_for_once_and_not_missed_for_long() -> None:
    """Where all say to have none an election is waited for, and then for some seconds no more."""
    servers = [unled() for _ in range(3)]
    async with asking(servers) as members:
        said, took_s = await _refused(members)
        assert said
        assert PATIENCE_S <= took_s < WITHIN_S
        said, took_s = await _refused(members)
        assert said
        assert took_s < PATIENCE_S
        servers[0].refuses = ""
        async with asyncio.timeout(20):
            while servers[0].asked < 1 or (await _ask(members)).count != 7:
                pass


@pytest.mark.parametrize("other", [slow(HANGS), Server(refuses="too many requests")])
async def test_no_answer_is_not_taken_for_no_leader(other: Server) -> None:
    """A store that is too slow, or too busy, is not said to have no majority."""
    async with asking([other]) as members:
        said, took_s = await _refused(members)
        assert not said
        assert took_s >= 0.9 * WITHIN_S


async def test_one_without_a_leader_beside_those_that_hang() -> None:
    """It is not said for certain that nobody has a leader; the next ones are told soon, too."""
    async with asking([slow(HANGS), unled(), slow(HANGS)]) as members:
        assert not (await _refused(members))[0]
        await _refused(members)
        assert (await _refused(members))[1] < PATIENCE_S
