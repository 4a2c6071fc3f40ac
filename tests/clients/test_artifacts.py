"""What helm, cosign and BuildKit put into a registry, made by hand and read by real clients."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
from oras.client import OrasClient

from tests.clients.images import Image as Layout
from tests.clients.images import oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import whole
from tests.faults.registry import OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, Blob, Image, Registry
from tests.sites import Site

pytestmark = pytest.mark.slow

HELM_CONFIG: Final = "application/vnd.cncf.helm.config.v1+json"
HELM_CHART: Final = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
HELM_PROVENANCE: Final = "application/vnd.cncf.helm.chart.provenance.v1.prov"
COSIGN_PAYLOAD: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
COSIGN_SIGNATURE: Final = "dev.cosignproject.cosign/signature"
SIGSTORE_BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
EMPTY: Final = Blob("application/vnd.oci.empty.v1+json", b"{}")
CACHE_CONFIG: Final = "application/vnd.buildkit.cacheconfig.v0"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of an artifact, with its annotations."""

    blob: Blob
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def descriptor(self) -> dict[str, object]:
        """Return the descriptor in the manifest."""
        return self.blob.descriptor | {"annotations": dict(self.annotations)}


def artifact(config: Blob, *layers: Layer, **fields: object) -> Image:
    """Return an artifact of these layers; the fields are those of its manifest beside them."""
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.descriptor,
        "layers": [layer.descriptor for layer in layers],
        **fields,
    }
    blobs = (config, *(layer.blob for layer in layers))
    return Image(Blob(OCI_MANIFEST, json.dumps(document).encode()), blobs)


@pytest.mark.parametrize("row", ["V10"])
async def test_a_chart_of_helm_is_pulled(
    site: Site, skopeo: Client, oras: OrasClient, tmp_path: Path, row: str
) -> None:
    """A chart with its provenance is copied by skopeo, and its files are got by oras."""
    title = "org.opencontainers.image.title"
    chart = Layer(Blob(HELM_CHART, tar_layer()), {title: "app-0.1.0.tgz"})
    provenance = Layer(Blob(HELM_PROVENANCE, secrets.token_bytes(500)), {title: "app.prov"})
    config = Blob(HELM_CONFIG, b'{"apiVersion": "v2", "name": "app", "version": "0.1.0"}')
    pushed = artifact(config, chart, provenance)
    async with Registry.at(site.url) as registry:
        await registry.push("charts/app", pushed, "0.1.0")
    copied = f"{site.http}/charts/copy:0.1.0"
    options = ("--src-tls-verify=false", "--dest-tls-verify=false")
    source = f"docker://{site.http}/charts/app:0.1.0"
    await skopeo.run("copy", *options, source, f"docker://{copied}")
    assert await whole(site, copied) == pushed.digest
    pulled = tmp_path / "pulled"
    await asyncio.to_thread(oras.pull, copied, outdir=str(pulled))
    for layer in (chart, provenance):
        assert (pulled / layer.annotations[title]).read_bytes() == layer.blob.content


