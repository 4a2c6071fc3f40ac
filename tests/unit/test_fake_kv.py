"""What simulations rely on in the KV in memory, beyond the port."""

from __future__ import annotations

import pytest

from node import keys
from node.errors import MetadataUnavailable
from node.kv import Absent, Delete, DeleteRange, Failed, Ok, Op, Put, Unknown, prefix
from node.reference import Repository, Tag
from tests.fake_kv import Crash, Fault, MemoryKV, RegisterRemoved, once
from tests.kv_calls import commit, following, get, next_entries

TAG_KEY = keys.tag(Repository("app"), Tag("v1"))
OPS: list[Op] = [Put(b"a", b"1"), Put(b"o/op", b"")]


class Killed(BaseException):
    """The process of the caller ends here."""


@pytest.mark.parametrize(
    ("fault", "applied"), [(Fault.LOST_REPLY, True), (Fault.LOST_REQUEST, False)]
)
async def test_an_unknown_outcome_may_be_either(fault: Fault, applied: bool) -> None:
    """The caller hears the same, whether it was applied or not."""
    kv = MemoryKV(faults=once(fault))
    assert isinstance(await kv.txn([], OPS), Unknown)
    assert (await get(kv, b"a") is not None) is applied
    assert isinstance(await kv.txn([], OPS), Ok)


async def test_a_ghost_lands_when_the_test_says_so() -> None:
    """It is run under its own guards as they stand then, once."""
    kv = MemoryKV(faults=once(Fault.GHOST, Fault.GHOST))
    for _ in range(2):
        assert isinstance(await kv.txn([Absent(b"o/op")], OPS), Unknown)
    assert kv.entries() == {}
    assert isinstance(kv.land(), Ok)
    await commit(kv, Put(b"a", b"later"))
    assert isinstance(kv.land(), Failed)
    assert kv.ghosts == []
    assert kv.entries() == {b"a": b"later", b"o/op": b""}


@pytest.mark.parametrize("applied", [True, False])
async def test_a_caller_may_die_on_either_side(applied: bool) -> None:
    """A crash before leaves nothing, one after leaves all."""
    kv = MemoryKV(faults=once(Crash(Killed(), applied=applied)))
    with pytest.raises(Killed):
        await kv.txn([], OPS)
    assert bool(kv.entries()) is applied


@pytest.mark.parametrize(
    "op", [Delete(TAG_KEY), DeleteRange(b"T/", b"T0"), DeleteRange(b"", b"\xff")]
)
async def test_no_register_is_removed(op: Op) -> None:
    """A delete that forgets what it deleted is found by every suite that runs over this KV."""
    kv = MemoryKV()
    await commit(kv, Put(TAG_KEY, b""), Put(b"l/other", b""))
    with pytest.raises(RegisterRemoved):
        await kv.txn([], [op])
    assert len(kv.entries()) == 2
    await commit(kv, Delete(b"l/other"))


async def test_a_store_that_is_down_refuses_everything() -> None:
    """Nothing is written while it is down, and followers hear of it; afterwards it goes on."""
    kv = MemoryKV(faults=once(Fault.REFUSED))
    with pytest.raises(MetadataUnavailable):
        await kv.txn([], OPS)
    kv.down = True
    for call in (kv.txn([], OPS), kv.read([]), kv.grant(1)):
        with pytest.raises(MetadataUnavailable):
            await call
    with pytest.raises(MetadataUnavailable):
        async with following(kv, prefix(b"a"), 1) as stream:
            await next_entries(stream)
    kv.down = False
    assert kv.entries() == {}
    assert isinstance(await kv.txn([], OPS), Ok)


async def test_a_copy_goes_its_own_way_and_can_be_restored() -> None:
    """What is written after the copy is not in it, and is gone after restoring it."""
    kv = MemoryKV()
    await commit(kv, *OPS)
    saved = kv.copy()
    lease = await kv.grant(5)
    await commit(kv, Put(b"b", b"", lease))
    await commit(saved, Put(b"c", b""))
    assert set(kv.entries()) == {b"a", b"b", b"o/op"}
    kv.restore(saved)
    assert set(kv.entries()) == {b"a", b"c", b"o/op"}
    assert not await kv.keep_alive(lease)
    await commit(kv, Put(b"d", b""))
    assert b"d" not in saved.entries()
