"""Where an image is: what a site says of each of its peers, and of itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlencode

import pytest

from node import keys
from node.acked import behind
from node.config import Config
from node.config_models import Peer
from node.globs import Filter
from node.kv import Put
from node.records import Ack, Parked, ParkedThere, Report
from node.reference import Repository
from node.wire import codec, follow_codec
from node.wire.follow_codec import FollowRecord, Progress
from tests.contested import arrives
from tests.feeds import peer_at
from tests.registry import CONFIG, LAYER, REPOSITORY, Served, image, served

NYC: Final = peer_at(7001, "nyc")
BER: Final = peer_at(7002, "ber")
NAME: Final = Repository(REPOSITORY)
LATER_MS: Final = 1_700_000_001_000
PARKED: Final = ParkedThere(NAME, 1, 3, "no room", 1_000, 2_000)


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """Site fra, with an image of its own; its peers are nyc and ber."""
    async with served(Config(site="fra", peers=(NYC, BER))) as registry:
        await registry.push_image("v1")
        yield registry


async def _ask(registry: Served, reference: str, repository: str = REPOSITORY) -> Any:
    query = urlencode({"repository": repository, "reference": reference})
    return (await registry.ask("GET", f"/api/v1/images?{query}")).json()


async def _place(registry: Served, site: str = "nyc", reference: str = "v1") -> Any:
    answer = await _ask(registry, reference)
    return next(place for place in answer["sites"] if place["site"] == site)


async def _acks(registry: Served, report: Report, peer: Peer = NYC, **more: Any) -> None:
    ours = Filter(peer.repositories, peer.tags).fingerprint
    ack = replace(Ack(report, 5_000, Filter(), ours, "a stream"), **more)
    await registry.kv.txn([], [Put(keys.ack(peer.site), codec.encode_ack(ack))])


async def _newest(registry: Served) -> int:
    return (await registry.kv.read([])).revision


async def test_what_is_here_is_told_with_its_push(registry: Served) -> None:
    """By tag and by digest: what it is, when and where it was pushed, and every site."""
    head = await registry.ask("HEAD", registry.path("manifests/v1"))
    digest = head.headers["Docker-Content-Digest"]
    for reference in ("v1", digest):
        answer = await _ask(registry, reference)
        assert (answer["repository"], answer["reference"]) == (REPOSITORY, reference)
        assert answer["digest"] == digest
        assert answer["media_type"] == head.headers["Content-Type"]
        assert answer["size"] == int(head.headers["Content-Length"])
        assert (answer["pushed_at"], answer["pushed_ms"]) == ("fra", registry.clock())
        assert [place["site"] for place in answer["sites"]] == ["fra", "nyc", "ber"]
        here = answer["sites"][0]
        assert (here["state"], here["since_ms"]) == ("there", registry.clock())


async def test_what_came_from_elsewhere_is_told_alike(registry: Served) -> None:
    """It is here, and was pushed there."""
    await arrives(registry, "v2", image(LAYER, LAYER), site="nyc", ms=LATER_MS)
    answer = await _ask(registry, "v2")
    assert (answer["pushed_at"], answer["pushed_ms"]) == ("nyc", LATER_MS)
    here = answer["sites"][0]
    assert (here["state"], here["since_ms"]) == ("there", None)
    assert "nyc" in here["detail"]


async def test_a_peer_that_never_followed_is_unknown(registry: Served) -> None:
    """Nobody can say; not even when it was heard last."""
    place = await _place(registry)
    assert (place["state"], place["heard_ms"]) == ("unknown", None)
    assert place["address"] == NYC.http


async def test_an_image_is_there_once_its_revision_is_acked(registry: Served) -> None:
    """Not one revision before it; a push of the tag takes a later ack, and that digest does not."""
    answer = await _ask(registry, "v1")
    await _acks(registry, Report("life", answer["revision"] - 1, "n", "following"))
    place = await _place(registry)
    assert (place["state"], place["behind"], place["error"]) == ("on its way", 2, None)
    await _acks(registry, Report("life", answer["revision"], "n", "following"))
    assert (await _place(registry))["state"] == "there"
    assert (await _place(registry, reference=answer["digest"]))["state"] == "there"
    for content in (CONFIG, LAYER):
        await registry.push_blob(content)
    await registry.push_manifest(image(LAYER, LAYER), "v1")
    assert (await _place(registry))["state"] == "on its way"
    assert (await _place(registry, reference=answer["digest"]))["state"] == "there"
    assert (await _place(registry, "ber"))["state"] == "unknown"


async def test_a_tag_is_there_when_what_it_shows_is(registry: Served) -> None:
    """It shows again what was deleted, and then pushed by its digest: that takes a later ack."""
    digest = (await _ask(registry, "v1"))["digest"]
    await registry.kv.txn([], [Put(b"something", b"else")])
    await _acks(registry, Report("life", await _newest(registry), "n", "following"))
    assert (await _place(registry))["state"] == "there"
    await registry.push_manifest(image(LAYER), digest)
    assert (await _place(registry))["state"] == "on its way"


async def test_a_peer_that_lost_its_connection_was_heard_last_then(registry: Served) -> None:
    """It has what it has acked; of the rest only that it does not come."""
    revision = (await _ask(registry, "v1"))["revision"]
    await _acks(registry, Report("life", 1, "n", "following"), stream="")
    place = await _place(registry)
    assert (place["state"], place["heard_ms"]) == ("on its way", 5_000)
    assert "not connected" in place["error"]
    await _acks(registry, Report("life", revision, "n", "following"), stream="")
    place = await _place(registry)
    assert place["state"] == "there"
    assert "not connected" in place["detail"]


async def test_a_parked_repository_says_why_and_until_when(registry: Served) -> None:
    """The peer's own words; other repositories, and what was applied before, are not parked."""
    newest = await _newest(registry)
    parked = Report("life", 0, "n", "parked", newest, (PARKED,), 1)
    await _acks(registry, parked)
    place = await _place(registry)
    assert place["state"] == "parked"
    assert (place["error"], place["attempts"]) == ("no room", 3)
    assert (place["since_ms"], place["next_ms"]) == (1_000, 2_000)
    at_work = replace(PARKED, attempts=0, reason="still at work")
    await _acks(registry, replace(parked, parked=(at_work,), bytes_to_go=90, seconds_left=4))
    place = await _place(registry)
    assert (place["state"], place["error"], place["next_ms"]) == ("on its way", None, None)
    assert (place["bytes_to_go"], place["expected_ms"]) == (90, 9_000)
    later = replace(PARKED, first=newest + 1)
    await _acks(registry, replace(parked, revision=newest, parked=(later,)))
    assert (await _place(registry))["state"] == "there"
    other = replace(PARKED, repository=Repository("other"))
    await _acks(registry, replace(parked, parked=(other,), parked_count=7))
    place = await _place(registry)
    assert place["state"] == "on its way"
    assert "6 repositories more" in place["detail"]


