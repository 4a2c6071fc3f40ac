"""`entrepot wait` and `entrepot why`: what they say, and their exit status."""

from __future__ import annotations

import json
import re
import sys
from asyncio import TaskGroup, to_thread
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Final

import pytest

from node import cli, image_client, keys
from node.config import Config
from node.errors import InvalidRequest
from node.globs import Filter
from node.image_client import parse_image
from node.kv import Put
from node.records import Ack, Parked, ParkedThere, Report
from node.reference import Repository
from node.site import now_ms
from node.wire import codec, follow_codec
from node.wire.follow_codec import FollowRecord
from tests.contested import arrives
from tests.feeds import peer_at
from tests.ports import free_port
from tests.registry import LAYER, REPOSITORY, Served, image, served
from tests.waiting import eventually

Entrepot = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]

TAG: Final = f"{REPOSITORY}:v1"
NYC: Final = peer_at(7001, "nyc")
BEFORE: Final = Report("life", 1, "life of nyc", "following")


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of a second between looks is too long for tests."""
    monkeypatch.setattr(image_client, "_LOOK_S", 0.02)


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """Site fra with an image that its peer nyc does not have yet."""
    async with served(Config(site="fra", peers=(NYC,))) as registry:
        await registry.push_image("v1")
        await _acks(registry, BEFORE)
        yield registry


@pytest.fixture
def entrepot(
    registry: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Entrepot:
    """Run a command on the site, beside it: status, stdout and stderr."""

    def run(arguments: list[str]) -> int:
        monkeypatch.setattr(sys, "argv", ["entrepot", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert isinstance(left.value.code, int)
        return left.value.code

    async def entrepot(*arguments: str) -> tuple[int, str, str]:
        url = f"http://127.0.0.1:{registry.port}"
        capsys.readouterr()
        status = await to_thread(run, [arguments[0], "--url", url, *arguments[1:]])
        return status, *capsys.readouterr()

    return entrepot


async def _acks(
    registry: Served, report: Report, stream: str = "a stream", ms: int = 5_000
) -> None:
    ack = Ack(report, ms, Filter(), Filter().fingerprint, stream)
    await registry.kv.txn([], [Put(keys.ack("nyc"), codec.encode_ack(ack))])


async def _has_all(registry: Served) -> None:
    await _acks(registry, replace(BEFORE, revision=(await registry.kv.read([])).revision))


def _asks(registry: Served) -> int:
    name = "entrepot_http_requests_total"
    labels = {"endpoint": "show-image", "status": "200"}
    return int(registry.metrics.get_sample_value(name, labels) or 0)


# --- wait


async def test_wait_returns_when_the_image_is_there(entrepot: Entrepot, registry: Served) -> None:
    """Not before: status 0, and one line."""
    async with TaskGroup() as group:
        waiting = group.create_task(entrepot("wait", TAG, "--site", "nyc", "--timeout", "60"))
        await eventually(lambda: _asks(registry) > 2, 30, "it has looked")
        assert not waiting.done()
        await _has_all(registry)
        status, output, errors = await waiting
    assert (status, output, errors) == (0, f"nyc has {TAG}\n", "")


async def test_wait_is_about_the_image_that_the_tag_showed(
    entrepot: Entrepot, registry: Served
) -> None:
    """A later push of the tag makes it wait for nothing more, nor believe an ack from before."""
    first = (await registry.kv.read([])).revision
    async with TaskGroup() as group:
        waiting = group.create_task(entrepot("wait", TAG, "--site", "nyc", "--timeout", "60"))
        await eventually(lambda: _asks(registry) > 2, 30, "it has looked")
        await registry.push_manifest(image(LAYER, LAYER), "v1")
        seen = _asks(registry)
        await eventually(lambda: _asks(registry) > seen + 4, 30, "it goes on looking")
        assert not waiting.done()
        await _acks(registry, replace(BEFORE, revision=first))
        assert (await waiting)[0] == 0


async def test_wait_for_a_tag_is_not_over_with_its_manifest(
    entrepot: Entrepot, registry: Served
) -> None:
    """A peer may have the manifest and not the tag, which then moves on: it takes the tag's ack."""
    body = image(LAYER, annotations={"a": "b"})
    digest = await arrives(registry, "v2", body, site="nyc", ms=1_700_000_001_000)
    query = f"/api/v1/images?repository={REPOSITORY}&reference="
    manifest = (await registry.ask("GET", query + digest)).json()["revision"]
    tagged = (await registry.ask("GET", query + "v2")).json()["revision"]
    assert manifest < tagged
    await _acks(registry, replace(BEFORE, revision=manifest))
    async with TaskGroup() as group:
        tag = f"{REPOSITORY}:v2"
        waiting = group.create_task(entrepot("wait", tag, "--site", "nyc", "--timeout", "60"))
        seen = _asks(registry)
        await eventually(lambda: _asks(registry) > seen + 2, 30, "it has looked")
        await registry.push_manifest(image(LAYER, LAYER), "v2")
        seen = _asks(registry)
        await eventually(lambda: _asks(registry) > seen + 4, 30, "it goes on looking")
        assert not waiting.done()
        await _acks(registry, replace(BEFORE, revision=tagged))
        assert (await waiting)[0] == 0


