"""The page docs/clients.md as tests read it: they run its commands and use its files."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.clients.images import docker_archive, oci_archive, oci_layout, tar_layer
from tests.clients.programs import Client

MIRRORS: Final = "A mirror of Docker Hub's names"
TLS: Final = "TLS"
ADDRESS: Final = "127.0.0.1:5000"
HOSTS: Final = "/etc/containerd/certs.d"

_PAGE: Final = Path(__file__).parents[2] / "docs" / "clients.md"


def sections() -> dict[str, str]:
    """The text of each section, by its heading."""
    parts = re.split(r"^## (.*)\n", _PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def languages(heading: str) -> set[str]:
    """The languages of a section's blocks; "" is none."""
    fences = re.findall(r"^```(.*)$", sections()[heading], flags=re.MULTILINE)
    return set(fences[::2])


def blocks(text: str, language: str) -> list[str]:
    """The blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(heading: str) -> list[str]:
    """The commands of a section, in order."""
    return "".join(blocks(sections()[heading], "sh")).splitlines()


def files(heading: str, language: str) -> list[str]:
    """The files in a language that a section shows, in order."""
    return blocks(sections()[heading], language)


def at(text: str, address: str, hosts: Path | None = None) -> str:
    """A command or a file, for a site at another address, and another folder of hosts.toml."""
    return text.replace(ADDRESS, address).replace(HOSTS, str(hosts or HOSTS))


async def run(
    heading: str, programs: Mapping[str, Client], address: str, hosts: Path | None = None
) -> None:
    """Run all commands of a section, in order; each must succeed."""
    for command in commands(heading):
        program, *arguments = shlex.split(at(command, address, hosts))
        await programs[program].run(*arguments)


async def programs_for(
    heading: str, request: pytest.FixtureRequest, folder: Path
) -> dict[str, Client]:
    """The programs of a section's commands; each has the image that the guide speaks of."""
    image = oci_layout(folder / "app", layers=[tar_layer()], tag="1")
    programs = {}
    for name in sorted({command.split()[0] for command in commands(heading)}):
        programs[name] = client = request.getfixturevalue(name)
        match name:
            case "docker":
                archive = docker_archive(folder / "app.tar", layers=[tar_layer()], tag="app:1")
                await client.run("load", "--input", archive.path)
            case "ctr":
                oci_archive(client.folder / "app.tar", image)
            case "podman" | "buildah":
                (stored,) = (await client.run("pull", "--quiet", image.source)).split()
                await client.run("tag", stored, "app:1")
            case _:
                shutil.copytree(image.folder, client.folder / "app", dirs_exist_ok=True)
    return programs


def write_hosts(text: str, registry: str, address: str, hosts: Path) -> None:
    """Let containerd use a hosts.toml of the guide for a registry."""
    (hosts / registry).mkdir()
    (hosts / registry / "hosts.toml").write_text(at(text, address, hosts))


def with_registries(text: str, client: Client, address: str, folder: Path) -> Client:
    """Return podman, buildah or skopeo with a registries.conf of the guide."""
    path = folder / "registries.conf"
    path.write_text(at(text, address))
    return replace(
        client, environment={**client.environment, "CONTAINERS_REGISTRIES_CONF": str(path)}
    )
