"""A site as a mirror of Docker Hub's names, set up as docs/clients.md says."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.clients import guide
from tests.clients.images import Image, oci_layout, tar_layer
from tests.clients.programs import Client, docker_engine, require
from tests.clients.tools import Ctr
from tests.sites import Site

pytestmark = pytest.mark.slow


@pytest.fixture
async def image(site: Site, ctr: Client, tmp_path: Path) -> Image:
    """An image that is nowhere but at the site, as `library/app:1`."""
    made = oci_layout(tmp_path / "image", layers=[tar_layer()], tag="1")
    await Ctr(ctr, tmp_path).push(made, f"{site.http}/library/app:1")
    return made


async def test_docker(site: Site, containerd: Path, image: Image) -> None:
    """An engine with the site in `registry-mirrors` gets an image of a bare name from it."""
    require("dockerd", "docker")
    settings: dict[str, object] = {}
    for heading in ("Docker", guide.MIRRORS):
        (text,) = guide.files(heading, "json")
        settings |= json.loads(guide.at(text, site.http))
    with docker_engine(containerd, **settings) as mirrored:
        await mirrored.run(*_command("docker"))
        known = await mirrored.run("image", "inspect", "--format", "{{.RepoDigests}}", "app:1")
        assert known.strip() == f"[app@{image.digest}]"


async def test_containerd(site: Site, ctr: Client, image: Image, tmp_path: Path) -> None:
    """containerd with the site in the `hosts.toml` of docker.io gets the image from it."""
    (hosts,) = guide.files(guide.MIRRORS, "toml")
    guide.write_hosts(hosts, "docker.io", site.http, tmp_path)
    await ctr.run(*_command("ctr", tmp_path))
    assert image.digest in await ctr.run("images", "list", "name==docker.io/library/app:1")


async def test_podman(site: Site, podman: Client, image: Image, tmp_path: Path) -> None:
    """podman with the site as a mirror of docker.io gets the image from it."""
    (text,) = guide.files(guide.MIRRORS, "ini")
    mirrored = guide.with_registries(text, podman, site.http, tmp_path)
    await mirrored.run(*_command("podman"))
    shown = await mirrored.run(
        "image", "inspect", "--format", "{{.Digest}}", "docker.io/library/app:1"
    )
    assert shown.strip() == image.digest


def _command(program: str, hosts: Path | None = None) -> list[str]:
    """Return the guide's one command of a program, without the program's name."""
    (command,) = [one for one in guide.commands(guide.MIRRORS) if one.startswith(f"{program} ")]
    return shlex.split(guide.at(command, "", hosts))[1:]