async def test_wait_ends_with_the_reason(entrepot: Entrepot, registry: Served) -> None:
    """Status 1 after the time-out; 0 looks once; the reason is on stderr, and in the JSON."""
    parked = ParkedThere(Repository(REPOSITORY), 1, 3, "no room", 1_000, 2_000)
    await _acks(registry, replace(BEFORE, revision=0, parked=(parked,), parked_count=1))
    for timeout in ("0", "0.1"):
        status, output, errors = await entrepot("wait", TAG, "--site", "nyc", "--timeout", timeout)
        assert (status, output) == (1, "")
        assert "no room" in errors
    status, output, _ = await entrepot("wait", TAG, "--site", "nyc", "--timeout", "0", "--json")
    answer = json.loads(output)
    assert (status, answer["there"], answer["place"]["state"]) == (1, False, "parked")


async def test_wait_for_what_was_deleted_meanwhile_ends(
    entrepot: Entrepot, registry: Served
) -> None:
    """It will never be there: status 1 long before the time-out."""
    digest = (await registry.ask("HEAD", registry.path("manifests/v1"))).headers[
        "Docker-Content-Digest"
    ]
    async with TaskGroup() as group:
        waiting = group.create_task(entrepot("wait", TAG, "--site", "nyc", "--timeout", "60"))
        await eventually(lambda: _asks(registry) > 2, 30, "it has looked")
        await registry.ask("DELETE", registry.path(f"manifests/{digest}"))
        status, _, errors = await waiting
    assert status == 1
    assert "deleted" in errors


async def test_wait_for_the_site_that_is_asked(entrepot: Entrepot, registry: Served) -> None:
    """It returns when the image is pullable there, by tag or by digest, whatever its peers have."""
    assert (await entrepot("wait", TAG, "--site", "fra", "--timeout", "0"))[0] == 0
    async with TaskGroup() as group:
        late = f"{REPOSITORY}:late"
        waiting = group.create_task(entrepot("wait", late, "--site", "fra", "--timeout", "60"))
        digest = await registry.push_image("late", annotations={"a": "b"})
        status, output, _ = await waiting
    assert (status, output.splitlines()[-1]) == (0, f"fra has {late}")
    named = f"127.0.0.1:{registry.port}/{REPOSITORY}@{digest}"
    status, output, _ = await entrepot("wait", named, "--site", "fra", "--timeout", "0", "--json")
    answer = json.loads(output)
    assert (status, answer["there"], answer["digest"]) == (0, True, digest)


@pytest.mark.parametrize("command", ["wait", "why"])
async def test_a_site_that_is_no_peer_is_a_usage_problem(entrepot: Entrepot, command: str) -> None:
    """Status 2, and the peers are named: of a chain's far end only its neighbour knows."""
    status, output, errors = await entrepot(command, TAG, "--site", "ber")
    assert (status, output) == (2, "")
    assert "nyc" in errors


@pytest.mark.parametrize("text", ["app", "app:", "App:v1", "app@sha256:1", "host:5000/app", ""])
async def test_what_is_no_image_is_a_usage_problem(entrepot: Entrepot, text: str) -> None:
    """Status 2 before anything is asked."""
    assert (await entrepot("wait", text, "--site", "nyc"))[0] == 2


async def test_a_site_that_does_not_answer_is_not_waited_for(entrepot: Entrepot) -> None:
    """Status 1 and one line: it may be a mistake in the URL."""
    url = f"http://127.0.0.1:{free_port()}"
    status, _, errors = await entrepot("wait", TAG, "--site", "nyc", "--url", url)
    assert status == 1
    assert len(errors.splitlines()) == 1


def test_the_address_of_the_site_may_stand_before_an_image() -> None:
    """As it stands in the name that was pushed; another address is no name of a repository."""
    assert str(parse_image("fra.example:5000/team/app:v1", "https://fra.example:5000")) == TAG
    assert str(parse_image(TAG, "http://127.0.0.1:5000")) == TAG
    with pytest.raises(InvalidRequest):
        parse_image("ber.example:5000/team/app:v1", "https://fra.example:5000")