async def test_a_parked_repository_holds_back_no_other(registry: Served) -> None:
    """What the peer's cursor has passed is there, but for what it left out or could not name."""
    answer = await _ask(registry, "v1")
    other = replace(PARKED, repository=Repository("other"))
    report = Report("life", 1, "n", "parked", answer["revision"], (other,), 1)
    await _acks(registry, report)
    place = await _place(registry)
    assert (place["state"], place["acked"]) == ("there", answer["revision"])
    ack, newest = Ack(report, 5_000), await _newest(registry)
    assert await behind(registry.kv, NYC, ack, newest) == 0
    unnamed = replace(ack, report=replace(report, parked_count=2))
    assert await behind(registry.kv, NYC, unnamed, newest) == 2
    await _acks(registry, replace(report, cursor=answer["revision"] - 1))
    assert (await _place(registry))["state"] == "on its way"
    await _acks(registry, replace(report, parked_count=2))
    assert (await _place(registry))["state"] == "on its way"


async def test_an_image_that_was_applied_and_then_found_missing_is_parked(
    registry: Served,
) -> None:
    """A comparison may park what lies below the ack: the ack is no proof of it any more."""
    newest = await _newest(registry)
    await _acks(registry, Report("life", newest, "n", "parked", newest, (PARKED,), 1))
    assert (await _place(registry))["state"] == "parked"


