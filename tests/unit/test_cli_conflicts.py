"""`entrepot conflicts`: what it lists, what it resolves, and its exit status."""

from __future__ import annotations

import json
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

import pytest

from node import cli
from node.config import Config
from tests.contested import arrives
from tests.ports import free_port
from tests.registry import CONFIG, LAYER, REPOSITORY, Served, digest_of, image, served

Entrepot = Callable[..., Awaitable[tuple[int, str, str]]]

OURS: Final = image(LAYER)
THEIRS: Final = image(LAYER, LAYER)
TAG: Final = f"{REPOSITORY}:v1"
LATER_MS: Final = 1_700_000_001_000


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A site of which one tag is in conflict."""
    async with served(Config(site="fra")) as registry:
        for content in (CONFIG, LAYER):
            await registry.push_blob(content)
        await registry.push_manifest(OURS, "v1")
        await arrives(registry, "v1", THEIRS, site="nyc", ms=LATER_MS)
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
        status = await to_thread(run, [*arguments, "--url", url])
        return status, *capsys.readouterr()

    return entrepot


async def test_conflicts_are_listed(entrepot: Entrepot) -> None:
    """Status 1 if there are any: each tag, and each push with its digest, its site and its time."""
    status, output, _ = await entrepot("conflicts")
    assert status == 1
    tag, theirs, ours = output.splitlines()[:3]
    assert tag == TAG
    assert theirs.split() == [
        *["shown", digest_of(THEIRS), "pushed", "at", "nyc,"],
        *["2023-11-14", "22:13:21", "UTC"],
    ]
    assert ours.split()[:5] == ["hidden", digest_of(OURS), "pushed", "at", "fra,"]


async def test_conflicts_for_scripts(entrepot: Entrepot, registry: Served) -> None:
    """--json gives what the API gives, of all its pages."""
    for number in range(120):
        await registry.push_manifest(OURS, f"x{number:03}")
        await arrives(registry, f"x{number:03}", THEIRS, site="nyc", ms=LATER_MS + number)
    whole = (await registry.ask("GET", "/api/v1/conflicts?n=1000")).json()
    assert len(whole["conflicts"]) == 121
    status, output, _ = await entrepot("conflicts", "--json")
    assert status == 1
    assert json.loads(output) == whole


async def test_no_conflicts(entrepot: Entrepot) -> None:
    """Status 0, of a repository that has none."""
    status, output, _ = await entrepot("conflicts", "--repository", "elsewhere")
    assert (status, output.strip()) == (0, "no conflicts")


async def test_a_conflict_is_resolved(entrepot: Entrepot, registry: Served) -> None:
    """Status 0 and the tag shows what was chosen; status 1 if it is in no conflict any more."""
    digest = digest_of(OURS)
    status, output, _ = await entrepot("conflicts", "resolve", TAG, digest)
    assert (status, output.splitlines()[-1]) == (0, f"{TAG} shows {digest}")
    reply = await registry.ask("HEAD", registry.path("manifests/v1"))
    assert reply.headers["Docker-Content-Digest"] == digest
    assert (await entrepot("conflicts"))[0] == 0
    status, _, errors = await entrepot("conflicts", "resolve", TAG, digest)
    assert (status, errors) == (1, f"{TAG} is not in conflict\n")


async def test_what_the_site_refuses_is_said(entrepot: Entrepot) -> None:
    """Status 1, and the site's own words in one line."""
    status, _, errors = await entrepot("conflicts", "resolve", TAG, "sha256:" + "0" * 64)
    assert (status, errors) == (1, "manifest unknown\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [TAG, "v2"],
        [TAG],
        ["v1", digest_of(OURS)],
        ["UP:v1", digest_of(OURS)],
        [f"{REPOSITORY}:-", digest_of(OURS)],
    ],
)
async def test_what_is_no_image_or_digest(entrepot: Entrepot, arguments: list[str]) -> None:
    """Status 2, and nothing is asked."""
    assert (await entrepot("conflicts", "resolve", *arguments))[0] == 2


async def test_options_before_the_command_are_not_passed_over(entrepot: Entrepot) -> None:
    """Status 2: whoever names another site there must not act on this one."""
    other = f"http://127.0.0.1:{free_port()}"
    arguments = ["conflicts", "--url", other, "resolve", TAG, digest_of(OURS)]
    assert (await entrepot(*arguments))[0] == 2
    assert (await entrepot("conflicts"))[0] == 1
