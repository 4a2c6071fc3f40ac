"""Manifests: what a body says it is, and what it refers to.

A manifest is stored byte for byte and never rewritten; it is parsed only to learn its type, what
it needs, its subject, and what a listing of referrers says about it.  The rules are those of
OCI image-spec 1.1 and Docker schema 2; schema 1 is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from node.digest import Digest
from node.errors import DigestInvalid, DigestUnsupported, ManifestInvalid

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
IMAGE_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
MEDIA_TYPES: Final = INDEX_TYPES | IMAGE_TYPES | {OCI_ARTIFACT}

# RFC 6838 4.2: 127 characters each, and the slash. Types travel in registers, so they are bounded.
_TYPE_LENGTH: Final = 255

_MEMBERS: Final = {
    name.casefold(): name
    for name in (
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "blobs"),
        *("subject", "annotations"),
    )
}
_DESCRIPTOR_MEMBERS: Final = {
    name.casefold(): name
    for name in (
        *("mediaType", "digest", "size", "urls", "annotations", "data", "platform"),
        "artifactType",
    )
}

# Layers that stay where their vendor put them, if they say where (image-spec layer.md; Docker's
# foreign layers): they need not be pushed.
_ELSEWHERE: Final = ("nondistributable", "foreign")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What one content item is: media type, digest, size in bytes."""

    media_type: str
    digest: Digest
    size: int


# What one manifest may refer to: each is looked up and written when it is pushed.
MAX_NEEDS: Final = 5000
# Of a manifest with a subject: lists of referrers copy them, and etcd takes 1.5 MiB at once.
MAX_ANNOTATIONS_BYTES: Final = 1_200_000


class Needs(NamedTuple):
    """What a manifest refers to and can't be without, or a part of that."""

    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All of them."""
        return tuple(d.digest for d in (*self.blobs, *self.children))

    def parts(self, size: int) -> Iterator[Needs]:
        """The same, in parts of a size; a child counts twice, as it takes twice the operations."""
        for start in range(0, len(self.blobs), size):
            yield Needs(self.blobs[start : start + size])
        step = max(1, size // 2)
        for start in range(0, len(self.children), step):
            yield Needs((), self.children[start : start + step])


@dataclass(frozen=True, slots=True)
class Manifest:
    """A parsed manifest or index; `blobs` and `children` keep the body's order, once each."""

    media_type: str
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> Needs:
        """What has to be there for it to be live."""
        return Needs(self.blobs, self.children)

    @property
    def is_index(self) -> bool:
        """Whether it refers to manifests rather than to blobs."""
        return self.media_type in INDEX_TYPES


def parse_manifest(body: bytes, content_type: str | None, *, pushed: bool = False) -> Manifest:
    """Read a body; `content_type` is what the client said, None if it said nothing.

    What is `pushed` has to read the same to every client; what is stored already was taken, maybe
    by a site that did not look at that.

    Raises:
        ManifestInvalid: Not one of the stored types, or not what it says it is.
    """
    document = _document(body, _object if pushed else dict)
    if pushed:
        _require_one_reading(document)
    media_type = _media_type(document, content_type)
    _require_version(document, media_type)
    if media_type in INDEX_TYPES:
        if "config" in document or "layers" in document:
            # Type confusion: two clients would read two different images (GHSA-77vh-xpmg-72qh).
            raise ManifestInvalid("an index may not have config or layers")
        blobs: tuple[Descriptor, ...] = ()
        children = _descriptors(document, "manifests")
        artifact_type = _text(document, "artifactType")
    elif media_type == OCI_ARTIFACT:
        blobs = _descriptors(document, "blobs", required=False)
        children = ()
        artifact_type = _text(document, "artifactType")
    else:
        if "manifests" in document:
            raise ManifestInvalid("an image manifest may not have manifests")
        config = _descriptor(document.get("config"), "config")
        blobs = _unique((config, *_descriptors(document, "layers")))
        children = ()
        artifact_type = _text(document, "artifactType") or config.media_type
    if len(blobs) + len(children) > MAX_NEEDS:
        raise ManifestInvalid(f"it refers to more than {MAX_NEEDS} blobs or manifests")
    annotations = _annotations(document)
    subject = document.get("subject")
    if subject is not None and _bytes(annotations) > MAX_ANNOTATIONS_BYTES:
        raise ManifestInvalid(
            f"next to a subject annotations may have {MAX_ANNOTATIONS_BYTES} bytes at the most"
        )
    return Manifest(
        media_type=media_type,
        blobs=blobs,
        children=children,
        subject=None if subject is None else _descriptor(subject, "subject"),
        artifact_type=artifact_type,
        annotations=annotations,
    )


def _bytes(annotations: Mapping[str, str]) -> int:
    return sum(len(t.encode("utf-8", "replace")) for pair in annotations.items() for t in pair)


