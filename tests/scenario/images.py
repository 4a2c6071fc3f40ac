"""The content that the simulated sites push: few images, much sharing, every kind of edge.

c, d   images that share a layer        k      BuildKit's cache index: its children are blobs
i      index of c                       s      a signature: its subject is c
j      index of c and d                 x      index of i
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from node.digest import Digest
from node.manifest import MEDIA_TYPES, OCI_INDEX, OCI_MANIFEST, Manifest, parse_manifest

_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"

# All bytes there are, by digest.
CONTENT: Final[dict[Digest, bytes]] = {}


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest that somebody pushes."""

    name: str
    body: bytes
    digest: Digest
    manifest: Manifest

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """The blobs to upload first."""
        return tuple(
            item.digest
            for item in (*self.manifest.blobs, *self.manifest.children)
            if item.media_type not in MEDIA_TYPES
        )

    @property
    def children(self) -> tuple[Image, ...]:
        """The manifests to push first."""
        return tuple(
            BY_DIGEST[child.digest]
            for child in self.manifest.children
            if child.media_type in MEDIA_TYPES
        )


def _descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    digest = Digest.of(content)
    CONTENT[digest] = content
    return {"mediaType": media_type, "digest": str(digest), "size": len(content)}


def _of(image: Image) -> dict[str, Any]:
    return _descriptor(image.body, image.manifest.media_type)


def _image(name: str, **document: Any) -> Image:
    body = json.dumps({"schemaVersion": 2, **document}).encode()
    digest = Digest.of(body)
    CONTENT[digest] = body
    return Image(name, body, digest, parse_manifest(body, None))


def _leaf(name: str, *layers: str, subject: Image | None = None) -> Image:
    return _image(
        name,
        mediaType=OCI_MANIFEST,
        config=_descriptor(f"config of {name}".encode(), _CONFIG),
        layers=[_descriptor(layer.encode(), _LAYER) for layer in layers],
        **({} if subject is None else {"subject": _of(subject)}),
    )


def _index(name: str, *children: dict[str, Any]) -> Image:
    return _image(name, mediaType=OCI_INDEX, manifests=list(children))


_C = _leaf("c", "base")
_D = _leaf("d", "base", "extra")
_I = _index("i", _of(_C))
_S = _leaf("s", "signature", subject=_C)

IMAGES: Final = {
    image.name: image
    for image in (
        _C,
        _D,
        _S,
        _I,
        _index("j", _of(_C), _of(_D)),
        _index("x", _of(_I)),
        _index("k", _descriptor(b"base", _LAYER), _descriptor(b"cache", "application/x-cache")),
    )
}
BY_DIGEST: Final = {image.digest: image for image in IMAGES.values()}
