"""What a peer reports of itself: what is kept, for how long it holds, what it may look like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import feed_acks
from gateway.feed_acks import Acks
from node import keys
from node.acked import applied
from node.globs import Filter
from node.records import Ack, Cursor, Parked, ParkedThere, Report
from node.reference import Repository
from node.wire import ack_codec, codec, feed_codec
from node.wire import feed_pb2 as pb
from node.wire.follow_codec import FollowRecord, Progress
from replicator.book import Parks
from replicator.reports import is_to_be_said, report
from replicator.waiting import Told
from tests.fake_kv import MemoryKV
from tests.feeds import feed, site_of, told
from tests.model import Model
from tests.waiting import eventually

DEADLINE_S = 120.0
HEAD = 1000
PARKED = ParkedThere(Repository("team/app"), 7, 3, "no room", 1_000, 2_000)
LEVEL = Told(9, {})
SAID = Report("1", 6, "life of nyc", "parked", 9, (PARKED,), 1, 5_000, 7)


@pytest.fixture(autouse=True)
def _writes_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second between writes is too long for tests."""
    monkeypatch.setattr(feed_acks, "_INTERVAL_S", 0.01)


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


def _kept(model: Model) -> Ack | None:
    value = model.kv.entries().get(keys.ack("nyc"))
    return None if value is None else codec.decode_ack(value)


@asynccontextmanager
async def _stream(
    model: Model, ours: Filter | None = None, theirs: Filter | None = None
) -> AsyncIterator[Acks]:
    """A stream of nyc's, which is over when the body ends."""
    acks = Acks(site_of(model), "nyc", ours or Filter(), theirs or Filter())
    async with asyncio.TaskGroup() as group:
        running = group.create_task(acks.run())
        yield acks
        running.cancel()


async def _says(model: Model, acks: Acks, said: Report, kept: Report | None = None) -> None:
    acks.take(said, HEAD)

    def is_kept() -> bool:
        ack = _kept(model)
        return ack is not None and ack.report == (kept or said)

    await eventually(is_kept, DEADLINE_S, "it is written down")


async def test_all_of_a_report_is_kept_with_what_it_is_about(model: Model) -> None:
    """Every field, both filters, and whether the stream is there still."""
    theirs = Filter(("team/**",), ("v*",))
    async with _stream(model, Filter(("**",)), theirs) as acks:
        await _says(model, acks, SAID)
        kept = _kept(model)
        assert kept is not None
        assert (kept.theirs, kept.ours) == (theirs, Filter(("**",)).fingerprint)
        assert kept.stream
        assert kept.ms > 0
    assert (kept := _kept(model)) is not None
    assert (kept.report, kept.stream) == (SAID, "")


async def test_what_is_applied_never_goes_back_in_one_life(model: Model) -> None:
    """A later stream may begin with less; a peer that lost all it had may not be believed on."""
    async with _stream(model) as acks:
        await _says(model, acks, SAID)
    async with _stream(model) as acks:
        less = replace(SAID, revision=2, parked=(), parked_count=0)
        await _says(model, acks, less, replace(less, revision=6))
        await _says(model, acks, replace(less, life="the next life"))


@pytest.mark.parametrize("side", ["ours", "theirs"])
async def test_other_filters_make_an_ack_void(model: Model, side: str) -> None:
    """What was not let through before has not been applied, wherever the cursor was."""
    async with _stream(model, **{side: Filter(("team/**",))}) as acks:
        await _says(model, acks, SAID)
    async with _stream(model) as acks:
        await _says(model, acks, replace(SAID, revision=2))