@pytest.mark.parametrize("row", ["R9"])
async def test_a_signature_beside_the_image_goes_along(
    site: Site, skopeo: Client, tmp_path: Path, row: str
) -> None:
    """cosign up to 2: skopeo finds the tag that belongs to a digest, and copies what it holds."""
    image = await _image(site, skopeo, "signed/app", tmp_path)
    tag = f"{image.digest.replace(':', '-')}.sig"
    payload = {
        "critical": {
            "identity": {"docker-reference": f"{site.http}/signed/app"},
            "image": {"docker-manifest-digest": image.digest},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    layer = Blob(COSIGN_PAYLOAD, json.dumps(payload).encode())
    config = Blob(OCI_CONFIG, b'{"architecture": "", "os": "", "rootfs": {"type": "layers"}}')
    signature = artifact(config, Layer(layer, {COSIGN_SIGNATURE: secrets.token_hex(32)}))
    settings = tmp_path / "registries.d"
    settings.mkdir()
    (settings / "site.yaml").write_text(
        f"docker:\n  {site.http}:\n    use-sigstore-attachments: true\n"
    )
    options = ("--src-tls-verify=false", "--dest-tls-verify=false")
    source, target = (f"docker://{site.http}/{name}:v1" for name in ("signed/app", "signed/copy"))
    async with Registry.at(site.url) as registry:
        await registry.push("signed/app", signature, tag)
        await skopeo.run("--registries.d", settings, "copy", *options, source, target)
        copied = await registry.call("GET", f"/v2/signed/copy/manifests/{tag}")
    copied.require(200, "get the signature")
    layers = json.loads(copied.body)["layers"]
    assert [one["digest"] for one in layers] == [layer.digest]
    assert await whole(site, f"{site.http}/signed/copy:{tag}")


@pytest.mark.parametrize("row", ["R9-R5-G20"])
async def test_a_signature_that_refers_to_the_image_is_found(
    site: Site, skopeo: Client, tmp_path: Path, row: str
) -> None:
    """cosign from 3 on: a bundle is listed by its type, raw plus included, and can be copied."""
    image = await _image(site, skopeo, "bundled/app", tmp_path)
    bundle = Layer(Blob(SIGSTORE_BUNDLE, secrets.token_bytes(1000)))
    subject = image.manifest.descriptor()
    signature = artifact(EMPTY, bundle, artifactType=SIGSTORE_BUNDLE, subject=subject)
    other = artifact(EMPTY, artifactType="application/vnd.test.other", subject=subject)
    path = f"/v2/bundled/app/referrers/{image.digest}?artifactType={SIGSTORE_BUNDLE}"
    async with Registry.at(site.url) as registry:
        for one in (signature, other):
            await registry.push("bundled/app", one)
        listed = await registry.call("GET", path)
    (found,) = json.loads(listed.body)["manifests"]
    assert found["artifactType"] == SIGSTORE_BUNDLE
    name = f"docker://{site.http}/bundled/app@{found['digest']}"
    await skopeo.run("copy", "--src-tls-verify=false", name, f"dir:{tmp_path / 'pulled'}")
    assert (tmp_path / "pulled/manifest.json").read_bytes() == signature.manifest.content
    blob = tmp_path / "pulled" / bundle.blob.digest.removeprefix("sha256:")
    assert blob.read_bytes() == bundle.blob.content


@pytest.mark.parametrize("row", ["MP13"])
async def test_a_cache_of_buildkit_comes_and_goes(site: Site, skopeo: Client, row: str) -> None:
    """An index whose entries are layers is kept, got back as it was, and deleted with them."""
    layer = Blob("application/vnd.oci.image.layer.v1.tar+gzip", tar_layer())
    config = Blob(CACHE_CONFIG, secrets.token_bytes(200))
    entries = [blob.descriptor for blob in (layer, config)]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    index = Image(Blob(OCI_INDEX, json.dumps(document).encode()), (layer, config))
    async with Registry.at(site.url) as registry:
        await registry.push("cache/app", index, "main")
        name = f"docker://{site.http}/cache/app:main"
        shown = await skopeo.run("inspect", "--raw", "--tls-verify=false", name)
        assert shown.encode() == index.manifest.content
        for blob in index.blobs:
            await registry.pull_blob("cache/app", blob.digest, len(blob.content))
            # While the index refers to it, it can't be taken away.
            refused = await registry.call("DELETE", f"/v2/cache/app/blobs/{blob.digest}")
            refused.require(405, "delete a blob in use")
        await skopeo.run("delete", "--tls-verify=false", name)
        assert await registry.shows("cache/app", index.digest) is None
        for blob in index.blobs:
            deleted = await registry.call("DELETE", f"/v2/cache/app/blobs/{blob.digest}")
            deleted.require(202, "delete a blob of nobody")


async def _image(site: Site, skopeo: Client, repository: str, folder: Path) -> Layout:
    """Push an image as `v1`."""
    image = oci_layout(folder / "image", layers=[tar_layer()], tag="image")
    name = f"docker://{site.http}/{repository}:v1"
    await skopeo.run("copy", "--dest-tls-verify=false", image.source, name)
    return image
