"""Ask the members of an etcd, and tell them: what is sent again when one fails, and what is not.

A request is sent only on a line that is connected, so where there is none it is certain that
nothing was sent.  `ask` is for what may be done twice: whenever a share of its time has passed it
is sent to the next member too, and the first answer counts; so one that hangs does not take all the
time, and one that is slow has all of it.  `tell` is for what may not: it is sent again only where
etcd says that it was not done (`judge` in node/kv_etcd_messages.py); whatever else goes wrong with
it is `Lost`.

An election is waited for.  Where in all that time somebody said to have no leader and nobody had
one, or nobody could be reached, the next ones to ask are not kept waiting as long: for some seconds
each member is asked once or twice.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from operator import attrgetter
from typing import Final, TypeAlias, assert_never

from aetcd.rpc.rpc_pb2 import AuthenticateRequest
from grpc.aio import AioRpcError

from node.errors import MetadataUnavailable
from node.kv_etcd_lines import Access, Line, Metadata, Method, Ring
from node.kv_etcd_messages import Message, Verdict, is_too_large, judge

READ_S: Final = 2.0
WRITE_S: Final = 5.0
# Calls end by themselves before that.
_GRACE_S: Final = WRITE_S + 1
# So long is it remembered that nobody has a leader, and so little is one waited for meanwhile.
UNLED_S: Final = 10.0
BRIEF_S: Final = 0.05
# All members have failed: some time for them to elect a leader.
_ROUND_S: Final = 0.1

# A member that has lost its leader says so at once, instead of waiting for one.
_LED: Final[Metadata] = (("hasleader", "true"),)
_AUTHENTICATE: Final = attrgetter("auth.Authenticate")


class Lost(Exception):
    """Nobody can say whether it was done, or will be; `final`: no member would do better."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.final = final


class Gone(Exception):
    """It was certainly not done: there is no such lease, or the revision is compacted."""


class _Turned(Exception):
    """It was certainly not done, and another member may do it; `unled`: this one has no leader."""

    def __init__(self, reason: str, *, unled: bool) -> None:
        super().__init__(reason)
        self.unled = unled


class _TokenOld(Exception):
    """It was certainly not done, and may be with a new token."""


# What came of an attempt; it is raised by who asked, not by the task that made it.
_Outcome: TypeAlias = Message | Exception


@dataclass(frozen=True, slots=True)
class _Call:
    method: Method
    message: Message
    within_s: float
    patience_s: float
    twice: bool = True
    led: bool = True
    signed: bool = True


class _Race:
    """The attempts of one call: which are under way, what was heard, and how long to go on.

    `until`: the time of the call; `begin_until`: when the last attempt may begin, as things stand
    and if none is under way.
    """

    def __init__(self, call: _Call, now: float, *, brief: bool) -> None:
        self.call = call
        self.until = now + call.within_s
        self.search = min(self.until, now + (BRIEF_S if brief else call.patience_s))
        self.begin_until = self.search
        self.under_way: dict[asyncio.Future[_Outcome], Line] = {}
        self.reason = "no answer in time"
        self.failed = 0
        # Somebody said to have no leader; somebody said nothing.
        self.unled = self.silent = False
        self._brief = brief

    @property
    def ends_at(self) -> float:
        """When whatever is still under way is not waited for any more."""
        return self.search if self._brief and self.unled else self.until

    def is_over(self, now: float) -> bool:
        """Whether nothing is to be waited for any more."""
        return now >= (self.ends_at if self.under_way else self.begin_until)

    def may_begin(self, now: float) -> bool:
        """Whether another attempt may be made; beside one that is waited for anyway, if at all."""
        return now < (self.until if self.under_way else self.begin_until)

    async def wait(self, share_s: float, now: float) -> set[asyncio.Future[_Outcome]]:
        """The attempts that have ended; none if none does while another should be made."""
        done = {one for one in self.under_way if one.done()}
        if done or not self.under_way:
            return done
        wait_s, first = max(0.0, min(share_s, self.ends_at - now)), asyncio.FIRST_COMPLETED
        return (await asyncio.wait(self.under_way, timeout=wait_s, return_when=first))[0]

    def note(self, error: _Turned | _TokenOld | Lost) -> None:
        """An attempt failed."""
        self.reason = str(error)
        self.failed += 1
        unled = isinstance(error, _Turned) and error.unled
        self.unled |= unled
        self.silent |= isinstance(error, Lost)
        # An election that takes longer is not waited for; all else may be better at once.
        self.begin_until = self.search if unled else self.until


