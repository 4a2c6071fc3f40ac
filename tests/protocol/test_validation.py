"""What a manifest must be, and what it may be (rows V, MP9, MP13 to MP15)."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from node.manifest import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from tests.registry import (
    CONFIG,
    JSON,
    LAYER,
    OCI_LAYER,
    Client,
    descriptor,
    digest_of,
    image,
    index,
)

SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1"
EMPTY_JSON: Final = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
EMPTY: Final = "application/vnd.oci.empty.v1+json"
CACHE: Final = "application/vnd.buildkit.cacheconfig.v0"
FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
FAR: Final = {"urls": ["https://vendor.example/layer"]}


def _image(*layers: dict[str, Any], **members: object) -> bytes:
    """An image manifest with these layers and members; a member that is None is left out."""
    content = {**json.loads(image()), "layers": list(layers), **members}
    return json.dumps({name: v for name, v in content.items() if v is not None}).encode()


def _index(*children: dict[str, Any]) -> bytes:
    content = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(children)}
    return json.dumps(content).encode()


def _layer(**members: object) -> bytes:
    """An image whose one layer is described by these members as well."""
    return _image({**descriptor(LAYER), **members})


REFUSED: Final = [
    pytest.param(b"", OCI_MANIFEST, id="no body [V3]"),
    pytest.param(b"{", OCI_MANIFEST, id="no JSON [V3]"),
    pytest.param(b"[]", OCI_MANIFEST, id="a list [V3]"),
    pytest.param(b'"text"', OCI_MANIFEST, id="a text [V3]"),
    pytest.param(image() + image(), OCI_MANIFEST, id="two objects [V3]"),
    pytest.param(b"\xff", OCI_MANIFEST, id="no UTF-8 [V3]"),
    pytest.param(image().decode().encode("utf-16"), OCI_MANIFEST, id="UTF-16 [V3]"),
    pytest.param(b"\xef\xbb\xbf" + image(), OCI_MANIFEST, id="a byte order mark [V3]"),
    pytest.param(b"[" * 50_000, OCI_MANIFEST, id="too deep [V3]"),
    pytest.param(_image(schemaVersion=None), OCI_MANIFEST, id="no version [V3]"),
    pytest.param(_image(schemaVersion=3), OCI_MANIFEST, id="version 3 [V3]"),
    pytest.param(_image(schemaVersion="2"), OCI_MANIFEST, id="version as text [V3]"),
    pytest.param(_image(schemaVersion=1), OCI_MANIFEST, id="version 1 [V2]"),
    pytest.param(_image(mediaType=None), f"{SCHEMA1}+json", id="schema 1 [V2]"),
    pytest.param(_image(mediaType=None), f"{SCHEMA1}+prettyjws", id="signed schema 1 [V2]"),
    pytest.param(image(), OCI_INDEX, id="another type [MP9]"),
    pytest.param(image(), DOCKER_MANIFEST, id="another image's type [MP9]"),
    pytest.param(_image(manifests=[]), OCI_MANIFEST, id="an image with manifests [MP9]"),
    pytest.param(index(layers=[]), OCI_INDEX, id="an index with layers [MP9]"),
    pytest.param(_image(Layers=[]), OCI_MANIFEST, id="layers twice, but for the case [MP9]"),
    pytest.param(
        _image()[:-1] + rb', "layer\u017f": []}', OCI_MANIFEST, id="layers in another s [MP9]"
    ),
    pytest.param(_image(Manifests=[]), OCI_MANIFEST, id="manifests in capitals [MP9]"),
    pytest.param(_layer(Digest=digest_of(CONFIG)), OCI_MANIFEST, id="two digests of a layer [MP9]"),
    pytest.param(
        _image()[:-1] + b', "layers": []}', OCI_MANIFEST, id="layers twice in one object [MP9]"
    ),
    pytest.param(index(config=descriptor(CONFIG)), OCI_INDEX, id="an index with config [MP9]"),
    pytest.param(
        _image(mediaType=None, manifests=[]), "", id="an image with manifests, of no type [MP9]"
    ),
    pytest.param(_image(mediaType=None), "application/x", id="unknown type [V9]"),
    pytest.param(_image(mediaType=None), JSON, id="type of any JSON [V9]"),
    pytest.param(_image(mediaType="application/x"), "", id="unknown type inside [V9]"),
    pytest.param(_image(config=None), OCI_MANIFEST, id="no config [V4]"),
    pytest.param(_image(layers=None), OCI_MANIFEST, id="no layers [V4]"),
    pytest.param(_image(layers={}), OCI_MANIFEST, id="layers that are no list [V4]"),
    pytest.param(b'{"schemaVersion": 2}', OCI_INDEX, id="no manifests [V4]"),
    pytest.param(_layer(mediaType=None), OCI_MANIFEST, id="no type of a layer [V5]"),
    pytest.param(_layer(digest=None), OCI_MANIFEST, id="no digest [V5]"),
    pytest.param(_layer(digest="sha256:0"), OCI_MANIFEST, id="a broken digest [V5]"),
    pytest.param(_layer(digest="md5:abc"), OCI_MANIFEST, id="an unknown algorithm [V5]"),
    pytest.param(
        _layer(digest=f"sha256:{digest_of(LAYER)[7:].upper()}"),
        OCI_MANIFEST,
        id="a digest in capitals [V5]",
    ),
    pytest.param(_layer(size=None), OCI_MANIFEST, id="no size [V5]"),
    pytest.param(_layer(size=-1), OCI_MANIFEST, id="a negative size [V5]"),
    pytest.param(_layer(size=1.5), OCI_MANIFEST, id="half a byte [V5]"),
    pytest.param(_layer(size="1"), OCI_MANIFEST, id="a size as text [V5]"),
    pytest.param(_layer(size=True), OCI_MANIFEST, id="a size that is true [V5]"),
    pytest.param(_layer(size=2**64), OCI_MANIFEST, id="a size past 64 bits [V5]"),
    pytest.param(_image(config={"size": 2}), OCI_MANIFEST, id="a broken config [V5]"),
    pytest.param(_image(subject={"size": 2}), OCI_MANIFEST, id="a broken subject [V5]"),
    pytest.param(_index({"size": 2}), OCI_INDEX, id="a broken child [V5]"),
    pytest.param(
        _layer(mediaType=FOREIGN, digest="sha256:0", **FAR),
        OCI_MANIFEST,
        id="a layer elsewhere with a broken digest [V5]",
    ),
]

TAKEN: Final = [
    pytest.param(_image(), id="no layers [MP15 V4]"),
    pytest.param(_index(), id="no manifests [MP15 V4]"),
    pytest.param(_layer(more={"x": [1, None]}), id="members of a layer [MP15]"),
    pytest.param(_image(more={"x": [1]}, layer=7), id="members it doesn't know [MP15]"),
    pytest.param(_image(artifactType="x/y"), id="unknown artifact type [MP15]"),
    pytest.param(_image(config=descriptor(CONFIG, "x/config")), id="unknown config type [MP15]"),
    pytest.param(_layer(mediaType="x/layer"), id="unknown layer type [MP15]"),
    pytest.param(_layer(data="e30="), id="data [MP15 V5]"),
    pytest.param(_layer(data="!"), id="data that is no Base64 [V5]"),
    pytest.param(
        b' {"layers":[],\n"schemaVersion": 2.0e0,"config":'
        + json.dumps(descriptor(CONFIG)).encode()
        + b"}\n",
        id="odd spelling [MP15]",
    ),
    pytest.param(
        _image(config=descriptor(CONFIG, EMPTY)), id="empty config without artifact type [V6]"
    ),
    pytest.param(
        _image(descriptor(CONFIG, EMPTY), config=descriptor(CONFIG, EMPTY), artifactType="x/y"),
        id="an artifact as clients write it [V6 V7]",
    ),
    pytest.param(
        _layer(mediaType="application/vnd.oci.image.layer.nondistributable.v1.tar", **FAR),
        id="nondistributable layer that is here [MP14]",
    ),
    pytest.param(_layer(**FAR), id="URLs of a layer that is here [MP14]"),
    pytest.param(
        _index(descriptor(LAYER, OCI_LAYER), descriptor(CONFIG, CACHE)),
        id="a builder's cache: blobs as children [MP13]",
    ),
]


@pytest.mark.parametrize(("body", "media_type"), REFUSED)
async def test_refused(stocked: Client, body: bytes, media_type: str) -> None:
    """What is no manifest is 400 MANIFEST_INVALID, and is not there."""
    path = stocked.path("manifests/v1")
    headers = {"Content-Type": media_type} if media_type else {}
    reply = await stocked.ask("PUT", path, body, headers)
    assert (reply.status, reply.code) == (400, "MANIFEST_INVALID")
    for place in (path, stocked.path(f"manifests/{digest_of(body)}")):
        assert (await stocked.ask("GET", place)).status == 404


@pytest.mark.parametrize("body", TAKEN)
async def test_taken_as_it_is(stocked: Client, body: bytes) -> None:
    """What clients may put into a manifest is taken, and comes back byte for byte."""
    await stocked.push_manifest(body, "v1")
    assert (await stocked.ask("GET", stocked.path("manifests/v1"))).body == body


@pytest.mark.parametrize(
    ("image_type", "index_type"),
    [
        pytest.param(OCI_MANIFEST, OCI_INDEX, id="V1-MP15-OCI"),
        pytest.param(DOCKER_MANIFEST, DOCKER_LIST, id="V1-MP15-docker"),
        pytest.param(DOCKER_MANIFEST, OCI_INDEX, id="V1-MP15-mixed"),
    ],
)
async def test_indexes_nest(stocked: Client, image_type: str, index_type: str) -> None:
    """Images and indexes of both families are taken, and an index may hold indexes."""
    child = _image(descriptor(LAYER), mediaType=image_type)
    await stocked.push_manifest(child)
    for depth in range(3):
        children = [descriptor(child, image_type if depth == 0 else index_type)]
        child = json.dumps(
            {"schemaVersion": 2, "mediaType": index_type, "manifests": children}
        ).encode()
        await stocked.push_manifest(child, f"v{depth}")
        reply = await stocked.ask("GET", stocked.path(f"manifests/v{depth}"))
        assert (reply.body, reply.headers["Content-Type"]) == (child, index_type)


@pytest.mark.parametrize(
    "media_type",
    [
        pytest.param(FOREIGN, id="Docker's foreign layer [V8 MP14]"),
        pytest.param(
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            id="OCI's nondistributable layer [MP14]",
        ),
    ],
)
async def test_layers_that_stay_elsewhere(stocked: Client, media_type: str) -> None:
    """A layer that says where its vendor has it need not be here; one that does not must be."""
    far = descriptor(b"never pushed", media_type)
    path = stocked.path("manifests/v1")
    unsaid: list[dict[str, Any]] = [{}, {"urls": []}]
    for without in unsaid:
        reply = await stocked.ask("PUT", path, _image({**far, **without}))
        assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    body = _image({**far, **FAR}, descriptor(LAYER))
    await stocked.push_manifest(body, "v1")
    assert (await stocked.ask("GET", path)).body == body
    blob = stocked.path(f"blobs/{far['digest']}")
    assert (await stocked.ask("GET", blob)).status == 404


@pytest.mark.parametrize("row", ["MP14"])
async def test_urls_replace_no_ordinary_layer(stocked: Client, row: str) -> None:
    """An ordinary layer has to be here, wherever else it may be."""
    body = _image({**descriptor(b"never pushed"), **FAR})
    reply = await stocked.ask("PUT", stocked.path("manifests/v1"), body)
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize("row", ["MP13"])
async def test_children_that_are_nowhere(stocked: Client, row: str) -> None:
    """A child that is neither a manifest nor a blob of the repository is named."""
    body = _index(descriptor(LAYER, OCI_LAYER), descriptor(b"never pushed", OCI_MANIFEST))
    reply = await stocked.ask("PUT", stocked.path("manifests/v1"), body)
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    found = [error["detail"]["digest"] for error in reply.json()["errors"]]
    assert found == [digest_of(b"never pushed")]


@pytest.mark.parametrize("row", ["V7"])
async def test_the_empty_blob_has_to_be_pushed(registry: Client, row: str) -> None:
    """The empty JSON object is a blob like any other: unknown until it is pushed."""
    empty = descriptor(b"{}", EMPTY)
    assert empty["digest"] == EMPTY_JSON
    body = _image(empty, config=empty, artifactType="x/y")
    path = registry.path("manifests/v1")
    reply = await registry.ask("PUT", path, body)
    assert (reply.status, reply.code) == (400, "MANIFEST_BLOB_UNKNOWN")
    assert await registry.push_blob(b"{}") == EMPTY_JSON
    assert (await registry.ask("PUT", path, body)).status == 201


@pytest.mark.parametrize("row", ["V10"])
async def test_a_chart(stocked: Client, row: str) -> None:
    """A Helm chart is an image of types of its own, its version's plus an underscore (N6)."""
    helm = "application/vnd.cncf.helm"
    body = _image(
        descriptor(LAYER, f"{helm}.chart.content.v1.tar+gzip"),
        descriptor(CONFIG, f"{helm}.chart.provenance.v1.prov"),
        config=descriptor(CONFIG, f"{helm}.config.v1+json"),
    )
    await stocked.push_manifest(body, "1.2.3_build.5")
    found = await stocked.ask("GET", stocked.path("manifests/1.2.3_build.5"))
    assert (found.body, found.headers["Content-Type"]) == (body, OCI_MANIFEST)
