"""A small client of a registry, and images to push with it: every image is unlike all others.

It checks what it pulls: `pull` follows a reference through all that it needs and hashes every byte.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

import aiohttp
from multidict import CIMultiDict

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"

TIMEOUT_S: Final = 60.0


class Refused(AssertionError):
    """The registry answered with another status than was asked for; who waits asks again."""

    def __init__(self, what: str, status: int, body: str) -> None:
        super().__init__(f"{what}: {status} {body[:300]}")
        self.status = status


class Broken(AssertionError):
    """Something that is visible is not whole, or not what its digest says."""


def digest_of(content: bytes) -> str:
    """The sha256 digest of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Blob:
    """Content with its type."""

    media_type: str
    content: bytes

    @property
    def digest(self) -> str:
        """Its digest."""
        return digest_of(self.content)

    @property
    def descriptor(self) -> dict[str, object]:
        """The descriptor that names it."""
        size = len(self.content)
        return {"mediaType": self.media_type, "digest": self.digest, "size": size}


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest with all that it needs: blobs and, if it is an index, other images."""

    manifest: Blob
    blobs: tuple[Blob, ...] = ()
    children: tuple[Image, ...] = ()

    @property
    def digest(self) -> str:
        """The manifest's digest."""
        return self.manifest.digest


def image_of(config: bytes, *layers: bytes) -> Image:
    """An image of these bytes."""
    blobs = (Blob(OCI_CONFIG, config), *(Blob(OCI_LAYER, layer) for layer in layers))
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": blobs[0].descriptor,
        "layers": [blob.descriptor for blob in blobs[1:]],
    }
    return Image(Blob(OCI_MANIFEST, json.dumps(document).encode()), blobs)


