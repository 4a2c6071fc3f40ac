"""The container tools behind one face: push an image from disk, pull one and say what came.

Every tool answers with the digest of the manifest as it has it, and forgets the image afterwards:
the next pull has to fetch it again.
"""

from __future__ import annotations

import asyncio
import json
import math
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from tests.clients.images import EMPTY_LAYER, Image, Index, docker_archive, oci_archive, tar_layer
from tests.clients.programs import COMMAND_S, Client
from tests.faults.registry import digest_of
from tests.faults.wanlink import WanLink
from tests.waiting import eventually

LONG_S: Final = 300.0

_SLOW: Final = 12e6  # bytes/s
_UNDER_WAY: Final = 8 << 20


async def interrupt(client: Client, link: WanLink, *command: str) -> None:
    """Begin a command over a link, and end it after some mebibytes; they must be fewer than all."""
    link.line.bytes_per_s = _SLOW
    enough = link.passed_bytes + _UNDER_WAY
    async with asyncio.TaskGroup() as group:
        running = group.create_task(client.run(*command))
        await eventually(lambda: link.passed_bytes > enough, COMMAND_S, "a body is under way")
        running.cancel()
    assert running.cancelled()
    link.line.bytes_per_s = math.inf


class Tool(Protocol):
    """A tool that pushes and pulls; names are as in `127.0.0.1:5000/app:v1`."""

    async def push(self, image: Image, name: str) -> str | None:
        """Push an image, and return the digest under which the tool thinks it is there."""

    async def pull(self, name: str) -> str:
        """Pull an image, and return the digest of what was pulled."""


@dataclass(frozen=True, slots=True)
class Skopeo:
    """Copies straight between a folder and a registry."""

    client: Client
    folder: Path

    async def push(self, image: Image, name: str) -> str | None:
        """Copy the image as it is."""
        target = f"docker://{name}"
        await self.client.run("copy", "--dest-tls-verify=false", image.source, target)
        return image.digest

    async def push_all(self, source: str, name: str, *options: str) -> None:
        """Copy a multi-platform image whole, or any other with options."""
        target = f"docker://{name}"
        command = ("copy", "--all", "--dest-tls-verify=false", *options, source, target)
        await self.client.run(*command, timeout_s=LONG_S)

    async def pull(self, name: str) -> str:
        """Copy it whole into a new folder, which keeps the manifest as it came."""
        folder = self.folder / secrets.token_hex(8)
        source = f"docker://{name}"
        command = ("copy", "--all", "--src-tls-verify=false", source, f"dir:{folder}")
        await self.client.run(*command, timeout_s=LONG_S)
        return digest_of((folder / "manifest.json").read_bytes())


@dataclass(frozen=True, slots=True)
class Docker:
    """Goes through a Docker engine, which makes a manifest of its own."""

    client: Client
    folder: Path

    async def push(self, image: Image, name: str) -> str | None:
        """Load an image like the other, with an empty layer, and push it."""
        path = self.folder / f"{secrets.token_hex(8)}.tar"
        docker_archive(path, layers=[tar_layer(), EMPTY_LAYER], tag=name)
        await self.client.run("load", "--input", path)
        await self.client.run("push", name)
        digest = await self._digest(name)
        await self.client.run("rmi", "--force", name)
        return digest

    async def pull(self, name: str) -> str:
        """Pull it, and ask the engine."""
        await self.client.run("pull", name)
        digest = await self._digest(name)
        await self.client.run("rmi", "--force", name)
        return digest

    async def _digest(self, name: str) -> str:
        text = await self.client.run("image", "inspect", "--format", "{{json .RepoDigests}}", name)
        repository = name.rpartition(":")[0]
        (found,) = [one for one in json.loads(text) if one.startswith(f"{repository}@")]
        return str(found.partition("@")[2])


@dataclass(frozen=True, slots=True)
class Podman:
    """podman and buildah: both keep images in a store, and understand the same options."""

    client: Client
    folder: Path

    async def push(self, image: Image, name: str) -> str | None:
        """Take the image into the store and push it from there."""
        file = self.folder / secrets.token_hex(8)
        (stored,) = (await self.client.run("pull", "--quiet", image.source)).split()
        options = ("--tls-verify=false", f"--digestfile={file}")
        await self.client.run("push", *options, stored, f"docker://{name}")
        await self.client.run("rmi", "--force", stored)
        return file.read_text().strip()

    async def pull(self, name: str) -> str:
        """Pull it into the store, and ask the store."""
        (stored,) = (await self.client.run("pull", "--quiet", "--tls-verify=false", name)).split()
        listed = await self.client.run(
            "images", "--digests", "--no-trunc", "--format", "{{.ID}} {{.Digest}}"
        )
        (digest,) = {line.split()[1] for line in listed.splitlines() if stored in line}
        await self.client.run("rmi", "--force", stored)
        return digest


@dataclass(frozen=True, slots=True)
class Ctr:
    """Goes through containerd, which keeps manifests as they are."""

    client: Client
    folder: Path

    async def push(self, image: Image, name: str) -> str | None:
        """Import the image and push it."""
        return await self.push_all(image, name)

    async def push_all(self, image: Image | Index, name: str) -> str:
        """Import an image, or an index with all of its images, and push it."""
        await self.take(image, name)
        await self.client.run("images", "push", "--plain-http", name, timeout_s=LONG_S)
        await self.forget(name)
        return image.digest

    async def take(self, image: Image | Index, name: str) -> None:
        """Import an image, or an index with all of its images, under a name."""
        archive = oci_archive(self.folder / f"{secrets.token_hex(8)}.tar", image)
        base, _, _ = name.rpartition(":")
        imported = f"{base}:{image.tag}"
        options = ("--base-name", base, "--all-platforms", "--no-unpack")
        await self.client.run("images", "import", *options, archive, timeout_s=LONG_S)
        if imported != name:
            await self.client.run("images", "tag", "--force", imported, name)
            await self.forget(imported)

    async def pull(self, name: str) -> str:
        """Pull all of its platforms, and ask containerd."""
        command = ("images", "pull", "--plain-http", "--all-platforms", name)
        await self.client.run(*command, timeout_s=LONG_S)
        listed = (await self.client.run("images", "list", f"name=={name}")).splitlines()[1]
        await self.forget(name)
        return listed.split()[2]

    async def forget(self, name: str) -> None:
        """Remove an image, and all of its content that no other name needs."""
        await self.client.run("images", "remove", "--sync", name)
