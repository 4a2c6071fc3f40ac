"""What `entrepot status` shows of what a site said."""

from __future__ import annotations

import ssl
from typing import Final

import pytest
from rich.console import Console

from node.config import Config
from node.status import PeerAnswer, ProgressAnswer, SiteAnswer, SiteStatus, fetch, render
from tests.feeds import peer_at
from tests.registry import served

SITE: Final = SiteAnswer(site="fra", incarnation="i", version="0.1.0", revision=123, health=[])

NOW_MS: Final = 1_700_000_000_000


def _shown(*peers: PeerAnswer) -> str:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(render(SiteStatus("http://fra", SITE, list(peers)), NOW_MS))
    return shown.get()


def _scanning(progress: ProgressAnswer | None) -> PeerAnswer:
    return PeerAnswer(
        site="nyc",
        state="scanning",
        lag_keys=1,
        lag_s=1.0,
        parked=0,
        last_error=None,
        cursor=0,
        acked=0,
        progress=progress,
    )


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            (1200, 5000, 3_200_000_000, 1_100_000_000, 110),
            "1,200 of 5,000 items, 3.2 GB done, 1.1 GB to go, about 2 min",
        ),
        ((0, None, 0, 0, None), "0 items, 0 bytes done"),
        ((9, 10, 2_000, 0, 3), "9 of 10 items, 2.0 kB done, about 3 s"),
    ],
    ids=["much", "unknown", "nearly"],
)
def test_a_scan_says_how_far_it_has_come(told: tuple[int, ...], line: str) -> None:
    """A line for each, with what is known of it."""
    names = ("items_done", "items", "bytes_done", "bytes_to_go", "seconds_left")
    progress = ProgressAnswer.model_validate(dict(zip(names, told, strict=True)))
    assert f"nyc: scanning: {line}\n" in _shown(_scanning(progress))


async def test_a_site_whose_store_is_gone_still_says_so() -> None:
    """Which of its servers are down is shown although nobody can say anything of the peers."""
    async with served(Config(site="fra", peers=(peer_at(7001, "nyc"),))) as registry:
        registry.kv.down = True
        await registry.weather.look()
        url = f"http://127.0.0.1:{registry.port}"
        status = await fetch(url, ssl.create_default_context())
    assert not status.is_well
    assert status.raw["peers"] is None
    with (console := Console(width=120)).capture() as shown:
        console.print(render(status, NOW_MS))
    lines = shown.get().splitlines()
    assert "revision –" in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == [
        "store unavailable",
        "store member_down",
        "nothing is known of the peers",
    ]


def test_what_is_fetched_from_a_followed_peer_is_said() -> None:
    """A large image takes its time, and nothing else would show it."""
    peer = _scanning(None).model_copy(update={"state": "following", "bytes_to_go": 3_200_000_000})
    assert "nyc: fetching: 3.2 GB to go\n" in _shown(peer)
    timed = peer.model_copy(update={"seconds_left": 320})
    assert "nyc: fetching: 3.2 GB to go, about 5 min\n" in _shown(timed)


def test_a_scan_of_which_nothing_is_told_has_no_line() -> None:
    """A version before this one tells the state alone."""
    assert "nyc: scanning" not in _shown(_scanning(None))


def _followed(**more: object) -> PeerAnswer:
    told = _scanning(None).model_dump() | {"state": "following"} | more
    return PeerAnswer.model_validate(told)


def _found(
    result: str, seconds_ago: float, same_seconds_ago: float | None = None
) -> dict[str, object]:
    same = 0 if same_seconds_ago is None else NOW_MS - round(1000 * same_seconds_ago)
    numbers = dict.fromkeys(("revision", "peer_revision", "differing", "live", "tombstones"), 1)
    ms = NOW_MS - round(1000 * seconds_ago)
    return {"result": result, "ms": ms, "reason": "", "same_ms": same, **numbers}


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"in_sync": True, "compared": _found("same", 12, 12)}, "in sync, 12 s ago"),
        ({"compared": _found("same", 12, 12)}, "was in sync 12 s ago"),
        ({"compared": _found("unknown", 3, 7300)}, "was in sync 2 h ago"),
        ({"compared": _found("holds", 200)}, "has all of it, 3 min ago"),
        ({"compared": _found("differs", 1)}, "differs"),
        ({"compared": _found("same", -5, -5), "in_sync": True}, "in sync, 0 s ago"),
    ],
    ids=["proven", "overtaken", "long ago", "an archive", "never", "a clock that is ahead"],
)
def test_what_was_compared_is_said_with_its_age(told: dict[str, object], words: str) -> None:
    """In sync is said of what stands only; else when it was so last."""
    assert words in _shown(_followed(**told))


def test_a_doubt_is_said_with_its_reason() -> None:
    """A person who waits for "in sync" learns what keeps it from being said."""
    lost = {**_found("unknown", 3, 70), "reason": "blobs are lost here: 1"}
    doubt = "nyc: nothing could be said at the last comparison: blobs are lost here: 1\n"
    assert doubt in _shown(_followed(compared=lost))
    assert "nothing could be said" not in _shown(_followed(compared=_found("same", 3, 3)))


@pytest.mark.parametrize(("behind", "words"), [(0, " 0 "), (7, " 7 "), (1000, " 1000+ ")])
def test_what_a_peer_lacks_is_counted(behind: int, words: str) -> None:
    """Up to a thousand."""
    assert words in _shown(_followed(behind=behind, acked=5)).splitlines()[-1] + " "
