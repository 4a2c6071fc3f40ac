"""An image and an index of it of which all is known by sha512, and how they are pushed."""

from __future__ import annotations

import json
from typing import Any, Final

from node.digest import Algorithm, Digest
from node.manifest import OCI_INDEX, OCI_MANIFEST
from tests import registry as by_sha256
from tests.registry import CONFIG, LAYER, OCI_CONFIG, OCI_LAYER, Client


def digest_of(content: bytes) -> str:
    """The content's sha512 digest, as text."""
    return str(Digest.of(content, Algorithm.SHA512))


def descriptor(content: bytes, media_type: str) -> dict[str, Any]:
    """What a manifest says about content."""
    return {**by_sha256.descriptor(content, media_type), "digest": digest_of(content)}


IMAGE: Final = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(CONFIG, OCI_CONFIG),
        "layers": [descriptor(LAYER, OCI_LAYER)],
    }
).encode()
INDEX: Final = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(IMAGE, OCI_MANIFEST)],
    }
).encode()
REFERRER: Final = json.dumps(
    {**json.loads(IMAGE), "subject": descriptor(IMAGE, OCI_MANIFEST)}
).encode()


async def push_blobs(registry: Client, repository: str = "") -> None:
    """Push what the image refers to."""
    for content in (CONFIG, LAYER):
        path = registry.path(f"blobs/uploads/?digest={digest_of(content)}", repository)
        assert (await registry.ask("POST", path, content)).status == 201


async def push(registry: Client, body: bytes, *tags: str) -> str:
    """Push a manifest, and return its digest."""
    digest, media_type = digest_of(body), json.loads(body)["mediaType"]
    query = "&".join(f"tag={tag}" for tag in tags)
    path = registry.path(f"manifests/{digest}?{query}")
    reply = await registry.ask("PUT", path, body, {"Content-Type": media_type})
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, digest)
    assert reply.headers["Location"] == registry.path(f"manifests/{digest}")
    return digest
