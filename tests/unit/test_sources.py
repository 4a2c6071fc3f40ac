"""Several sources of one blob: whoever has it, and never what a liar sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from node.digest import Digest
from node.errors import PeerUnavailable
from node.reference import Repository
from node.remote import RemoteBlob
from replicator import transfer as transfers
from replicator.sources import Sources
from tests.blob_peers import CONTENT, LARGE, BlobPeer, has, sessions, source, transfer, transfer_of
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model


@pytest.fixture(autouse=True)
def _nothing_is_small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the few bytes of a test take the way of large blobs, unless it is about small ones."""
    if "small" not in request.node.name:
        monkeypatch.setattr(transfers, "SMALL_BYTES", 1)


@pytest.fixture
def model() -> Model:
    return Model(MemoryKV())


def honest(site: str = "nyc", **more: Any) -> BlobPeer:
    return BlobPeer({LARGE.digest: CONTENT}, site, **more)


@pytest.mark.parametrize("size", ["small", "large"])
async def test_what_the_peer_lacks_comes_from_another(model: Model, size: str) -> None:
    """Whoever has a blob is as good a source as who told of it."""
    del size
    lacking, other = BlobPeer({}), honest()
    await transfer(model, lacking, other).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert other.asked == [0]


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_lie_is_replaced_by_the_truth(model: Model, size: str) -> None:
    """A source that sends something else costs its bytes and no more, and is asked last then."""
    del size
    liar, other = BlobPeer({LARGE.digest: bytes(len(CONTENT))}), honest()
    sources = Sources(source(liar), [source(other)])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert (liar.asked, other.asked) == ([0], [0])
    assert [source.site for source in sources.order(REPOSITORY)] == ["nyc", "fra"]
    assert sessions(model) == []


async def test_a_blob_moves_to_another_source_in_the_middle(model: Model) -> None:
    """What a peer brought before it went is not fetched again."""
    gone, other = honest("fra", cut_at=[50, 0, 0, 0]), honest()
    await transfer(model, gone, other).ensure(REPOSITORY, [LARGE])
    assert (gone.sent, other.asked, other.sent) == (50, [50], 50)
    assert gone.asked == [0, 50], "who has nothing more to bring is not waited for again"
    assert await has(model)
    assert sessions(model) == []


async def test_a_liars_part_does_not_spoil_an_honest_one(model: Model) -> None:
    """A mix that is wrong is fetched anew from one alone, and who must have lied is asked last."""
    liar = BlobPeer({LARGE.digest: bytes(len(CONTENT))}, cut_at=[50, 0, 0, 0])
    sources = Sources(source(liar), [source(other := honest())])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert other.asked == [50, 0]
    assert [source.site for source in sources.order(REPOSITORY)] == ["nyc", "fra"]
    assert sessions(model) == []


@pytest.mark.parametrize("again", [0.0, 40.0], ids=["not asked again", "asked again"])
async def test_no_honest_source_is_blamed_for_anothers_lie(model: Model, again: float) -> None:
    """Three brought parts of what is wrong, and one is honest alone: which of two it was, nobody
    knows, unless one lies once more.
    """
    liar = BlobPeer({LARGE.digest: bytes(len(CONTENT))}, cut_at=[30, 0, 0, 0])
    some, rest = honest("nyc", cut_at=[60, 0, 0, 0]), honest("sin")
    told_by = source(liar, clock=lambda: again if rest.asked else 0.0)
    sources = Sources(told_by, [source(some), source(rest)])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert {s.site for s in sources.order(REPOSITORY) if s.doubt == 2} == (
        {"fra"} if again else set()
    )


async def test_a_source_that_calls_a_blob_huge_stops_no_other(model: Model) -> None:
    """What does not fit as one says may fit as another does."""
    liar, other = honest("fra", announced=1 << 60), honest()
    await transfer(model, liar, other).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert other.asked == [0]