@pytest.mark.parametrize(
    ("report", "ours"), [(Report("another life", 999), None), (Report("life", 999), "others")]
)
async def test_an_ack_of_another_life_or_filter_is_void(
    registry: Served, report: Report, ours: str | None
) -> None:
    """It says when the peer was heard, and nothing of what it has."""
    await _acks(registry, report, NYC, **({} if ours is None else {"ours": ours}))
    place = await _place(registry)
    assert (place["state"], place["heard_ms"], place["acked"]) == ("unknown", 5_000, None)


@pytest.mark.parametrize("reference", ["v1", "digest"])
@pytest.mark.parametrize("side", ["ours", "theirs"])
async def test_what_a_filter_keeps_away_is_not_taken(side: str, reference: str) -> None:
    """Whichever of the two sites has the filter; a filter of tags leaves digests alone."""
    narrow = {"tags": ("x*",)}
    peer = peer_at(7001, "nyc", None, **(narrow if side == "ours" else {}))
    async with served(Config(site="fra", peers=(peer,))) as registry:
        digest = await registry.push_image("v1")
        theirs = Filter(**(narrow if side == "theirs" else {}))
        report = Report("life", await _newest(registry), "n", "following")
        await _acks(registry, report, peer, theirs=theirs)
        if reference == "v1":
            place = await _place(registry)
            assert place["state"] == "not taken"
            assert place["detail"].startswith("fra" if side == "ours" else "nyc")
        else:
            assert (await _place(registry, reference=digest))["state"] == "there"


# --- what is not here


async def _absent(registry: Served, reference: str = "never") -> Any:
    query = urlencode({"repository": REPOSITORY, "reference": reference})
    reply = await registry.ask("GET", f"/api/v1/images?{query}")
    assert (reply.status, reply.code) == (404, "MANIFEST_UNKNOWN")
    return reply.json()["errors"][0]


async def test_what_is_not_here_may_be_parked(registry: Served) -> None:
    """The message says which peer's repository is parked, and why; the detail has the rest."""
    record = codec.encode_parked(Parked(1, 2, 4, "no blob", 1_000, 2_000))
    await registry.kv.txn([], [Put(keys.parked("nyc", NAME), record)])
    error = await _absent(registry)
    assert "nyc" in error["message"]
    assert "no blob" in error["message"]
    source = error["detail"]["sources"][0]
    assert (source["site"], source["state"], source["attempts"]) == ("nyc", "parked", 4)
    assert (source["since_ms"], source["next_ms"]) == (1_000, 2_000)
    assert "no blob" in (await _ask(registry, "v1"))["sites"][0]["detail"]


async def test_what_is_not_here_may_be_at_a_peer_that_is_away(registry: Served) -> None:
    """Or at one of which not everything was read; a peer that is level is no reason."""
    following, away = FollowRecord("following"), FollowRecord("unreachable", last_error="no route")
    await _says(registry, "nyc", following)
    await _says(registry, "ber", replace(away, unheard_since_ms=7_000, heard_ms=6_000))
    error = await _absent(registry)
    assert "nyc" not in error["message"]
    assert "no route" in error["message"]
    source = error["detail"]["sources"][1]
    assert (source["since_ms"], source["heard_ms"]) == (7_000, 6_000)
    await _says(registry, "ber", replace(away, unheard_since_ms=8_000))
    source = (await _absent(registry))["detail"]["sources"][1]
    assert (source["since_ms"], source["heard_ms"]) == (8_000, None), "it was never heard"
    await _says(registry, "nyc", replace(following, revision=3, head=5))
    error = await _absent(registry)
    assert "2 revisions" in error["message"]
    source = error["detail"]["sources"][0]
    assert (source["state"], source["behind"], source["error"]) == ("on its way", 2, None)


