"""Manifests: what is stored, what is refused, and what a manifest is said to need."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.digest import Digest
from node.errors import ManifestInvalid
from node.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MAX_NEEDS,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    parse_manifest,
)

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def _descriptor(content: bytes, media_type: str = LAYER_TYPE, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": 3, **more}


def _image(**changes: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(b"config", CONFIG_TYPE),
        "layers": [_descriptor(b"one"), _descriptor(b"two")],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not ...}


def _index(**changes: Any) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [_descriptor(b"m", OCI_MANIFEST)],
        **changes,
    }
    return {key: value for key, value in document.items() if value is not ...}


def _parse(document: object, content_type: str | None = None) -> Any:
    return parse_manifest(json.dumps(document).encode(), content_type)


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_needs_its_config_and_layers(media_type: str) -> None:
    """Both families of image manifests name their blobs, each once."""
    twice = [_descriptor(b"one"), _descriptor(b"two"), _descriptor(b"one")]
    manifest = _parse(_image(mediaType=media_type, layers=twice), media_type)
    assert [blob.digest for blob in manifest.blobs] == [
        Digest.of(content) for content in (b"config", b"one", b"two")
    ]
    assert manifest.media_type == media_type
    assert not manifest.is_index
    assert manifest.artifact_type == CONFIG_TYPE


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_LIST])
def test_an_index_needs_its_children(media_type: str) -> None:
    """Both families of indexes name manifests, and no blobs."""
    manifest = _parse(_index(mediaType=media_type), media_type)
    assert manifest.is_index
    assert manifest.blobs == ()
    assert [child.digest for child in manifest.children] == [Digest.of(b"m")]
    assert manifest.artifact_type is None


@pytest.mark.parametrize(
    ("document", "content_type", "media_type"),
    [
        (_image(), OCI_MANIFEST + "; charset=utf-8", OCI_MANIFEST),
        (_image(mediaType=...), OCI_MANIFEST, OCI_MANIFEST),
        (_image(mediaType=...), None, OCI_MANIFEST),
        (_image(), None, OCI_MANIFEST),
        (_index(mediaType=...), None, OCI_INDEX),
        (_index(manifests=[]), None, OCI_INDEX),
        (_image(layers=[]), None, OCI_MANIFEST),
        (_image(unknown={"deep": [1]}, annotations={"a": "b"}), None, OCI_MANIFEST),
        ({"schemaVersion": 2, "mediaType": OCI_ARTIFACT, "blobs": []}, None, OCI_ARTIFACT),
        ({"schemaVersion": 2, "mediaType": OCI_ARTIFACT}, OCI_ARTIFACT, OCI_ARTIFACT),
        ({"mediaType": OCI_ARTIFACT}, OCI_ARTIFACT, OCI_ARTIFACT),
    ],
)
def test_a_type_is_said_or_found(document: object, content_type: str, media_type: str) -> None:
    """MP8, MP15, V4: parameters are ignored, a missing type is the body's, extras are kept."""
    assert _parse(document, content_type).media_type == media_type


def test_foreign_layers_need_not_be_here() -> None:
    """MP14, V8: a layer that says where its vendor put it is not stored."""
    foreign = _descriptor(
        b"far",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        urls=["https://vendor.example/far"],
    )
    manifest = _parse(_image(layers=[foreign, _descriptor(b"near")]))
    assert [blob.digest for blob in manifest.blobs][1:] == [Digest.of(b"near")]
    without_urls = dict(foreign, urls=[])
    assert len(_parse(_image(layers=[without_urls])).blobs) == 2


def test_a_subject_is_read_from_images_and_indexes() -> None:
    """MP6: both may have one, and it need not be here."""
    subject = _descriptor(b"subject", OCI_MANIFEST)
    for document in (_image(subject=subject), _index(subject=subject, artifactType="x/y")):
        assert _parse(document).subject.digest == Digest.of(b"subject")


