"""Following an etcd that tells too much, too little, or no more; and what a trusting client loses.

The etcd here is a script: what its range holds, and what each stream says before it breaks.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from aetcd.rpc.kv_pb2 import Event, KeyValue
from aetcd.rpc.rpc_pb2 import RangeResponse, ResponseHeader, WatchResponse
from grpc.aio import EOF

from node import kv_etcd_messages, kv_etcd_watch
from node.kv import Changes, Compacted, Range, prefix
from node.kv_etcd_landmarks import Landmarks
from node.kv_etcd_members import Members
from node.kv_etcd_messages import Keyspace, Message
from node.kv_etcd_watch import Watch

Patch = pytest.MonkeyPatch

AT: Final = b"/fra/"
WITHIN: Final = prefix(b"T/")
DEADLINE_S: Final = 20.0


def _header(revision: int) -> Message:
    return ResponseHeader(revision=revision)


def _written(revision: int) -> Message:
    """The key that was made at a revision."""
    return KeyValue(
        key=AT + b"T/%d" % revision, create_revision=revision, mod_revision=revision, version=1
    )


def created(revision: int) -> Message:
    """The stream stands; the store is at a revision."""
    return WatchResponse(header=_header(revision), created=True)


def events(*revisions: int) -> Message:
    """Keys were written."""
    told = [Event(type=Event.PUT, kv=_written(revision)) for revision in revisions]
    return WatchResponse(header=_header(max(revisions)), events=told)


def progress(revision: int) -> Message:
    """All was told up to a revision: of etcd before 3.4.25 that is not true."""
    return WatchResponse(header=_header(revision))


def compacted(revision: int) -> Message:
    """What was asked for is forgotten."""
    return WatchResponse(header=_header(revision), canceled=True, compact_revision=revision)


class _Call:
    """A stream, as gRPC has it."""

    def __init__(self, read: Callable[[], Any], write: Callable[[object], Any]) -> None:
        self.read = read
        self.write = write

    def cancel(self) -> None:
        """It has said all that it says."""


class Script:
    """An etcd whose range was written at `revisions`, and whose streams say just this."""

    def __init__(self, revisions: Iterable[int], *streams: Sequence[Message]) -> None:
        self.reads = self
        self.endpoint = "script:1"
        self.watch = SimpleNamespace(Watch=self._stream)
        self._revisions = tuple(revisions)
        self._streams = iter(streams)

    async def ask(self, _method: object, request: Any) -> Message:
        """Answer about the range."""
        newest = max(self._revisions)
        kvs = [_written(one) for one in self._revisions if one >= request.min_mod_revision]
        if request.count_only:
            return RangeResponse(header=_header(newest), count=len(kvs))
        return RangeResponse(header=_header(newest), kvs=kvs)

    async def metadata(self) -> tuple[()]:
        """Nothing goes with requests."""
        return ()

    async def ready(self, _until: float) -> Script:
        """The only line there is."""
        return self

    def leave(self, line: Script) -> None:
        """Nobody else serves."""

    def _stream(self, *, metadata: object) -> Any:
        """The next stream; the last one ends, again and again."""
        said = iter([*next(self._streams, ()), EOF])

        async def read() -> Message:
            await asyncio.sleep(0)
            return next(said, EOF)

        async def write(_request: object) -> None:
            await asyncio.sleep(0)

        return _Call(read, write)


async def follow(script: Script, after: int, until: int) -> set[bytes]:
    """What is told from after a revision until one that was reached.

    Raises:
        Compacted: The watch does not go on from there.
    """
    told: set[bytes] = set()
    watch = Watch(cast("Members", script), Keyspace(AT), Landmarks())
    stream = cast("AsyncGenerator[Changes, None]", watch.changes(WITHIN, after))
    async with asyncio.timeout(DEADLINE_S), aclosing(stream):
        async for changes in stream:
            told.update(entry.key for entry in changes.entries)
            if changes.revision >= until:
                return told
    raise AssertionError("the stream has an end")


async def check_progress() -> None:
    """What a progress notification passed over is told by the next stream."""
    script = Script((5, 6, 7), [created(5), progress(7)], [created(7), events(6, 7)])
    assert await follow(script, 5, 7) == {b"T/6", b"T/7"}


async def check_compaction() -> None:
    """Where what was asked for is forgotten, all is listed: nothing goes on behind the gap."""
    script = Script(range(3, 8), [compacted(6)], [created(7), events(7)])
    with pytest.raises(Compacted):
        await follow(script, 3, 7)


@pytest.fixture
def _many(monkeypatch: Patch) -> None:
    """Any range has too many keys to be searched: all depends on what the streams say."""
    monkeypatch.setattr(kv_etcd_watch, "FEW", 0)


@pytest.mark.usefixtures("_many")
async def test_progress_moves_no_cursor() -> None:
    """A revision that is only said to be reached passes over nothing that is told later."""
    await check_progress()


@pytest.mark.usefixtures("_many")
async def test_a_compaction_is_no_place_to_go_on() -> None:
    """A follower of more keys than are searched is told that it lost revisions."""
    await check_compaction()


async def test_few_keys_are_looked_at_whatever_was_compacted() -> None:
    """A range of few keys needs no history: what is newer than the cursor is in it."""
    script = Script(range(3, 8), [compacted(6)])
    assert await follow(script, 3, 7) == {b"T/4", b"T/5", b"T/6", b"T/7"}


# --- many keys, of which the streams tell nothing


class _Silent(Script):
    """An etcd of many keys in which the streams say nothing, and which asks itself `meanwhile`."""

    def __init__(self, count: int, meanwhile: Callable[[_Silent], None]) -> None:
        super().__init__([count])
        self.written = {AT + b"T/%06d" % n: n for n in range(1, count + 1)}
        self.asked: list[Any] = []
        self._meanwhile = meanwhile

    async def ask(self, _method: object, request: Any) -> Message:
        """Answer as etcd does, of what stands at this moment."""
        newest = max(self.written.values())
        keys = [k for k in sorted(self.written) if request.key <= k < request.range_end]
        kvs = [KeyValue(key=key, mod_revision=self.written[key]) for key in keys]
        kvs = [kv for kv in kvs if kv.mod_revision >= request.min_mod_revision]
        limit = 0 if request.count_only else request.limit or len(kvs)
        if not request.count_only:
            self.asked.append(request)
            self._meanwhile(self)
        more = not request.count_only and len(kvs) > limit
        return RangeResponse(header=_header(newest), kvs=kvs[:limit], more=more, count=len(keys))

    def _stream(self, *, metadata: object) -> Any:
        said = iter([created(1)])

        async def read() -> Message:
            for message in said:
                return message
            return await asyncio.Event().wait()

        async def write(_request: object) -> None:
            await asyncio.sleep(0)

        return _Call(read, write)


@pytest.fixture
def _shortly(monkeypatch: Patch) -> None:
    """Silence is noticed at once, pages are short."""
    monkeypatch.setattr(kv_etcd_watch, "SHORT_S", 0.01)
    monkeypatch.setattr(kv_etcd_messages, "PAGE", 10)


@pytest.mark.usefixtures("_many", "_shortly")
async def test_many_keys_are_gone_through_by_parts_that_are_known() -> None:
    """The first time by pages; then by parts that are answered with nothing."""
    script = _Silent(1000, lambda _: None)
    watch = Watch(cast("Members", script), Keyspace(AT), Landmarks(far=100))
    asked = []
    for _ in range(2):
        script.asked.clear()
        script.written[AT + b"other"] = 1001
        stream = cast("AsyncGenerator[Changes, None]", watch.changes(WITHIN, 1000))
        async with aclosing(stream):
            assert await anext(stream) == Changes((), 1001)
        asked.append(len(script.asked))
    assert asked[0] == 100
    assert asked[1] < 40


@pytest.mark.usefixtures("_many", "_shortly")
@pytest.mark.parametrize("far", [10, 10_000], ids=["parts", "pages"])
async def test_what_is_written_twice_is_not_passed_over(far: int) -> None:
    """A key of which the last write is newer than the answer may have been written before it."""

    def again(script: _Silent) -> None:
        if len(script.asked) == 1:
            script.written[AT + b"T/000090"] += 100

    script = _Silent(100, lambda _: None)
    watch = Watch(cast("Members", script), Keyspace(AT), Landmarks(far))
    await watch._proven(WITHIN, 100)
    script.written[AT + b"T/000090"] = 101
    script.written[AT + b"other"] = 102
    script.asked.clear()
    script._meanwhile = again
    assert await watch._proven(WITHIN, 100) == 100


# --- bugs that clients of etcd have had


def progress_trusted(patch: Patch) -> None:
    """A progress notification moves the cursor."""
    whole_next, whole_told, heard = Watch._next, Keyspace.told, [0]

    async def hears(self: Watch, call: Message, within_s: float) -> Message | None:
        response = await whole_next(self, call, within_s)
        heard[0] = 0 if response is None or response.events else response.header.revision
        return response

    def told(self: Keyspace, events: Iterable[Message], after: int) -> Iterator[Changes]:
        yield from whole_told(self, events, after)
        if heard[0] > after:
            yield Changes((), heard[0])

    patch.setattr(Watch, "_next", hears)
    patch.setattr(Keyspace, "told", told)


def compaction_passed_over(patch: Patch) -> None:
    """A compacted watch goes on just after the compaction's revision."""
    whole = Watch._told

    async def told(
        self: Watch, within: Range, after: int, silence_s: float
    ) -> AsyncGenerator[Changes, None]:
        try:
            async for batch in whole(self, within, after, silence_s):
                yield batch
        except Compacted:
            yield Changes((), 6)

    patch.setattr(Watch, "_told", told)


@pytest.mark.usefixtures("_many")
@pytest.mark.parametrize(
    ("mutant", "check"),
    [(progress_trusted, check_progress), (compaction_passed_over, check_compaction)],
    ids=["progress trusted", "compaction passed over"],
)
async def test_the_mutant_is_caught(
    mutant: Callable[[Patch], None], check: Callable[[], Any], monkeypatch: Patch
) -> None:
    """Each of these loses what was written, and the tests above would say so."""
    mutant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check()
