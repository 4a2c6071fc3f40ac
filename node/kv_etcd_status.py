"""How the members of an etcd are, for who operates it."""

from __future__ import annotations

import asyncio
from typing import Final

from aetcd.rpc.rpc_pb2 import StatusRequest
from grpc.aio import AioRpcError

from node.kv import Member
from node.kv_etcd_lines import Line
from node.kv_etcd_members import READ_S, Members

_FULL: Final = "alarm:NOSPACE"
_CORRUPT: Final = "alarm:CORRUPT"


async def look(members: Members) -> tuple[Member, ...]:
    """Ask each member how it is; in the order of their addresses."""
    lines = sorted(members.reads.lines, key=lambda line: line.endpoint)
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_member(line)) for line in lines]
    return tuple(task.result() for task in asked)


async def _member(line: Line) -> Member:
    try:
        answer = await line.maintenance.Status(StatusRequest(), timeout=READ_S)
    except AioRpcError as error:
        reason = error.details() or error.code().name
        return Member(line.endpoint, (reason,), is_up=False, has_leader=False)
    return Member(
        endpoint=line.endpoint,
        problems=tuple(text.strip() for text in answer.errors),
        version=answer.version,
        has_leader=answer.leader != 0,
        is_leader=answer.leader == answer.header.member_id,
        is_full=any(_FULL in text for text in answer.errors),
        is_corrupt=any(_CORRUPT in text for text in answer.errors),
        size_bytes=answer.dbSize,
        used_bytes=answer.dbSizeInUse,
    )