@pytest.mark.parametrize(
    ("document", "content_type"),
    [
        ([], None),
        ("text", None),
        (None, None),
        ({}, None),
        (_image(schemaVersion=1), None),
        (_image(schemaVersion=...), None),
        (_image(schemaVersion=True), None),
        (_image(schemaVersion="2"), None),
        (_image(), OCI_INDEX),
        (_image(mediaType=...), "application/json"),
        (_image(mediaType="application/vnd.docker.distribution.manifest.v1+json"), None),
        (_image(mediaType=7), None),
        (_image(config=...), None),
        (_image(layers=...), None),
        (_image(layers={}), None),
        (_image(layers=[7]), None),
        (_image(manifests=[]), None),
        (_index(config=_descriptor(b"c")), None),
        (_index(layers=[]), None),
        (_index(manifests=...), None),
        (_image(layers=[_descriptor(b"x", size=-1)]), None),
        (_image(layers=[_descriptor(b"x", size=1.5)]), None),
        (_image(layers=[_descriptor(b"x", size=True)]), None),
        (_image(layers=[_descriptor(b"x", size=2**64)]), None),
        (_image(layers=[_descriptor(b"x", digest="sha256:zz")]), None),
        (_image(layers=[_descriptor(b"x", digest="md5:" + "a" * 32)]), None),
        (_image(layers=[_descriptor(b"x", digest=7)]), None),
        (_image(layers=[_descriptor(b"x", mediaType="")]), None),
        (_image(layers=[_descriptor(b"x", mediaType="\ud800")]), None),
        (_image(config=_descriptor(b"x", mediaType="\udfff")), None),
        (_image(subject="sha256:x"), None),
        (_image(annotations=[]), None),
        (_image(annotations={"a": 1}), None),
        (_image(annotations={"a": "\ud800"}), None),
        (_image(annotations={"\udfff": "a"}), None),
        (_image(artifactType=1), None),
        (_image(artifactType=[]), None),
        (_image(artifactType="x" * 256), None),
        (_image(config=_descriptor(b"x", mediaType="x" * 256)), None),
        (_image(artifactType="\udc00"), None),
    ],
)
def test_what_is_no_manifest_is_refused(document: object, content_type: str | None) -> None:
    """MP9, V2–V5: wrong versions, confused types and broken descriptors are not stored."""
    with pytest.raises(ManifestInvalid):
        _parse(document, content_type)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"schemaVersion": NaN}',
        b"\x00",
        b"2" * 5000,
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    """V3: one JSON object in UTF-8, however hostile the rest."""
    with pytest.raises(ManifestInvalid):
        parse_manifest(body, OCI_MANIFEST)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_lacks_are_refused(value: str) -> None:
    """V3: what only some parsers read is stored for none, wherever it stands."""
    body = b'{"schemaVersion": 2, "manifests": [], "x": %s}'
    parse_manifest(body % b"1", OCI_INDEX)
    with pytest.raises(ManifestInvalid):
        parse_manifest(body % value.encode(), OCI_INDEX)


def test_a_manifest_refers_to_thousands_at_the_most() -> None:
    """A limit of its own keeps one push from holding up all others."""
    child = {"mediaType": OCI_MANIFEST, "size": 1}
    children = [{**child, "digest": f"sha256:{n:064x}"} for n in range(MAX_NEEDS + 1)]
    document = {"schemaVersion": 2, "manifests": children[:-1]}
    assert len(parse_manifest(json.dumps(document).encode(), OCI_INDEX).children) == MAX_NEEDS
    document["manifests"] = children
    with pytest.raises(ManifestInvalid, match="more than 5000"):
        parse_manifest(json.dumps(document).encode(), OCI_INDEX)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["config", "layers", "manifests", "mediaType", "digest", "size", "urls"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from([None, OCI_MANIFEST, OCI_INDEX, OCI_ARTIFACT, DOCKER_LIST]))
def test_no_document_breaks_the_parser(document: object, content_type: str | None) -> None:
    """Whatever the JSON, it is a manifest or refused as none."""
    if isinstance(document, dict):
        document = {"schemaVersion": 2, **document}
    try:
        _parse(document, content_type)
    except ManifestInvalid:
        return


def test_what_was_taken_before_is_read_as_ever() -> None:
    """A rule for what is pushed keeps nothing from being replicated, or deleted."""
    twice = b'{"layers": [], ' + json.dumps(_image()).encode().removeprefix(b"{")
    with pytest.raises(ManifestInvalid):
        parse_manifest(twice, OCI_MANIFEST, pushed=True)
    assert parse_manifest(twice, OCI_MANIFEST).media_type == OCI_MANIFEST