async def test_a_source_whose_answers_begin_too_late_is_left(model: Model) -> None:
    """A byte a minute is next to nothing also where each comes over a connection of its own."""
    now = 0.0

    class Late(BlobPeer):
        """A peer that thinks for a while, and brings little."""

        @asynccontextmanager
        async def blob(
            self, repository: Repository, digest: Digest, start: int = 0, most: int | None = None
        ) -> AsyncIterator[RemoteBlob]:
            """See Registry."""
            nonlocal now
            now += 50.0
            self.cut_at = [start + 1]
            async with super().blob(repository, digest, start, most) as blob:
                yield blob

    late, other = Late({LARGE.digest: CONTENT}), honest()
    sources = Sources(source(late, clock=lambda: now), [source(other)])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert len(late.asked) == 2


async def test_two_liars_leave_nothing_and_are_named(model: Model) -> None:
    """Nobody honest: the error says of each what it did."""
    liars = [BlobPeer({LARGE.digest: bytes(len(CONTENT))}, site) for site in ("fra", "nyc")]
    with pytest.raises(PeerUnavailable, match=r"source fra: sent .* source nyc: sent") as caught:
        await transfer(model, *liars).ensure(REPOSITORY, [LARGE])
    assert caught.value.reached
    assert sessions(model) == []
    assert model.blobs.copies == {}


async def test_a_blob_that_ends_before_what_is_here_is_fetched_anew(model: Model) -> None:
    """Two sources that contradict each other about a length are asked one by one."""
    long = BlobPeer({LARGE.digest: CONTENT * 2}, cut_at=[150, 0, 0, 0])
    other = honest()
    await transfer(model, long, other).ensure(REPOSITORY, [LARGE])
    assert other.asked == [150, 0]
    assert await has(model)


async def test_only_who_may_be_read_from_is_asked(model: Model) -> None:
    """What a peer's patterns here leave out is not fetched from it, whoever told of it."""
    other = honest()
    sources = Sources(source(BlobPeer({})), [source(other, "else/**")])
    with pytest.raises(PeerUnavailable, match=str(LARGE.digest)):
        await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert other.asked == []


async def test_a_source_that_failed_is_asked_last_for_a_while(model: Model) -> None:
    """Nobody waits for a peer that is down again and again, and nobody forgets it either."""
    now = 0.0
    gone, other = honest("fra", away=True), honest()
    sources = Sources(source(gone, clock=lambda: now), [source(other, clock=lambda: now)])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert [source.site for source in sources.order(REPOSITORY)] == ["nyc", "fra"]
    now = 31.0
    assert [source.site for source in sources.order(REPOSITORY)] == ["fra", "nyc"]


async def test_nobody_there_is_not_the_blobs_fault(model: Model) -> None:
    """If no source can be reached, other changes will fail with it too."""
    peers = [honest("fra", away=True), honest(away=True)]
    with pytest.raises(PeerUnavailable, match=r"source fra: .*; source nyc: ") as caught:
        await transfer(model, *peers).ensure(REPOSITORY, [LARGE])
    assert not caught.value.reached


async def test_a_manifests_body_comes_from_whoever_has_it() -> None:
    """A child that the peer lost is read at another site."""
    sources = Sources(source(BlobPeer({})), [source(honest())])
    assert await sources.manifest(REPOSITORY, LARGE.digest, len(CONTENT)) == CONTENT
    with pytest.raises(PeerUnavailable, match=r"source fra: .*; source nyc: "):
        await sources.manifest(REPOSITORY, Digest.of(b"none"), 4)


@pytest.mark.parametrize("size", ["small", "large"])
async def test_a_body_that_ends_too_early_is_cut(model: Model, size: str) -> None:
    """A range that promises more than it brings is asked for the rest, and then left."""
    del size
    short, other = BlobPeer({LARGE.digest: CONTENT[:60]}, announced=100), honest()
    await transfer(model, short, other).ensure(REPOSITORY, [LARGE])
    assert await has(model)


async def test_a_source_that_drips_is_left(model: Model) -> None:
    """Below the floor a source is as good as away, however long it goes on."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 10.0  # each time that somebody looks
        return now

    other = honest()
    sources = Sources(source(honest("fra"), clock=clock), [source(other)])
    await transfer_of(model, sources).ensure(REPOSITORY, [LARGE])
    assert await has(model)
    assert 0 < other.asked[0] < len(CONTENT)