async def test_the_later_stream_speaks_for_the_peer(model: Model) -> None:
    """What an old one still brings is dropped; and its end is not the peer's."""
    async with _stream(model) as old:
        await _says(model, old, replace(SAID, revision=1))
        async with _stream(model) as new:
            await _says(model, new, SAID)
            before = _kept(model)
            old.take(replace(SAID, revision=8), HEAD)
            await eventually(lambda: not old._news.is_set(), DEADLINE_S, "it was looked at")
            old.take(replace(SAID, revision=9), HEAD)
            await eventually(lambda: not old._news.is_set(), DEADLINE_S, "and again")
            assert _kept(model) == before
        # It goes on speaking once the other is over, which was a deposed follower's.
        await _says(model, old, replace(SAID, revision=10))


async def test_a_report_of_nothing_new_writes_nothing(model: Model) -> None:
    """Two idle sites write nothing, however often one says the same."""
    async with _stream(model) as acks:
        await _says(model, acks, SAID)
        before = (await model.kv.read([])).revision
        for _ in range(3):
            acks.take(SAID, HEAD)
            await eventually(lambda: not acks._news.is_set(), DEADLINE_S, "it was looked at")
        assert (await model.kv.read([])).revision == before


async def test_the_end_of_a_stream_is_written_down(model: Model) -> None:
    """Also of one that the peer just drops: from then on it was not heard."""
    async with feed(model) as client:
        async with told(client, Cursor("", 0)) as (stream, batches):
            await anext(batches)
            await stream.ack(Report("1", 0, "life of nyc", "scanning"))

            def begun() -> bool:
                return (ack := _kept(model)) is not None and ack.report.state == "scanning"

            await eventually(begun, DEADLINE_S, "the ack is kept")

        def over() -> bool:
            return (ack := _kept(model)) is not None and not ack.stream

        await eventually(over, DEADLINE_S, "its end is kept")


# --- on the wire


def test_a_report_arrives_as_it_was_sent() -> None:
    """Every field survives the wire."""
    sent = ack_codec.ack_message(SAID).SerializeToString()
    assert feed_codec.read_changes_request(pb.ChangesRequest.FromString(sent)) == SAID


def test_what_is_shown_of_a_report_is_printable_and_short() -> None:
    """A peer can send a terminal no escapes, and fill no KV."""
    hostile = replace(PARKED, reason="\x1b[31mred\n" + "x" * 10_000)
    many = replace(SAID, state="\x07" + "s" * 999, parked=(hostile,) * 500, parked_count=500)
    read = ack_codec.read_ack(ack_codec.ack_message(many).ack)
    assert (len(read.parked), read.parked_count) == (ack_codec.MOST, 500)
    for text in (read.state, read.life, *(parked.reason for parked in read.parked)):
        assert text.isprintable()
        assert len(text) <= ack_codec.REASON_CHARS
    assert read.parked[0].reason.startswith("[31mred xx")


SPOILT = {
    "no life": pb.Ack(),
    "a long life": pb.Ack(incarnation="x" * 64),
    "a revision out of range": pb.Ack(incarnation="1", revision=2**63),
    "a cursor out of range": pb.Ack(incarnation="1", cursor=2**63),
    "bytes out of range": pb.Ack(incarnation="1", bytes_to_go=2**63),
    "a time out of range": pb.Ack(incarnation="1", seconds_left=2**63),
}


@pytest.mark.parametrize("message", SPOILT.values(), ids=SPOILT.keys())
def test_a_report_that_makes_no_sense_is_refused(message: pb.Ack) -> None:
    """Nothing of it is kept."""
    with pytest.raises(ValueError, match=r"\w"):
        ack_codec.read_ack(message)


@pytest.mark.parametrize(
    "parked",
    [
        replace(PARKED, repository=Repository("../etc")),
        replace(PARKED, first=2**63),
        replace(PARKED, since_ms=-1),
        replace(PARKED, next_ms=2**60),
    ],
    ids=["a path", "a revision", "a time before time", "a time beyond"],
)
def test_a_park_that_makes_no_sense_is_refused(parked: ParkedThere) -> None:
    """As any name and number that comes from a peer."""
    with pytest.raises(ValueError, match=r"\w"):
        ack_codec.read_ack(ack_codec.ack_message(replace(SAID, parked=(parked,))).ack)


