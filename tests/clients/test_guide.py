"""The guide docs/clients.md is true: its commands do what it says, in the order it shows."""

from __future__ import annotations

import asyncio
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.authority import Authority
from tests.clients import guide
from tests.clients.programs import Client, mask
from tests.sites import Site, ended

pytestmark = pytest.mark.slow

SCRIPT_S: Final = 180.0
PLAIN: Final = [
    heading
    for heading in guide.sections()
    if guide.commands(heading) and heading not in {guide.MIRRORS, guide.TLS}
]

# What each section shows beside text, all of which a test takes: see the tests for whose it is.
SHOWN: Final = {
    "Docker": {"sh", "json"},
    "containerd": {"sh", "toml"},
    "podman": {"sh", "ini"},
    "buildah": {"sh", "dockerfile"},
    "skopeo": {"sh"},
    "oras": {"python"},
    "helm": set(),
    "cosign": set(),
    guide.MIRRORS: {"sh", "json", "toml", "ini"},
    guide.TLS: {"sh", "toml"},
}


def test_nothing_is_shown_that_no_test_takes() -> None:
    """A block is of commands, which are run, or is a file, which is used."""
    assert {heading: guide.languages(heading) for heading in guide.sections()} == SHOWN
    mirrored = [command.split()[0] for command in guide.commands(guide.MIRRORS)]
    assert mirrored == ["docker", "ctr", "podman"]  # each has its test in test_mirrors


@pytest.mark.parametrize("heading", PLAIN)
async def test_commands(
    site: Site, request: pytest.FixtureRequest, tmp_path: Path, heading: str
) -> None:
    """A section's commands succeed one after the other, with the files that it shows."""
    programs = await guide.programs_for(heading, request, tmp_path)
    for text in guide.files(heading, "toml"):
        guide.write_hosts(text, site.http, site.http, tmp_path)
    for text in guide.files(heading, "dockerfile"):
        (programs["buildah"].folder / "Containerfile").write_text(guide.at(text, site.http))
    await guide.run(heading, programs, site.http, tmp_path)


async def test_plain_http_without_an_option(
    site: Site, podman: Client, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """With the guide's file podman needs no `--tls-verify=false`; without it, it does."""
    await guide.programs_for("podman", request, tmp_path)
    (text,) = guide.files("podman", "ini")
    push = ("push", "app:1", f"{site.http}/team/plain:1")
    assert (await podman.attempt(*push)).exit_code != 0
    await guide.with_registries(text, podman, site.http, tmp_path).run(*push)


async def test_the_script_of_oras(site: Site, tmp_path: Path) -> None:
    """The guide's script runs as it stands, and has its file back at the end."""
    (text,) = guide.files("oras", "python")
    script = tmp_path / "script.py"
    script.write_text(guide.at(text, site.http))
    environment = {"HOME": str(tmp_path), "NO_PROXY": "*"}
    command = (sys.executable, "-P", str(script))
    async with asyncio.timeout(SCRIPT_S):
        process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path, env=environment)
        assert await process.wait() == 0
    pulled, pushed = tmp_path / "pulled/report.txt", tmp_path / "report.txt"
    assert pulled.read_bytes() == pushed.read_bytes()


async def test_commands_under_tls(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Each client speaks TLS once it is told of the authority, and refuses the site before."""
    authority = Authority.make(tmp_path / "authority")
    pair = authority.sign("fra")
    tls = {"certificate": str(pair.certificate), "key": str(pair.key)}
    site = Site("fra", tmp_path / "fra", programs=("gateway",), tls=tls)
    programs = await guide.programs_for(guide.TLS, request, tmp_path)
    with ended(site):
        await site.start()
        inspect = shlex.split(guide.at(guide.commands(guide.TLS)[-2], site.http))[1:]
        assert "unknown authority" in (await programs["skopeo"].attempt(*inspect)).stderr
        (hosts,) = guide.files(guide.TLS, "toml")
        guide.write_hosts(hosts, site.http, site.http, tmp_path)
        for place in (tmp_path, *_trusted(programs, site.http)):
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(authority.certificate, place / "ca.crt")
        await guide.run(guide.TLS, programs, site.http, tmp_path)


def _trusted(programs: dict[str, Client], address: str) -> list[Path]:
    """Where the clients look for authorities, as the guide's table says, and where curl is told."""
    return [
        mask(programs["docker"].folder, "/etc/docker") / "certs.d" / address,
        *(
            programs[name].folder / "home/.config/containers/certs.d" / address
            for name in ("podman", "skopeo")
        ),
        programs["curl"].folder,
    ]
