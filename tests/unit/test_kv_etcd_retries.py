"""What is sent to the members of an etcd, and how often: each is a script of what it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Final, TypeAlias

import pytest
from aetcd.rpc.rpc_pb2 import RangeResponse, ResponseHeader, ResponseOp, TxnResponse
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc.aio import Metadata as Trailers

from node import kv_etcd, kv_etcd_lines, kv_etcd_members
from node.errors import MetadataUnavailable
from node.kv import Absent, Ok, Outcome, Put, Snapshot, Unknown, only
from node.kv_etcd import Access, EtcdKV
from node.kv_etcd_lines import Ring
from node.kv_etcd_members import Members
from node.kv_etcd_messages import Message

Patch = pytest.MonkeyPatch

KEY: Final = b"T/1"
LED: Final = ("hasleader", "true")
NO_LEADER: Final = (StatusCode.UNAVAILABLE, "etcdserver: no leader")
# After each of these nobody can say whether a write was applied.
LOST: Final = (
    (StatusCode.UNAVAILABLE, "Socket closed"),
    (StatusCode.UNAVAILABLE, "etcdserver: leader changed"),
    (StatusCode.UNAVAILABLE, "etcdserver: request timed out"),
    (StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
)

Error: TypeAlias = tuple[StatusCode, str]


@dataclass(frozen=True, slots=True)
class Sent:
    """What a member was sent."""

    endpoint: str
    message: Message
    metadata: Sequence[tuple[str, str]]


Script: TypeAlias = Callable[[Sent], Error | None]
"""How a member takes what it is sent; None: it does it."""


def failing(*errors: Error) -> Script:
    """These, one after the other; then all goes well."""
    left = iter(errors)
    return lambda _: next(left, None)


class Etcd:
    """Two members that follow a script; `sent` is what came to them."""

    def __init__(self, patch: Patch, script: Script) -> None:
        self.sent: list[Sent] = []
        self._script = script
        patch.setattr(kv_etcd_lines, "Line", self._line)
        self.kv = EtcdKV(Access(("one:1", "two:1")), b"/fra/")

    @property
    def asked(self) -> list[str]:
        """Who was sent something, in order."""
        return [one.endpoint for one in self.sent]

    async def write(self) -> Outcome:
        """Make a key."""
        return await self.kv.txn([Absent(KEY)], [Put(KEY, b"")])

    async def read(self, *, may_be_stale: bool = False) -> Snapshot:
        """Look for it."""
        return await self.kv.read([only(KEY)], may_be_stale=may_be_stale)

    def _line(self, endpoint: str, _credentials: object) -> Any:
        async def answer(message: Message, *, timeout: float, metadata: Any) -> Message:
            assert timeout > 0
            sent = Sent(endpoint, message, metadata)
            self.sent.append(sent)
            if error := self._script(sent):
                code, details = error
                raise AioRpcError(code, Trailers(), Trailers(), details)
            empty = ResponseOp(response_range=RangeResponse())
            header = ResponseHeader(revision=7)
            return TxnResponse(header=header, succeeded=True, responses=[empty])

        kv = SimpleNamespace(Txn=answer, Range=answer)
        return SimpleNamespace(endpoint=endpoint, is_ready=True, is_silent=False, kv=kv)


async def check_sent_once(patch: Patch, error: Error) -> None:
    """A write of which nobody can say is sent once, and the next one goes to the other member."""
    etcd = Etcd(patch, failing(error))
    assert isinstance(await etcd.write(), Unknown)
    assert len(etcd.sent) == 1
    assert await etcd.write() == Ok(7)
    assert sorted(etcd.asked) == ["one:1", "two:1"]


@pytest.mark.parametrize("error", LOST, ids=lambda error: error[1])
async def test_a_write_that_may_have_been_done_is_sent_once(
    error: Error, monkeypatch: Patch
) -> None:
    """I5: its outcome is Unknown; whoever sent it finds out, and does not send it again blindly."""
    await check_sent_once(monkeypatch, error)


async def test_a_full_etcd_is_not_told_again(monkeypatch: Patch) -> None:
    """No other member has more room, and even this one may have applied it."""
    full = (StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    etcd = Etcd(monkeypatch, failing(full))
    assert isinstance(await etcd.write(), Unknown)
    assert len(etcd.sent) == 1


async def test_a_write_that_was_not_done_goes_to_another_member(monkeypatch: Patch) -> None:
    """A member without a leader says so before it does anything."""
    etcd = Etcd(monkeypatch, failing(NO_LEADER))
    assert await etcd.write() == Ok(7)
    assert sorted(etcd.asked) == ["one:1", "two:1"]


async def test_who_has_no_user_outlives_a_change_of_users(monkeypatch: Patch) -> None:
    """A client that is known by its certificate has no token to renew: it asks again."""
    old = (StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
    etcd = Etcd(monkeypatch, failing(old))
    assert (await etcd.read()).revision == 7
    etcd = Etcd(monkeypatch, failing(old))
    assert await etcd.write() == Ok(7)
    monkeypatch.setattr(kv_etcd_members, "READ_S", 0.2)
    never = Etcd(monkeypatch, lambda _: (StatusCode.UNAUTHENTICATED, "a proxy says 401"))
    with pytest.raises(MetadataUnavailable):
        await never.read()


async def test_a_bug_is_told_in_its_own_words(monkeypatch: Patch) -> None:
    """Whoever asks has to know it for one, though several members are asked beside each other."""

    def bug(_: Sent) -> Error | None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Etcd(monkeypatch, bug).read()


@pytest.mark.parametrize("error", [*LOST, NO_LEADER], ids=lambda error: error[1])
async def test_a_read_goes_from_member_to_member(error: Error, monkeypatch: Patch) -> None:
    """Whatever went wrong: what is only read may be asked twice."""
    etcd = Etcd(monkeypatch, failing(error))
    assert (await etcd.read()).revision == 7
    assert sorted(etcd.asked) == ["one:1", "two:1"]


async def test_who_has_no_leader_has_to_say_so(monkeypatch: Patch) -> None:
    """Reads and writes ask for it: a member would else wait for a leader, and let them wait."""
    etcd = Etcd(monkeypatch, failing())
    await etcd.read()
    await etcd.read(may_be_stale=True)
    await etcd.write()
    assert [LED in one.metadata for one in etcd.sent] == [True] * 3
    assert not any(one.message.success[0].request_range.serializable for one in etcd.sent[:2])


async def test_only_a_read_that_may_be_stale_does_without_a_leader(monkeypatch: Patch) -> None:
    """It is asked for of one first; then any member's own state will do, and says that it is."""
    monkeypatch.setattr(kv_etcd, "STALE_AFTER_S", 0.1)
    monkeypatch.setattr(kv_etcd, "READ_S", 0.1)

    def unled(sent: Sent) -> Error | None:
        return NO_LEADER if LED in sent.metadata else None

    etcd = Etcd(monkeypatch, unled)
    snapshot = await etcd.read(may_be_stale=True)
    assert snapshot.stale
    *led, last = etcd.sent
    assert led
    assert all(LED in one.metadata for one in led)
    assert last.metadata == ()
    assert last.message.success[0].request_range.serializable
    with pytest.raises(MetadataUnavailable):
        await etcd.read()
    assert all(LED in one.metadata for one in etcd.sent[len(led) + 1 :])


# --- a bug that clients of etcd have had (jepsen.io/analyses/jetcd-0.8.2)


@pytest.mark.parametrize("error", LOST, ids=lambda error: error[1])
async def test_a_blind_retry_is_caught(error: Error, monkeypatch: Patch) -> None:
    """A client that sends such a write to the next member is found out by the test above."""
    do: Callable[..., Awaitable[Message]] = Members._do

    async def blindly(self: Members, ring: Ring, call: Any) -> Message:
        return await do(self, ring, replace(call, twice=True))

    monkeypatch.setattr(Members, "_do", blindly)
    with pytest.raises(AssertionError):
        await check_sent_once(monkeypatch, error)