@given(st.binary(max_size=200))
def test_random_bytes_are_a_report_or_refused(content: bytes) -> None:
    """Whatever an ack holds, reading it ends in a value or in a ValueError."""
    message = pb.Ack()
    try:
        message.ParseFromString(content)
    except Exception:  # noqa: BLE001 - what grpc refuses before we see it
        return
    with suppress(ValueError):
        ack_codec.read_ack(message)


# --- what is reported


def _parks(**standing: Parked) -> Parks:
    named = {Repository(name): record for name, record in standing.items()}
    return Parks(lambda: 0.0, lambda: 5_000, lambda: 0.5, named)


def test_a_report_stays_below_what_is_left_out() -> None:
    """By the source's clock, and the cursor beside it."""
    parks = _parks(a=Parked(7, 8, 2, "why", 1_000, 3_000))
    said = report(Cursor("1", 9), parks, FollowRecord("parked"), LEVEL, life="n", ahead_ms=500)
    assert (said.revision, said.cursor, said.parked_count) == (6, 9, 1)
    assert said.parked == (ParkedThere(Repository("a"), 7, 2, "why", 1_500, 3_500),)


def test_a_report_has_the_longest_parked_of_many() -> None:
    """At most a hundred, and how many there are."""
    parks = _parks(**{f"r{n}": Parked(n + 1, n + 1, 1, "why" * 999, 1_000 - n) for n in range(150)})
    said = report(Cursor("1", 999), parks, FollowRecord("parked"), LEVEL, life="n", ahead_ms=-5_000)
    assert (len(said.parked), said.parked_count, said.revision) == (100, 150, 0)
    assert said.parked[0].repository == "r149"
    assert said.parked[0].since_ms == 0
    assert ack_codec.read_ack(ack_codec.ack_message(said).ack) == said


def test_a_report_goes_past_what_is_at_work_by_naming_it() -> None:
    """But not where it would have to name too many; what is written down stays the revision."""
    status, told = FollowRecord("following"), Told(20, {Repository("b"): 12})
    some = _parks(a=Parked(7, 8, 2, "why", 1_000, 3_000))
    said = report(Cursor("1", 9), some, status, told, life="n", ahead_ms=0)
    assert (said.revision, said.cursor, said.parked_count) == (6, 20, 2)
    assert said.parked[0] == ParkedThere(Repository("b"), 12, 0, "at work", 0, 0)
    assert [applied(said, Repository(name)) for name in "abc"] == [6, 11, 20]
    many = _parks(**{f"r{n}": Parked(7, 8, 2, "why", 1_000) for n in range(100)})
    assert report(Cursor("1", 9), many, status, told, life="n", ahead_ms=0).cursor == 9


def test_a_report_says_how_much_is_to_go() -> None:
    """Until all of a scan is there, where one is under way."""
    fetching = FollowRecord("following", bytes_to_go=90, seconds_left=4)
    said = report(Cursor("1", 9), _parks(), fetching, LEVEL, life="n", ahead_ms=0)
    assert (said.state, said.bytes_to_go, said.seconds_left) == ("following", 90, 4)
    scanning = replace(fetching, progress=Progress(1, 2, 3, 90, 60))
    assert (
        report(Cursor("1", 9), _parks(), scanning, LEVEL, life="n", ahead_ms=0).seconds_left == 60
    )


def test_bytes_alone_are_said_only_once_in_a_while() -> None:
    """Each ack is a write at the source; all else is said at once."""
    less = replace(SAID, bytes_to_go=4_000, seconds_left=None)
    assert is_to_be_said(SAID, None, 0)
    assert not is_to_be_said(less, SAID, 1)
    assert is_to_be_said(less, SAID, 5)
    assert not is_to_be_said(SAID, SAID, 5)
    assert is_to_be_said(replace(less, revision=7), SAID, 1)
