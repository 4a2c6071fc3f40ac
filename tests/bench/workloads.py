"""What is measured at a registry: each workload by its name, with what it needs prepared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.bench import client
from tests.bench.connection import Connection
from tests.bench.content import Blob, Image, Source, image, source
from tests.bench.loads import Load, drive, drive_wrk
from tests.bench.servers import Server

KIB: Final = 1 << 10
MIB: Final = 1 << 20
LAYERS: Final = 3

_REPOSITORY: Final = "bench/app"
_TAG: Final = "latest"


@dataclass(frozen=True, slots=True)
class Sources:
    """New contents of every size that is used."""

    small: Source
    layer: Source
    large: Source

    def image(self) -> Image:
        """A config of 1 KiB and three layers of 1 MiB."""
        return image(self.small, self.layer, LAYERS)

    def image_of_one(self) -> Image:
        """A config of 1 KiB and one layer of 1 MiB."""
        return image(self.small, self.layer, 1)


@contextmanager
def sources() -> Iterator[Sources]:
    """The contents, for as long as the block lasts."""
    with source(KIB) as small, source(MIB) as layer, source(64 * MIB) as large:
        yield Sources(small, layer, large)


class Bed:
    """A registry that holds what is read, and where every byte of it was looked at."""

    def __init__(self, server: Server, contents: Sources) -> None:
        self.server = server
        self._contents = contents
        self._small, self._large = contents.small.take(), contents.large.take()
        self._image = contents.image()
        with server.connect() as connection:
            for blob in (self._small, self._large):
                client.push_blob(connection, _REPOSITORY, blob)
                client.verify_blob(connection, _REPOSITORY, blob)
            at_once = contents.large.take()
            client.push_blob_at_once(connection, _REPOSITORY, at_once)
            client.verify_blob(connection, _REPOSITORY, at_once)
            client.push_image(connection, _REPOSITORY, _TAG, self._image)
            client.verify_image(connection, _REPOSITORY, _TAG, self._image)

    def get_large(self) -> Load:
        """Read the blob of 64 MiB."""
        return self._steps(lambda at: client.pull_blob(at, _REPOSITORY, self._large))

    def get_small(self) -> Load:
        """Read the blob of 1 KiB."""
        return self._wrk(f"/v2/{_REPOSITORY}/blobs/{self._small.digest}")

    def get_tag(self) -> Load:
        """Read a manifest by its tag."""
        return self._wrk(f"/v2/{_REPOSITORY}/manifests/{_TAG}", client.ACCEPT)

    def get_digest(self) -> Load:
        """Read a manifest by its digest."""
        return self._wrk(f"/v2/{_REPOSITORY}/manifests/{self._image.digest}", client.ACCEPT)

    def put_large(self) -> Load:
        """Push new blobs of 64 MiB as docker does."""
        return self._pushes(self._contents.large, client.push_blob)

    def put_large_at_once(self) -> Load:
        """Push new blobs of 64 MiB as containerd does."""
        return self._pushes(self._contents.large, client.push_blob_at_once)

    def put_small(self) -> Load:
        """Push new blobs of 1 KiB as docker does."""
        return self._pushes(self._contents.small, client.push_blob)

    def push(self) -> Load:
        """Push new images, each to a tag of its own."""

        def run(clients: int, seconds: int) -> float:
            pushed: list[Blob] = []

            def step(connection: Connection) -> None:
                new = self._contents.image()
                client.push_image(connection, _REPOSITORY, f"t{new.digest[-12:]}", new)
                pushed.extend(new.blobs)

            return self._discarding(pushed, step, clients, seconds)

        return run

    def pull(self) -> Load:
        """Pull the image."""
        return self._steps(lambda at: client.pull_image(at, _REPOSITORY, _TAG, self._image))

    def _wrk(self, target: str, accept: str = "") -> Load:
        return partial(drive_wrk, self.server.port, target, accept)

    def _steps(self, step: Callable[[Connection], None]) -> Load:
        return partial(drive, self.server.connect, step)

    def _pushes(self, new: Source, push: Callable[[Connection, str, Blob], None]) -> Load:
        def run(clients: int, seconds: int) -> float:
            pushed: list[Blob] = []

            def step(connection: Connection) -> None:
                blob = new.take()
                push(connection, _REPOSITORY, blob)
                pushed.append(blob)

            return self._discarding(pushed, step, clients, seconds)

        return run

    def _discarding(
        self, pushed: list[Blob], step: Callable[[Connection], None], clients: int, seconds: int
    ) -> float:
        rate = drive(self.server.connect, step, clients, seconds)
        self.server.discard([blob.digest for blob in pushed])
        return rate


@dataclass(frozen=True, slots=True)
class Workload:
    """One row of the table; a figure is operations a second times `amount`, in `unit`."""

    name: str
    title: str
    load: Callable[[Bed], Load]
    amount: float = 1
    unit: str = "/s"


WORKLOADS: Final = (
    Workload("get-64m", "blob GET 64 MiB", Bed.get_large, 64, "MiB/s"),
    Workload("get-1k", "blob GET 1 KiB", Bed.get_small),
    Workload("put-64m", "blob PUT 64 MiB", Bed.put_large, 64, "MiB/s"),
    Workload("put-64m-once", "PUT 64 MiB at once", Bed.put_large_at_once, 64, "MiB/s"),
    Workload("put-1k", "blob PUT 1 KiB", Bed.put_small),
    Workload("tag", "manifest GET by tag", Bed.get_tag),
    Workload("digest", "manifest GET by digest", Bed.get_digest),
    Workload("push", "push of 3 x 1 MiB", Bed.push),
    Workload("pull", "pull of 3 x 1 MiB", Bed.pull),
)
