"""Container images on disk, built with the standard library alone: no container tool takes part.

A layer is a tar stream, plain or gzip'd, given as bytes or as a file; it is stored gzip'd. Every
image carries a random label in its configuration, so that no two calls produce the same manifest.
Nothing here holds a layer given as a file, or a large layer, in memory.
"""

import hashlib
import io
import json
import os
import secrets
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
REF_NAME: Final = "org.opencontainers.image.ref.name"

AMD64: Final = "linux/amd64"
ARM64: Final = "linux/arm64"
ARMV7: Final = "linux/arm/v7"

EMPTY_LAYER: Final = bytes.fromhex(
    "1f8b080000096e8800ff621805a360148c5800080000ffff2eafb5ef00040000"
)
"""An empty tar (1,024 zero bytes), gzip'd: byte for byte what Docker and Podman use for it."""

_CHUNK: Final = 1 << 20
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_WBITS: Final = 31
_TAR_BLOCK: Final = 512

Layer = bytes | Path


@dataclass(frozen=True, slots=True)
class Blob:
    """What a descriptor says about a blob."""

    media_type: str
    digest: str
    size: int

    def descriptor(self) -> dict[str, object]:
        """Return the JSON form of the descriptor."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True, slots=True)
class Image:
    """An image of one platform inside an OCI layout."""

    folder: Path
    tag: str
    manifest: Blob
    config: Blob
    layers: tuple[Blob, ...]

    @property
    def digest(self) -> str:
        """Return the digest of the manifest."""
        return self.manifest.digest

    @property
    def source(self) -> str:
        """Return the image's name as skopeo, podman and buildah write it."""
        return f"oci:{self.folder}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Index:
    """A multi-platform image inside an OCI layout."""

    folder: Path
    tag: str
    manifest: Blob
    images: Mapping[str, Image]

    @property
    def digest(self) -> str:
        """Return the digest of the index."""
        return self.manifest.digest

    @property
    def source(self) -> str:
        """Return the index's name as skopeo, podman and buildah write it."""
        return f"oci:{self.folder}:{self.tag}"


@dataclass(frozen=True, slots=True)
class DockerArchive:
    """A file for `docker load`."""

    path: Path
    tag: str
    image_id: str


