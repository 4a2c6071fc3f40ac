"""What is pushed and pulled: bytes that nobody can have stored before, and cost nothing to make.

A registry need not write what it already has, so every upload must be new.  Hashing 64 MiB anew
for each would measure the client.  So the contents of a size share all but their last bytes: they
are sent from one file in the page cache, and hashed once.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE: Final = "application/vnd.oci.image.layer.v1.tar+gzip"

_TAIL_BYTES: Final = 24


@dataclass(frozen=True, slots=True)
class Blob:
    """`shared_bytes` of a file (a descriptor), then the tail."""

    digest: str
    file: int
    shared_bytes: int
    tail: bytes

    @property
    def size(self) -> int:
        """In bytes."""
        return self.shared_bytes + len(self.tail)


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest and the blobs it needs, its config first."""

    blobs: tuple[Blob, ...]
    manifest: bytes

    @property
    def digest(self) -> str:
        """The manifest's."""
        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"


class Source:
    """New blobs of one size, without end; `take` may be called by any thread."""

    def __init__(self, size: int, file: int) -> None:
        self._shared_bytes = size - _TAIL_BYTES
        self._file = file
        self._hash = hashlib.sha256()
        for offset in range(0, self._shared_bytes, 1 << 20):
            data = os.urandom(min(1 << 20, self._shared_bytes - offset))
            os.pwrite(file, data, offset)
            self._hash.update(data)
        self._numbers = count()

    def take(self) -> Blob:
        """A blob that is like no other."""
        tail = f"{next(self._numbers):0{_TAIL_BYTES}d}".encode()
        whole = self._hash.copy()
        whole.update(tail)
        return Blob(f"sha256:{whole.hexdigest()}", self._file, self._shared_bytes, tail)


@contextmanager
def source(size: int) -> Iterator[Source]:
    """Blobs of a size of at least 32 bytes, for as long as the block lasts."""
    with tempfile.TemporaryFile() as file:
        yield Source(size, file.fileno())


def image(config: Source, layer: Source, layers: int) -> Image:
    """An image of new blobs."""
    blobs = (config.take(), *(layer.take() for _ in range(layers)))
    described = [_describe(blob, LAYER_TYPE) for blob in blobs[1:]]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _describe(blobs[0], CONFIG_TYPE),
        "layers": described,
    }
    return Image(blobs, json.dumps(manifest).encode())


def _describe(blob: Blob, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": blob.digest, "size": blob.size}