class Members:
    """All members of an etcd: a ring of lines for what is read, and one for what is written."""

    def __init__(self, access: Access) -> None:
        self.reads = Ring(access)
        self._writes = Ring(access)
        self._user = access.user
        self._password = access.password
        self._token: str | None = None
        self._renewing = asyncio.Lock()
        self._unled_until = -math.inf

    async def ask(
        self,
        method: Method,
        message: Message,
        *,
        within_s: float = READ_S,
        patience_s: float = WRITE_S,
        led: bool = True,
    ) -> Message:
        """Have a member do what may be done twice; `led`: one that has a leader.

        Such a one is looked for no longer than `patience_s`, while they say to have none.

        Raises:
            MetadataUnavailable: None did it in time.
            Gone: What it names is.
        """
        try:
            return await self._do(self.reads, _Call(method, message, within_s, patience_s, led=led))
        except Lost as lost:
            raise MetadataUnavailable(str(lost)) from lost

    async def tell(self, method: Method, message: Message) -> Message:
        """Have a member do it, once.

        Raises:
            MetadataUnavailable: It was certainly not done, and will not be.
            Gone: The same, as what it names is.
            Lost: It may have been done, or may yet be.
            ValueError: It is larger than etcd takes.
        """
        return await self._do(self._writes, _Call(method, message, WRITE_S, WRITE_S, twice=False))

    async def metadata(self, *, led: bool = True) -> Metadata:
        """What goes with every request.

        Raises:
            MetadataUnavailable: There is no token, and none is to be had.
        """
        metadata = _LED if led else ()
        if self._user is None:
            return metadata
        if self._token is None:
            await self._renew(None)
        return (*metadata, ("token", self._token or ""))

    async def close(self) -> None:
        """Let calls under way end, and hang up."""
        async with asyncio.TaskGroup() as group:
            for ring in (self.reads, self._writes):
                group.create_task(ring.close(_GRACE_S))

    async def _do(self, ring: Ring, call: _Call) -> Message:
        now = asyncio.get_running_loop().time()
        race = _Race(call, now, brief=call.led and now < self._unled_until)
        try:
            async with asyncio.TaskGroup() as group:
                try:
                    outcome = await self._run(ring, race, group)
                finally:
                    for task in race.under_way:
                        task.cancel()
        except BaseExceptionGroup as several:  # a bug, in its own words
            raise several.exceptions[0] from None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _run(self, ring: Ring, race: _Race, group: asyncio.TaskGroup) -> _Outcome:
        """The first answer, or why there is none."""
        clock = asyncio.get_running_loop().time
        while not race.is_over(clock()):
            begun: Line | None = None
            if race.may_begin(clock()):
                try:
                    begun = await self._begin(ring, race, group)
                except MetadataUnavailable as error:
                    return error
            done = await race.wait(race.call.within_s / len(ring.lines), clock())
            if begun is not None and not done:
                ring.leave(begun)
                begun.is_silent = True
                race.begin_until = race.until
            for told in done:
                outcome = await self._hear(ring, race, told)
                if outcome is not None:
                    return outcome
        if race.unled:
            self._note_unled(race.call)
        sure = race.unled and not race.silent and not race.under_way
        return MetadataUnavailable(race.reason, unled=sure)

    async def _hear(
        self, ring: Ring, race: _Race, told: asyncio.Future[_Outcome]
    ) -> _Outcome | None:
        """What an attempt has come to; None if that is no answer and others may give one."""
        call, line, outcome = race.call, race.under_way.pop(told), told.result()
        line.is_silent = isinstance(outcome, Lost)
        if not isinstance(outcome, _Turned | _TokenOld | Lost):
            if call.led and not isinstance(outcome, Exception):
                self._unled_until = -math.inf
            return outcome
        if not isinstance(outcome, _TokenOld):
            ring.leave(line)
        if isinstance(outcome, Lost) and (outcome.final or not call.twice):
            return outcome
        race.note(outcome)
        if race.failed % len(ring.lines) == 0:
            await asyncio.sleep(_ROUND_S)
        return None

    async def _begin(self, ring: Ring, race: _Race, group: asyncio.TaskGroup) -> Line | None:
        """Another attempt, at the member that serves; None: beside those under way there is none.

        Raises:
            MetadataUnavailable: No member can be reached, or there is no token.
        """
        call = race.call
        metadata = await self.metadata(led=call.led) if call.signed else ()
        if race.under_way and not any(line.is_ready for line in ring.lines):
            return None
        try:
            line = await ring.ready(race.begin_until)
        except MetadataUnavailable:
            self._note_unled(call)
            raise
        attempt = self._attempt(line, call, race.until, metadata)
        if call.twice and len(ring.lines) > 1:
            race.under_way[group.create_task(attempt)] = line
        else:
            # There is nothing to be done meanwhile: a task of its own costs a fifth of a read.
            told = asyncio.get_running_loop().create_future()
            told.set_result(await attempt)
            race.under_way[told] = line
        return line

    async def _attempt(self, line: Line, call: _Call, until: float, metadata: Metadata) -> _Outcome:
        """What came of it; nothing is raised but a bug."""
        left_s = max(0.0, until - asyncio.get_running_loop().time())
        try:
            try:
                return await _send(line, call, left_s, metadata)
            except _TokenOld as old:
                if self._user is not None:  # else who is asked has to get over it by itself
                    await self._renew(dict(metadata).get("token"))
                return old
        except (_Turned, Lost, Gone, MetadataUnavailable, ValueError) as error:
            return error

    def _note_unled(self, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        if call.led and loop.time() >= self._unled_until:
            self._unled_until = loop.time() + UNLED_S

    async def _renew(self, stale: str | None) -> None:
        """Have a token that is not this one; whoever comes meanwhile waits for the same."""
        async with self._renewing:
            if self._token != stale:
                return
            request = AuthenticateRequest(name=self._user or "", password=self._password or "")
            call = _Call(_AUTHENTICATE, request, READ_S, READ_S, signed=False)
            try:
                self._token = (await self._do(self.reads, call)).token
            except Lost as lost:
                raise MetadataUnavailable(str(lost)) from lost


async def _send(line: Line, call: _Call, timeout_s: float, metadata: Metadata) -> Message:
    try:
        return await call.method(line)(call.message, timeout=timeout_s, metadata=metadata)
    except EOFError:
        raise Lost(f"etcd at {line.endpoint}: no answer") from None
    except AioRpcError as err:
        error = err
    code, details = error.code(), error.details() or ""
    reason = f"etcd at {line.endpoint}: {details or code.name}"
    verdict = judge(code, details)
    match verdict:
        case Verdict.UNAUTHENTICATED if call.signed:
            raise _TokenOld(reason) from error
        case Verdict.REFUSED if is_too_large(code, details):
            raise ValueError(reason) from error
        case Verdict.REFUSED | Verdict.UNAUTHENTICATED:
            raise MetadataUnavailable(reason) from error
        case Verdict.UNLED | Verdict.ELSEWHERE:
            raise _Turned(reason, unled=verdict is Verdict.UNLED) from error
        case Verdict.GONE:
            raise Gone(reason) from error
        case Verdict.LOST | Verdict.FULL:
            raise Lost(reason, final=verdict is Verdict.FULL) from error
        case _:
            assert_never(verdict)
