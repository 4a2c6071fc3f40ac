"""Real container clients: each as a fixture, and the site that they talk to."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.programs import Client, client, daemon, docker_engine, private_folder, require
from tests.clients.site import _the_loop_is_never_blocked, oras, site  # noqa: F401  (fixtures)


@pytest.fixture(scope="session")
def containerd() -> Iterator[Path]:
    """Run a containerd, and return its socket."""
    require("containerd", "ctr")
    with private_folder() as folder:
        address = folder / "containerd.sock"
        config = folder / "containerd.toml"
        config.write_text(_containerd_config(folder, address))
        probe = client(folder, "ctr", "--address", str(address), "version")

        async def answers() -> bool:
            """Ask for the version once the socket is there."""
            assert address.exists(), "no socket"
            outcome = await probe.attempt(timeout_s=5)
            assert outcome.exit_code == 0, str(outcome)
            return True

        with daemon(folder, ("containerd", "--config", str(config)), answers):
            yield address


@pytest.fixture(scope="session")
def ctr(containerd: Path) -> Iterator[Client]:
    """Return `ctr` before a private containerd."""
    with private_folder() as folder:
        yield client(folder, "ctr", "--address", str(containerd))


@pytest.fixture(scope="session")
def docker(containerd: Path) -> Iterator[Client]:
    """Return `docker` before a private Docker engine."""
    require("dockerd", "docker")
    with docker_engine(containerd) as docker:
        yield docker


@pytest.fixture(scope="session")
def dockerode(docker: Client) -> Client:
    """Return what drives the Docker engine by dockerode."""
    folder = Path(__file__).parent / "dockerode"
    require("node", root=False, files=[folder / "node_modules" / "dockerode"])
    socket = docker.command[-1].removeprefix("unix://")
    command = ("node", str(folder / "images.js"), socket)
    return replace(docker, command=command, isolated=False)


@pytest.fixture(scope="session")
def podman() -> Iterator[Client]:
    """Return `podman` with a private image store."""
    require("podman")
    with private_folder() as folder:
        yield client(folder, "podman")


@pytest.fixture(scope="session")
def buildah() -> Iterator[Client]:
    """Return `buildah` with a private image store."""
    require("buildah")
    with private_folder() as folder:
        yield client(folder, "buildah")


@pytest.fixture(scope="session")
def skopeo() -> Iterator[Client]:
    """Return `skopeo`; it alone needs no rights of the superuser."""
    root = os.geteuid() == 0
    require("skopeo", root=root)
    with private_folder() as folder:
        yield replace(client(folder, "skopeo"), isolated=root)


@pytest.fixture(scope="session")
def curl() -> Iterator[Client]:
    """Return `curl`."""
    require("curl", root=False)
    with private_folder() as folder:
        yield replace(client(folder, "curl"), isolated=False)


def _containerd_config(folder: Path, address: Path) -> str:
    """Return containerd's settings: all of its state in the folder, no service for Kubernetes."""
    return f"""
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "{address}"
[plugins."io.containerd.internal.v1.opt"]
path = "{folder}/opt"
"""