# --- why


async def _why(entrepot: Entrepot) -> dict[str, str]:
    """What is said of an image that nyc does not have."""
    status, output, _ = await entrepot("why", TAG, "--site", "nyc")
    assert status == 1
    lines = [line for line in output.splitlines() if line.startswith("  ")]
    return dict(line.split(maxsplit=1) for line in lines)


async def test_why_says_when_an_image_is_expected(entrepot: Entrepot, registry: Served) -> None:
    """By what nyc has told of its bytes; where it is at work nothing has failed."""
    at_work = ParkedThere(Repository(REPOSITORY), 2, 0, "still at work after 10 s", 1_000, 2_000)
    fetching = replace(BEFORE, bytes_to_go=380_000_000, seconds_left=3_800)
    heard_ms = now_ms() - 50_000
    for report in (fetching, replace(fetching, parked=(at_work,), parked_count=1)):
        await _acks(registry, report, ms=heard_ms)
        said = await _why(entrepot)
        assert said["job"] == "nyc fetches and applies what fra tells"
        told = re.fullmatch(r".* UTC \(in (\d+) s\), 380.0 MB to go", said["expected"])
        assert told is not None
        assert 3_600 < int(told[1]) <= 3_750
        assert not {"error", "next", "tried"} & set(said)
    await _acks(registry, fetching, ms=now_ms() - 4_000_000)
    assert (await _why(entrepot))["expected"] == "now, 380.0 MB to go"
    await _acks(registry, replace(fetching, seconds_left=None))
    assert (await _why(entrepot))["expected"] == "not known yet, 380.0 MB to go"
    await _acks(registry, BEFORE)
    assert (await _why(entrepot))["expected"] == "not known yet"


async def test_why_says_that_an_image_was_deleted(entrepot: Entrepot, registry: Served) -> None:
    """And that nothing is on its way; nobody would wait for it."""
    await registry.ask("DELETE", registry.path("manifests/v1"))
    level = follow_codec.encode_follow(FollowRecord("following"))
    await registry.kv.txn([], [Put(keys.status("nyc"), level)])
    status, output, _ = await entrepot("why", TAG, "--site", "nyc")
    assert (status, output.splitlines()) == (
        1,
        [
            f"{TAG} is not at fra: fra knows that it was deleted",
            "  nothing is on its way from nyc",
        ],
    )


async def test_why_says_all_that_is_known(entrepot: Entrepot, registry: Served) -> None:
    """The link, the error, since when, how often it was tried and when next; status 1."""
    parked = ParkedThere(Repository(REPOSITORY), 1, 3, "no room", 1_000, 2_000)
    await _acks(registry, replace(BEFORE, revision=0, parked=(parked,), parked_count=1))
    said = await _why(entrepot)
    assert said["job"] == "nyc fetches and applies what fra tells"
    assert "expected" not in said
    assert said["link"] == f"nyc, {NYC.http}"
    assert said["error"] == "no room"
    assert said["tried"].startswith("3 times")
    assert said["since"].startswith("1970-01-01 00:00:01 UTC")
    assert said["next"] == "now", "its time has come"
    assert said["heard"].startswith("1970-01-01 00:00:05 UTC")


async def test_why_says_that_it_is_there(entrepot: Entrepot, registry: Served) -> None:
    """Status 0, for a person and for a script."""
    await _has_all(registry)
    status, output, _ = await entrepot("why", TAG, "--site", "nyc")
    assert status == 0
    assert "nyc has it" in output
    status, output, _ = await entrepot("why", TAG, "--site", "nyc", "--json")
    assert (status, json.loads(output)["there"]) == (0, True)


async def test_why_says_since_when_a_peer_is_silent(entrepot: Entrepot, registry: Served) -> None:
    """It is not connected: what it has is as of then."""
    await _acks(registry, BEFORE, stream="")
    status, output, _ = await entrepot("why", TAG, "--site", "nyc")
    assert status == 1
    assert "nyc is not connected" in output
    assert "heard    1970-01-01 00:00:05 UTC" in output


async def test_why_says_what_keeps_an_image_from_here(entrepot: Entrepot, registry: Served) -> None:
    """The park of the peer that may have it, whoever's site is asked about."""
    record = codec.encode_parked(Parked(1, 2, 4, "no blob", 1_000, 2_000))
    await registry.kv.txn([], [Put(keys.parked("nyc", Repository(REPOSITORY)), record)])
    status, output, _ = await entrepot("why", f"{REPOSITORY}:never", "--site", "fra")
    assert status == 1
    assert "no blob" in output
    assert f"link     nyc, {NYC.http}" in output
    assert "4 times" in output
