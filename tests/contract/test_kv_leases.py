"""What every KV promises of leases; the times suit etcd, which grants 2 s at the least."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

from node.kv import Absent, Created, Failed, Ok, Put, prefix
from tests.contract.conftest import Stand
from tests.kv_calls import commit, get, keys, must_get
from tests.waiting import eventually

TTL_S: Final = 5.0
Condition: TypeAlias = Callable[[], Awaitable[bool] | bool]


async def test_keys_go_with_their_lease(stand: Stand) -> None:
    """Some time after its end a lease's keys are gone, though nobody writes; others stay."""
    kv = stand.kv
    lease = await kv.grant(TTL_S)
    await commit(kv, Put(b"L/a", b"", lease), Put(b"L/b", b"", lease), Put(b"L/c", b""))
    await stand.pass_time(TTL_S * 0.6)
    assert await keys(stand.another, prefix(b"L/")) == [b"L/a", b"L/b", b"L/c"]
    await stand.pass_time(TTL_S)

    async def only_c() -> bool:
        return await keys(stand.another, prefix(b"L/")) == [b"L/c"]

    gone: Condition = only_c
    await eventually(gone, 60, "the lease's keys are gone")
    assert not await kv.keep_alive(lease)


async def test_an_expired_key_can_be_taken_over(stand: Stand) -> None:
    """After the lease's time another's campaign succeeds, and the former's guard fails."""
    lease = await stand.kv.grant(TTL_S)
    token = await commit(stand.kv, Put(b"L/x", b"first", lease))
    await stand.pass_time(TTL_S + 2)
    theirs = await stand.another.grant(TTL_S)

    async def taken() -> bool:
        put = Put(b"L/x", b"second", theirs)
        return isinstance(await stand.another.txn([Absent(b"L/x")], [put]), Ok)

    won: Condition = taken
    await eventually(won, 60, "the key can be made anew")
    fenced = await stand.kv.txn([Created(b"L/x", token)], [Put(b"work", b"")])
    assert isinstance(fenced, Failed)
    assert (await must_get(stand.kv, b"L/x")).value == b"second"


async def test_a_lease_that_is_kept_alive_stays(stand: Stand) -> None:
    """Each keep-alive gives the whole time again."""
    lease = await stand.kv.grant(TTL_S)
    await commit(stand.kv, Put(b"L/a", b"", lease))
    for _ in range(3):
        await stand.pass_time(TTL_S * 0.6)
        assert await stand.kv.keep_alive(lease)
    assert await get(stand.another, b"L/a") is not None


async def test_any_process_may_keep_or_end_a_lease(stand: Stand) -> None:
    """A lease belongs to the store, not to who asked for it."""
    lease = await stand.kv.grant(TTL_S)
    assert await stand.another.keep_alive(lease)
    await stand.another.revoke(lease)
    assert not await stand.kv.keep_alive(lease)


async def test_a_revoked_lease_takes_its_keys_at_once(stand: Stand) -> None:
    """When `revoke` returns the keys are gone; again is no error."""
    kv = stand.kv
    mine, other = await kv.grant(TTL_S), await kv.grant(TTL_S)
    assert mine != other
    await commit(kv, Put(b"L/a", b"", mine), Put(b"L/b", b"", other))
    await kv.revoke(mine)
    assert await keys(stand.another, prefix(b"L/")) == [b"L/b"]
    await kv.revoke(mine)
    assert await kv.keep_alive(other)


async def test_the_last_put_decides_whose_a_key_is(stand: Stand) -> None:
    """A put without lease, or with another, lets the key survive its former lease."""
    kv = stand.kv
    lease, other = await kv.grant(TTL_S), await kv.grant(TTL_S)
    await commit(kv, *(Put(b"L/%d" % number, b"", lease) for number in range(3)))
    await commit(kv, Put(b"L/1", b""), Put(b"L/2", b"", other))
    await kv.revoke(lease)
    assert await keys(kv, prefix(b"L/")) == [b"L/1", b"L/2"]
    await kv.revoke(other)
    assert await keys(kv, prefix(b"L/")) == [b"L/1"]