def new_image(chance: random.Random, sizes: Sequence[int] = (1 << 10,)) -> Image:
    """An image like no other, with a layer of each of the sizes."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "unique": chance.randbytes(16).hex(),
            "rootfs": {"type": "layers", "diff_ids": []},
        }
    )
    return image_of(config.encode(), *(chance.randbytes(size) for size in sizes))


def index_of(*children: Image) -> Image:
    """A multi-platform image of these."""
    architectures = ("amd64", "arm64", "s390x", "ppc64le")
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            child.manifest.descriptor | {"platform": {"os": "linux", "architecture": architecture}}
            for child, architecture in zip(children, architectures, strict=False)
        ],
    }
    return Image(Blob(OCI_INDEX, json.dumps(document).encode()), (), children)


@dataclass(slots=True)
class Registry:
    """One registry over HTTP."""

    url: str
    http: aiohttp.ClientSession

    @classmethod
    def at(cls, url: str, socket_factory: aiohttp.SocketFactoryType | None = None) -> Self:
        """A client that has to be closed; must be made on a running loop.

        Each request has a connection of its own, and none is silently sent again as aiohttp does
        with a PUT that was cut: nobody could tell what the first attempt has done.
        """
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        connector = aiohttp.TCPConnector(force_close=True, socket_factory=socket_factory)
        http = aiohttp.ClientSession(timeout=timeout, connector=connector)
        http._retry_connection = False  # as aiohttp's own TestClient
        return cls(url, http)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()

    async def answers(self) -> bool:
        """Whether the registry answers a ping."""
        with suppress(aiohttp.ClientError, TimeoutError):
            return (await self.call("GET", "/v2/")).status == 200
        return False

    async def call(self, method: str, path: str, **options: Any) -> Answer:
        """Do one request, and read the answer whole."""
        if isinstance(body := options.get("data"), bytes):
            options["data"] = io.BytesIO(body)
        async with self.http.request(method, f"{self.url}{path}", **options) as answer:
            return Answer(answer.status, answer.headers.copy(), await answer.read())

    # --- pushing

    async def push_blob(self, repository: str, content: bytes) -> str:
        """Upload a blob in two requests, and return its digest.

        Raises:
            Refused: The registry did not take it.
        """
        digest = digest_of(content)
        opened = await self.call("POST", f"/v2/{repository}/blobs/uploads/")
        opened.require(202, f"begin an upload to {repository}")
        location = opened.headers["Location"]
        done = await self.call("PUT", f"{location}&digest={digest}", data=content)
        done.require(201, f"upload {digest}")
        return digest

    async def push(self, repository: str, image: Image, *references: str) -> None:
        """Push an image as a client does, what it needs first; under its digest, then each tag.

        Without references it is pushed by digest only.

        Raises:
            Refused: The registry did not take it.
        """
        for child in image.children:
            await self.push(repository, child)
        for blob in {blob.digest: blob for blob in image.blobs}.values():
            await self.push_blob(repository, blob.content)
        for reference in references or (image.digest,):
            await self.put_manifest(repository, image.manifest, reference)

    async def put_manifest(self, repository: str, manifest: Blob, reference: str) -> None:
        """Put a manifest whose content is there.

        Raises:
            Refused: The registry did not take it.
        """
        answer = await self.call(
            "PUT",
            f"/v2/{repository}/manifests/{reference}",
            data=manifest.content,
            headers={"Content-Type": manifest.media_type},
        )
        answer.require(201, f"put {reference}")
        assert answer.headers["Docker-Content-Digest"] == manifest.digest

    async def delete(self, repository: str, reference: str) -> None:
        """Delete a tag, or a manifest by its digest.

        Raises:
            Refused: The registry did not.
        """
        path = f"/v2/{repository}/manifests/{reference}"
        (await self.call("DELETE", path)).require(202, f"delete {reference}")

    # --- pulling

    async def shows(self, repository: str, reference: str) -> str | None:
        """The digest that a reference shows; None if there is nothing.

        Raises:
            Refused: The registry answered neither.
        """
        answer = await self.call("HEAD", f"/v2/{repository}/manifests/{reference}")
        if answer.status == 404:
            return None
        answer.require(200, f"resolve {reference}")
        return answer.headers["Docker-Content-Digest"]

    async def manifest(self, repository: str, reference: str) -> Blob:
        """A manifest that has to be there.

        Raises:
            Refused: It is not.
        """
        answer = await self.call("GET", f"/v2/{repository}/manifests/{reference}")
        answer.require(200, f"get {reference}")
        return Blob(answer.headers["Content-Type"], answer.body)

    async def tags(self, repository: str) -> list[str]:
        """All tags that are listed; none of a repository that is not known.

        Raises:
            Refused: The registry could not answer now.
        """
        found: list[str] = []
        path: str | None = f"/v2/{repository}/tags/list"
        while path is not None:
            answer = await self.call("GET", path)
            if answer.status == 404:
                return []
            answer.require(200, f"list {repository}")
            found += json.loads(answer.body)["tags"]
            link = answer.headers.get("Link")
            path = None if link is None else link.partition("<")[2].partition(">")[0]
        return found

    async def pull(self, repository: str, reference: str) -> str | None:
        """Pull all that a reference needs and check every byte; its digest, or None for a 404.

        Raises:
            Broken: The reference is visible and something that it needs is missing or wrong.
            Refused: The registry could not answer now.
        """
        answer = await self.call("GET", f"/v2/{repository}/manifests/{reference}")
        if answer.status == 404:
            return None
        answer.require(200, f"get {reference}")
        digest = answer.headers["Docker-Content-Digest"]
        if digest_of(answer.body) != digest:
            raise Broken(f"{reference}: the body is {digest_of(answer.body)}, not {digest}")
        document = json.loads(answer.body)
        for child in document.get("manifests", ()):
            if await self.pull(repository, child["digest"]) != child["digest"]:
                raise Broken(f"{reference} is visible and its {child['digest']} is not")
        if "config" in document:
            for needed in (document["config"], *document["layers"]):
                await self.pull_blob(repository, needed["digest"], needed["size"], reference)
        return digest

    async def pull_blob(
        self, repository: str, digest: str, size: int, needed_by: str = "nothing"
    ) -> None:
        """Pull a blob and check it.

        Raises:
            Broken: It is not there, or is not what its digest says.
            Refused: The registry could not answer now.
        """
        answer = await self.call("GET", f"/v2/{repository}/blobs/{digest}")
        if answer.status == 404:
            raise Broken(f"{needed_by} is visible and its blob {digest} is not")
        answer.require(200, f"get {digest}")
        if len(answer.body) != size or digest_of(answer.body) != digest:
            raise Broken(f"blob {digest} has {len(answer.body)} bytes {digest_of(answer.body)}")


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response."""

    status: int
    headers: CIMultiDict[str]
    body: bytes

    def require(self, status: int, what: str) -> None:
        """Raise Refused unless the status is this one."""
        if self.status != status:
            raise Refused(what, self.status, self.body.decode(errors="replace"))