def _document(
    body: bytes, make_object: Callable[[list[tuple[str, Any]]], dict[str, Any]]
) -> dict[str, Any]:
    try:
        document = json.loads(
            body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=make_object
        )
    except RecursionError as err:
        raise ManifestInvalid("the body is nested too deeply") from err
    except ValueError as err:
        raise ManifestInvalid("the body is not JSON in UTF-8") from err
    if not isinstance(document, dict):
        raise ManifestInvalid("the body is not a JSON object")
    return document


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Which one counts depends on who reads it.
        raise ManifestInvalid("a name stands twice in one object")
    return found


def _require_one_reading(document: Mapping[str, Any]) -> None:
    """Refuse what two clients would read as two images (GHSA-77vh-xpmg-72qh)."""
    _require_spelling(document, _MEMBERS, "the body")
    for name in ("config", "subject"):
        _require_spelling(document.get(name), _DESCRIPTOR_MEMBERS, name)
    for name in ("layers", "manifests", "blobs"):
        items = document.get(name)
        for n, item in enumerate(items if isinstance(items, list) else ()):
            _require_spelling(item, _DESCRIPTOR_MEMBERS, f"{name}[{n}]")


def _require_spelling(item: object, names: Mapping[str, str], where: str) -> None:
    """Refuse what only some clients take for a member: Go's do not look at the case of letters."""
    for name in item if isinstance(item, dict) else ():
        if names.get(name.casefold(), name) != name:
            raise ManifestInvalid(f"{where} has {name[:100]!r} for {names[name.casefold()]!r}")


def _require_version(document: Mapping[str, Any], media_type: str) -> None:
    # The artifact manifest of image-spec 1.1's drafts has none, and ORAS wrote it so.
    version = document.get("schemaVersion", 2 if media_type == OCI_ARTIFACT else None)
    if version != 2 or isinstance(version, bool):
        raise ManifestInvalid("schemaVersion must be 2")


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _media_type(document: Mapping[str, Any], content_type: str | None) -> str:
    said = (content_type or "").partition(";")[0].strip().lower() or None
    inside = _text(document, "mediaType")
    if said and inside and said != inside:
        raise ManifestInvalid("mediaType and Content-Type differ")
    media_type = said or inside or (OCI_INDEX if "manifests" in document else OCI_MANIFEST)
    if media_type not in MEDIA_TYPES:
        raise ManifestInvalid(f"media type {media_type[:100]!r} is not stored here")
    return media_type


def _descriptors(
    document: Mapping[str, Any], name: str, *, required: bool = True
) -> tuple[Descriptor, ...]:
    items = document.get(name, None if required else [])
    if not isinstance(items, list):
        raise ManifestInvalid(f"{name} must be a list")
    # What need not be here has to be described as well (V5).
    found = [(item, _descriptor(item, f"{name}[{n}]")) for n, item in enumerate(items)]
    return _unique(tuple(content for item, content in found if not _is_elsewhere(item)))


def _is_elsewhere(item: Mapping[str, Any]) -> bool:
    return (
        isinstance(item.get("urls"), list)
        and bool(item["urls"])
        and any(word in item["mediaType"] for word in _ELSEWHERE)
    )


def _descriptor(item: object, where: str) -> Descriptor:
    if not isinstance(item, dict):
        raise ManifestInvalid(f"{where} is not a descriptor")
    media_type, digest, size = item.get("mediaType"), item.get("digest"), item.get("size")
    if not isinstance(media_type, str) or not _is_type(media_type):
        raise ManifestInvalid(f"{where} has no valid mediaType")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise ManifestInvalid(f"{where} has no valid size")
    if not isinstance(digest, str):
        raise ManifestInvalid(f"{where} has no digest")
    try:
        return Descriptor(media_type, Digest.parse(digest), size)
    except (DigestInvalid, DigestUnsupported) as err:
        raise ManifestInvalid(f"{where}: {err}") from err


def _unique(items: tuple[Descriptor, ...]) -> tuple[Descriptor, ...]:
    """Each digest once: a layer may stand twice in an image and is one blob."""
    return tuple({item.digest: item for item in items}.values())


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str) or not _is_type(value):
        raise ManifestInvalid(f"{name} must be text of at most {_TYPE_LENGTH} characters")
    return value


def _is_type(value: object) -> bool:
    """A media type: text that can be a listing's or a register's part."""
    return _is_text(value) and 0 < len(str(value)) <= _TYPE_LENGTH


def _is_text(value: object) -> bool:
    """Text that UTF-8 can hold: JSON's escapes can spell half of a surrogate pair."""
    return isinstance(value, str) and not any("\ud800" <= char <= "\udfff" for char in value)


def _annotations(document: Mapping[str, Any]) -> dict[str, str]:
    found = document.get("annotations")
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(map(_is_text, (*found, *found.values()))):
        raise ManifestInvalid("annotations must be texts by name")
    return found