@dataclass(slots=True)
class _Meter:
    """The digest and the size of the bytes that passed."""

    size: int = 0
    _sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, chunk: bytes) -> None:
        """Count one chunk."""
        self._sha256.update(chunk)
        self.size += len(chunk)

    def through(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Count every chunk on its way."""
        for chunk in chunks:
            self.add(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        """Return the digest of what passed so far."""
        return f"sha256:{self._sha256.hexdigest()}"


@dataclass(frozen=True, slots=True)
class _StoredLayer:
    """A layer in the blob folder, and the digest of its uncompressed tar."""

    blob: Blob
    diff_id: str


def tar_layer(files: Mapping[str, bytes] | None = None) -> bytes:
    """Return a plain tar of the files; without any, of one small file with random content."""
    if files is None:
        files = {f"layer-{secrets.token_hex(4)}.txt": secrets.token_hex(512).encode()}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in files.items():
            _add_member(tar, name, content)
    return buffer.getvalue()


def large_layer(path: Path, *, size: int) -> Path:
    """Write a plain tar with one file of that many random bytes, and return its path."""
    with path.open("wb") as file:
        for chunk in _random_tar(size):
            file.write(chunk)
    return path


def oci_layout(folder: Path, *, layers: Sequence[Layer], tag: str, platform: str = AMD64) -> Image:
    """Add an image of one platform to the OCI layout in the folder."""
    image = _add_image(folder, [_store_layer(folder, layer) for layer in layers], tag, platform)
    _add_to_layout(folder, tag, image.manifest)
    return image


def oci_index(
    folder: Path,
    *,
    tag: str,
    platforms: Sequence[str] = (AMD64, ARM64, ARMV7),
    shared: Sequence[Layer] = (),
) -> Index:
    """Add a multi-platform image: per platform the shared layers and a random one of its own."""
    images = {
        platform: _add_image(
            folder,
            [_store_layer(folder, layer) for layer in (*shared, tar_layer())],
            tag,
            platform,
        )
        for platform in platforms
    }
    index = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            image.manifest.descriptor() | {"platform": _platform(platform)}
            for platform, image in images.items()
        ],
    }
    manifest = _store(folder, OCI_INDEX, [_encode(index)])
    _add_to_layout(folder, tag, manifest)
    return Index(folder, tag, manifest, images)


def empty_layer_image(folder: Path, *, tag: str) -> Image:
    """Add an image with a random layer and an empty one on top of it."""
    return oci_layout(folder, layers=[tar_layer(), EMPTY_LAYER], tag=tag)


def large_image(folder: Path, *, tag: str, size: int) -> Image:
    """Add an image with one incompressible layer of a little more than that many bytes."""
    layer = _store_plain(folder, _random_tar(size), level=0)
    image = _add_image(folder, [layer], tag, AMD64)
    _add_to_layout(folder, tag, image.manifest)
    return image


def oci_archive(path: Path, image: Image | Index) -> Path:
    """Pack an OCI layout into a tar, for `ctr images import`, and return its path."""
    with tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for file in sorted(image.folder.rglob("*")):
            tar.add(file, arcname=str(file.relative_to(image.folder)), recursive=False)
    return path


def docker_archive(path: Path, *, layers: Sequence[Layer], tag: str) -> DockerArchive:
    """Write a file for `docker load`; the tag is a full name such as `127.0.0.1:5000/app:v1`."""
    diff_ids = [_diff_id(layer) for layer in layers]
    config = _encode(_config(diff_ids, AMD64))
    digest = hashlib.sha256(config).hexdigest()
    names = [f"layer-{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": f"{digest}.json", "RepoTags": [tag], "Layers": names}]
    with tarfile.open(path, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, layer in zip(names, layers, strict=True):
            _add_member(tar, name, layer)
        _add_member(tar, f"{digest}.json", config)
        _add_member(tar, "manifest.json", json.dumps(manifest).encode())
    return DockerArchive(path, tag, f"sha256:{digest}")


def _add_member(tar: tarfile.TarFile, name: str, content: Layer) -> None:
    """Add a file to a tar, from memory or from disk."""
    info = tarfile.TarInfo(name)
    if isinstance(content, bytes):
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
        return
    info.size = content.stat().st_size
    with content.open("rb") as file:
        tar.addfile(info, file)


def _random_tar(size: int) -> Iterator[bytes]:
    """Yield a tar with one file of random bytes, chunk by chunk."""
    info = tarfile.TarInfo(f"large-{secrets.token_hex(4)}.bin")
    info.size = size
    yield info.tobuf(tarfile.GNU_FORMAT)
    for start in range(0, size, _CHUNK):
        yield os.urandom(min(_CHUNK, size - start))
    yield bytes(-size % _TAR_BLOCK + 2 * _TAR_BLOCK)


def _chunks(layer: Layer) -> Iterator[bytes]:
    """Yield a layer chunk by chunk."""
    if isinstance(layer, bytes):
        yield layer
        return
    with layer.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _is_gzip(layer: Layer) -> bool:
    """Tell whether a layer is gzip'd already."""
    return next(_chunks(layer), b"").startswith(_GZIP_MAGIC)


def _gzipped(chunks: Iterable[bytes], level: int) -> Iterator[bytes]:
    """Compress a stream."""
    packer = zlib.compressobj(level, wbits=_GZIP_WBITS)
    for chunk in chunks:
        yield packer.compress(chunk)
    yield packer.flush()


def _gunzipped(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Decompress a stream."""
    unpacker = zlib.decompressobj(wbits=_GZIP_WBITS)
    for chunk in chunks:
        yield unpacker.decompress(chunk)
    yield unpacker.flush()


def _diff_id(layer: Layer) -> str:
    """Return the digest of a layer's uncompressed tar."""
    chunks = _chunks(layer)
    meter = _Meter()
    for chunk in _gunzipped(chunks) if _is_gzip(layer) else chunks:
        meter.add(chunk)
    return meter.digest


def _store(folder: Path, media_type: str, chunks: Iterable[bytes]) -> Blob:
    """Write a blob under its digest."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blobs / f".partial-{secrets.token_hex(8)}"
    meter = _Meter()
    with partial.open("wb") as file:
        for chunk in meter.through(chunks):
            file.write(chunk)
    partial.replace(blobs / meter.digest.removeprefix("sha256:"))
    return Blob(media_type, meter.digest, meter.size)


def _store_plain(folder: Path, chunks: Iterable[bytes], *, level: int) -> _StoredLayer:
    """Compress a plain tar into a blob."""
    meter = _Meter()
    blob = _store(folder, OCI_LAYER, _gzipped(meter.through(chunks), level))
    return _StoredLayer(blob, meter.digest)


def _store_layer(folder: Path, layer: Layer) -> _StoredLayer:
    """Write a layer as a blob; one that is gzip'd already keeps its bytes."""
    if _is_gzip(layer):
        return _StoredLayer(_store(folder, OCI_LAYER, _chunks(layer)), _diff_id(layer))
    return _store_plain(folder, _chunks(layer), level=6)


def _add_image(folder: Path, layers: Sequence[_StoredLayer], tag: str, platform: str) -> Image:
    """Write the configuration and the manifest of an image."""
    config_json = _config([layer.diff_id for layer in layers], platform)
    config = _store(folder, OCI_CONFIG, [_encode(config_json)])
    blobs = tuple(layer.blob for layer in layers)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor(),
        "layers": [blob.descriptor() for blob in blobs],
    }
    return Image(folder, tag, _store(folder, OCI_MANIFEST, [_encode(manifest)]), config, blobs)


def _add_to_layout(folder: Path, tag: str, manifest: Blob) -> None:
    """Let the layout's tag name the manifest, beside the tags that are there already."""
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    path = folder / "index.json"
    entries = json.loads(path.read_text())["manifests"] if path.exists() else []
    others = [entry for entry in entries if entry["annotations"][REF_NAME] != tag]
    entry = manifest.descriptor() | {"annotations": {REF_NAME: tag}}
    path.write_text(json.dumps({"schemaVersion": 2, "manifests": [*others, entry]}))


def _config(diff_ids: Sequence[str], platform: str) -> dict[str, object]:
    """Return an image configuration that no other image has."""
    return {
        **_platform(platform),
        "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": ["/hello"], "Labels": {"test.unique": secrets.token_hex(16)}},
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "test"} for _ in diff_ids],
    }


def _platform(platform: str) -> dict[str, str]:
    """Split a platform such as linux/arm/v7."""
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def _encode(document: object) -> bytes:
    """Return a document as compact JSON."""
    return json.dumps(document, separators=(",", ":")).encode()