async def test_what_is_not_here_may_be_at_work(registry: Served) -> None:
    """No fault, and expected when what is fetched is here."""
    at_work = codec.encode_parked(Parked(1, 2, 0, "still at work", 1_000, 2_000))
    scanned = Progress(3, 9, 100, 500, 7)
    scanning = FollowRecord("scanning", ms=10_000, bytes_to_go=500, progress=scanned)
    followed = FollowRecord("following", ms=9_000, bytes_to_go=500, seconds_left=8)
    source = None
    for record in (scanning, followed):
        await _says(registry, "nyc", record)
        error = await _absent(registry)
        assert "nyc" in error["message"]
        source = error["detail"]["sources"][0]
        assert (source["state"], source["error"]) == ("on its way", None)
        assert (source["bytes_to_go"], source["expected_ms"]) == (500, 17_000)
        await registry.kv.txn([], [Put(keys.parked("nyc", NAME), at_work)])
    assert source is not None
    assert source["since_ms"] == 1_000
    assert "being fetched" in (await _ask(registry, "v1"))["sites"][0]["detail"]


async def test_what_was_deleted_is_said_to_be(registry: Served) -> None:
    """By tag, and by digest; what never was, is not."""
    digest = (await _ask(registry, "v1"))["digest"]
    assert "deleted" not in (await _absent(registry))["message"]
    await registry.ask("DELETE", registry.path(f"manifests/{digest}"))
    for reference in ("v1", digest):
        assert "was deleted" in (await _absent(registry, reference))["message"]


async def _says(registry: Served, peer: str, record: FollowRecord) -> None:
    status = follow_codec.encode_follow(record)
    await registry.kv.txn([], [Put(keys.status(peer), status)])


async def test_what_is_not_here_may_be_kept_away() -> None:
    """By the filter of this site."""
    peer = peer_at(7001, "nyc", None, repositories=("other/**",))
    async with served(Config(site="fra", peers=(peer,))) as registry:
        assert "does not take" in (await _absent(registry))["message"]


@pytest.mark.parametrize(
    "query", ["", "repository=A&reference=v1", "repository=a", "repository=a&reference=%2F"]
)
async def test_what_is_no_image_is_refused(registry: Served, query: str) -> None:
    """Before anything is looked up."""
    assert (await registry.ask("GET", f"/api/v1/images?{query}")).status == 400


# --- what is parked here


async def test_parked_repositories_are_listed_by_peer(registry: Served) -> None:
    """All that is known of each, by name."""
    record = Parked(1, 2, 4, "no blob", 1_000, 2_000)
    names = (Repository("b"), Repository("a/b"))
    ops = [Put(keys.parked("nyc", name), codec.encode_parked(record)) for name in names]
    await registry.kv.txn([], ops)
    answer = (await registry.ask("GET", "/api/v1/parked")).json()
    nyc, ber = answer["peers"]
    assert (nyc["site"], nyc["more"]) == ("nyc", False)
    assert [one["repository"] for one in nyc["parked"]] == ["a/b", "b"]
    assert nyc["parked"][0] == {
        "repository": "a/b",
        "first": 1,
        "last": 2,
        "attempts": 4,
        "reason": "no blob",
        "since_ms": 1_000,
        "next_ms": 2_000,
        "scanned": 0,
    }
    assert ber == {"site": "ber", "parked": [], "more": False}


async def test_status_says_what_a_peer_lacks(registry: Served) -> None:
    """Only what it takes is counted, and nothing where it has said nothing that holds."""

    async def lacks() -> Any:
        peers = json.loads((await registry.ask("GET", "/api/v1/peers")).body)["peers"]
        return [(peer["acked"], peer["behind"]) for peer in peers]

    record = codec.encode_site(registry.site.record)
    await registry.kv.txn([], [Put(keys.SITE, record)])
    assert await lacks() == [(0, None), (0, None)]
    await _acks(registry, Report("life", 1, "n"))
    assert (await lacks())[0] == (1, 2)
    await _acks(registry, Report("life", 1, "n"), theirs=Filter(tags=("x*",)))
    assert (await lacks())[0] == (1, 1)
    newest = await _newest(registry)
    await _acks(registry, Report("life", newest, "n"))
    assert (await lacks())[0] == (newest, 0)
