"""How many bytes are to go, and for how long: told as they come, not blob by blob."""

from __future__ import annotations

import asyncio

import pytest

from node.errors import PeerUnavailable
from replicator import transfer as transfers
from replicator.fetching import Fetching
from tests.blob_peers import CONTENT, LARGE, BlobPeer, has, transfer
from tests.clock import Seconds
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model


@pytest.fixture
def clock() -> Seconds:
    """A clock that stands."""
    return Seconds()


@pytest.fixture
def fetching(clock: Seconds) -> Fetching:
    """What is fetched, by that clock."""
    return Fetching(clock)


def _told(fetching: Fetching) -> tuple[int, int]:
    return fetching.bytes_done, fetching.bytes_to_go


def test_bytes_move_within_a_blob(fetching: Fetching) -> None:
    """Each is done once it has come, and what fails later has come all the same."""
    with fetching.blob(100) as one:
        assert _told(fetching) == (0, 100)
        one.got(30)
        with pytest.raises(PeerUnavailable):
            _fetch_in_vain(fetching, 50, 10, (40, 110))
        assert _told(fetching) == (40, 70)
    assert _told(fetching) == (110, 0)


def _fetch_in_vain(fetching: Fetching, size: int, got: int, meanwhile: tuple[int, int]) -> None:
    with fetching.blob(size) as blob:
        blob.got(got)
        assert _told(fetching) == meanwhile
        raise PeerUnavailable("fra", "cut")


def test_what_was_here_before_is_not_to_go(fetching: Fetching) -> None:
    """Nor was it done now; who starts over has all of it to go again."""
    with fetching.blob(100) as blob:
        blob.begin(60)
        assert _told(fetching) == (0, 40)
        blob.got(10)
        blob.begin(0)
        assert _told(fetching) == (10, 100)


def test_a_blob_that_is_longer_than_it_was_said_to_be_owes_nothing(fetching: Fetching) -> None:
    """A manifest may be wrong about sizes."""
    with fetching.blob(10) as blob, fetching.blob(5):
        blob.got(30)
        assert _told(fetching) == (30, 5)


def test_the_time_left_is_by_the_speed_within_a_blob(fetching: Fetching, clock: Seconds) -> None:
    """Not before some seconds; and what was here before did not come that fast."""
    with fetching.blob(1000) as blob:
        blob.begin(100)
        assert fetching.seconds_left() is None
        for _ in range(4):
            clock.s += 1
            blob.got(50)
        assert fetching.seconds_left() == 700 / 50


def test_a_rest_says_nothing_of_the_link(fetching: Fetching, clock: Seconds) -> None:
    """The speed is measured anew after it."""
    with fetching.blob(10) as blob:
        assert fetching.seconds_left() is None
    clock.s += 30
    with fetching.blob(1000) as blob:
        assert fetching.seconds_left() is None
        clock.s += 5
        blob.got(500)
        assert fetching.seconds_left() == 5


async def test_a_transfer_tells_of_its_bytes_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way half of them are to go, for whoever goes on after a stop too."""
    monkeypatch.setattr(transfers, "SMALL_BYTES", 1)
    model, fetching = Model(MemoryKV()), Fetching()
    peer = BlobPeer({LARGE.digest: CONTENT}, held=asyncio.Event())
    async with asyncio.TaskGroup() as group:
        one = transfer(model, peer, fetching=fetching)
        first = group.create_task(one.ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        assert _told(fetching) == (50, 50)
        first.cancel()
    assert _told(fetching) == (50, 0)
    peer.halfway.clear()
    again = Fetching()
    async with asyncio.TaskGroup() as group:
        group.create_task(transfer(model, peer, fetching=again).ensure(REPOSITORY, [LARGE]))
        await peer.halfway.wait()
        assert _told(again) == (0, 50)
        assert peer.held is not None
        peer.held.set()
    assert _told(again) == (50, 0)
    assert await has(model)
