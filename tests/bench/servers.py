"""The registries that are compared: each as it comes, on a free port, with its data in a folder."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from tests.bench.connection import Connection, UnexpectedAnswerError
from tests.ports import free_ports
from tests.sites import Site, ended
from tests.waiting import eventually_sync

PEER: Final = "docker-registry"
START_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running registry; `blobs` is the folder where its blobs lie by algorithm."""

    name: str
    port: int
    pid: int
    blobs: Path

    def connect(self) -> Connection:
        """A new connection to it."""
        return Connection(self.port)

    @property
    def peak_bytes(self) -> int:
        """The most memory that its process has held so far."""
        return peak_bytes(self.pid)

    def discard(self, digests: list[str]) -> None:
        """Free the disk of blobs that nobody will ask for again, behind the registry's back.

        On return the file system has written all it has, so that the next measurement begins
        with an idle disk.
        """
        for digest in digests:
            algorithm, _, text = digest.partition(":")
            for found in (self.blobs / algorithm / text[:2]).glob(f"{text}*"):
                for file in [found] if found.is_file() else list(found.iterdir()):
                    file.unlink()
        os.sync()


@contextmanager
def entrepot(folder: Path) -> Iterator[Server]:
    """Our gateway over the embedded KV and a folder, as `entrepot serve` runs it."""
    site = Site("bench", folder, programs=("gateway",))
    with ended(site):
        asyncio.run(site.start())
        yield Server("entrepot", site.port, site.pid("gateway"), site.blobs)


@contextmanager
def docker_registry(folder: Path) -> Iterator[Server]:
    """The peer with the settings of its package, but for the log of each request, which is off."""
    folder.mkdir(parents=True)
    port = free_ports((0,))
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {
            "cache": {"blobdescriptor": "inmemory"},
            "filesystem": {"rootdirectory": str(folder)},
            "delete": {"enabled": True},
        },
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    file = folder / "config.yml"
    file.write_text(yaml.safe_dump(config))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ("setpriv", "--pdeathsig", "KILL", "--", PEER, "serve", str(file)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        eventually_sync(lambda: _answers(port), START_S, f"{PEER} answers")
        yield Server(PEER, port, process.pid, folder / "docker/registry/v2/blobs")
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        with Connection(port) as connection:
            connection.exchange("GET", "/v2/", expect=200)
    except (OSError, UnexpectedAnswerError) as err:
        raise AssertionError(str(err)) from err
    return True


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held so far, the libraries in it included."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    assert found, f"process {pid} says nothing of its memory"
    return int(found[1]) * 1024
