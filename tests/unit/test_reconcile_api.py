"""Asking a site to compare itself with its peers: over HTTP, and by `entrepot reconcile`."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable

import pytest

from node import cli, keys
from node.config import Config
from node.config_models import Peer
from node.kv import Put, following, only
from node.wire.follow_codec import Compared, FollowRecord, Verdict, encode_follow
from tests.feeds import peer_at
from tests.registry import Served, served

PATH = "/api/v1/peers/nyc/reconcile"


def _silent() -> Peer:
    return peer_at(1, "ams").model_copy(update={"follow": False})


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A site that follows nyc, and does not follow ams."""
    config = Config(site="fra").model_copy(update={"peers": (peer_at(1, "nyc"), _silent())})
    async with served(config) as registry:
        yield registry


@pytest.mark.parametrize(
    ("query", "written"), [("", b""), ("?full=false", b""), ("?full=true", b"full")]
)
async def test_what_is_asked_for_is_written_down(
    registry: Served, query: str, written: bytes
) -> None:
    """The peer's follower finds it; the answer says from which revision on it is answered."""
    reply = await registry.ask("POST", PATH + query)
    revision = (await registry.kv.read([])).revision
    assert (reply.status, reply.json()) == (202, {"site": "nyc", "revision": revision})
    assert registry.kv.entries()[keys.request("nyc")] == written


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/api/v1/peers/ams/reconcile", 404),
        ("POST", "/api/v1/peers/lhr/reconcile", 404),
        ("POST", "/api/v1/peers//reconcile", 404),
        ("POST", "/api/v1/peers/nyc", 404),
        ("POST", "/api/v1/peers/reconcile", 404),
        ("POST", f"{PATH}?full=perhaps", 400),
        ("GET", PATH, 405),
    ],
)
async def test_what_makes_no_sense_is_refused(
    registry: Served, method: str, path: str, status: int
) -> None:
    """A peer that is not followed can't be compared with, and nothing is written."""
    before = registry.kv.entries()
    assert (await registry.ask(method, path)).status == status
    assert registry.kv.entries() == before


@pytest.fixture
def entrepot(
    registry: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on the site: status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{registry.port}"
        monkeypatch.setattr(sys, "argv", ["entrepot", "reconcile", *arguments, "--url", url])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return run


async def _answers(registry: Served, *verdicts: Verdict) -> None:
    """Say these of nyc, one after the other, when somebody has asked."""
    within = only(keys.request("nyc"))
    async with following(registry.kv, within, 1) as stream:
        async for news in stream:
            if news.entries:
                break
    for verdict in verdicts:
        revision = (await registry.kv.read([])).revision
        compared = Compared(verdict, 1, revision, 2, 3, reason="it snows")
        record = FollowRecord("following", compared=compared)
        await registry.kv.txn([], [Put(keys.status("nyc"), encode_follow(record))])
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("verdicts", "status", "said"),
    [
        ([Verdict.SAME], 0, "nyc: in sync"),
        ([Verdict.DIFFERS, Verdict.HOLDS], 0, "nyc: has all of it"),
        ([Verdict.DIFFERS], 1, "nyc: has 3 keys that are not here yet"),
        ([Verdict.UNKNOWN], 1, "nyc: can't say: it snows"),
        ([Verdict.UNSUPPORTED], 1, "nyc: can't say: it is of a version that can't be compared"),
    ],
)
async def test_the_command_waits_for_what_is_found(
    registry: Served,
    entrepot: Callable[..., tuple[int, str, str]],
    verdicts: list[Verdict],
    status: int,
    said: str,
) -> None:
    """Until the site has all that the peer has, or for the time that it is given."""
    waits = "0.7" if status and verdicts[-1] is not Verdict.UNSUPPORTED else "30"
    async with asyncio.TaskGroup() as group:
        group.create_task(_answers(registry, *verdicts))
        code, output, _ = await to_thread(entrepot, "--timeout", waits)
    assert code == status
    assert output.splitlines()[-1].startswith(said)


async def test_what_was_found_before_does_not_count(
    registry: Served, entrepot: Callable[..., tuple[int, str, str]]
) -> None:
    """A comparison that nobody made since is not taken for the one that was asked for."""
    record = FollowRecord("following", compared=Compared(Verdict.SAME, 1, 1, 2))
    await registry.kv.txn([], [Put(keys.status("nyc"), encode_follow(record))])
    code, output, _ = await to_thread(entrepot, "nyc", "--full", "--timeout", "0")
    assert code == 1
    assert output.splitlines()[-1] == "nyc: not compared in time (following)"
    assert registry.kv.entries()[keys.request("nyc")] == b"full"


async def test_nobody_at_work_is_said(registry: Served) -> None:
    """A peer that no replicator follows does not seem to be about to begin."""
    (peer,) = (await registry.ask("GET", "/api/v1/peers")).json()["peers"][:1]
    assert (peer["site"], peer["state"]) == ("nyc", "starting")
    assert peer["last_error"] == "no replicator follows it"
    assert (peer["lag_keys"], peer["lag_s"]) == (None, None), "nobody knows"


async def test_how_far_behind_a_peer_is_that_was_never_met_is_unknown(registry: Served) -> None:
    """In keys; in seconds it is as long as it was tried."""
    record = FollowRecord("unreachable", revision=7, unheard_since_ms=1)
    await registry.kv.txn([], [Put(keys.status("nyc"), encode_follow(record))])
    (peer,) = (await registry.ask("GET", "/api/v1/peers")).json()["peers"][:1]
    assert peer["lag_keys"] is None
    assert peer["lag_s"] > 0


async def test_a_peer_that_is_not_followed_is_named(
    registry: Served, entrepot: Callable[..., tuple[int, str, str]]
) -> None:
    """With those that are."""
    before = registry.kv.entries()
    code, _, errors = await to_thread(entrepot, "nyc", "ams")
    assert code == 2
    assert "no peer ams is followed from here; it follows nyc" in " ".join(errors.split())
    assert registry.kv.entries() == before


async def test_a_peer_that_is_away_is_the_reason(
    registry: Served, entrepot: Callable[..., tuple[int, str, str]]
) -> None:
    """Why nothing was compared; the same for a script."""
    record = FollowRecord("unreachable", last_error="no route")
    await registry.kv.txn([], [Put(keys.status("nyc"), encode_follow(record))])
    code, output, _ = await to_thread(entrepot, "--timeout", "0")
    assert code == 1
    assert output.splitlines()[-1] == "nyc: not compared in time (unreachable: no route)"
    code, output, _ = await to_thread(entrepot, "--timeout", "0", "--json")
    (peer,) = json.loads(output[output.index("{\n") :])["peers"]
    assert (code, peer["site"], peer["last_error"]) == (1, "nyc", "no route")
    assert peer["compared"] is None
