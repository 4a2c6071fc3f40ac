"""What a manifest says of its contents and of its repository, and what is made of it."""

from __future__ import annotations

import pytest

from node import keys
from node.errors import ManifestInvalid, ManifestUnknown
from node.manifest import OCI_INDEX, OCI_MANIFEST
from node.reference import Tag
from node.wire import codec
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model, descriptor, image_body, index_body


@pytest.fixture
def model() -> Model:
    """A site on fakes."""
    return Model(MemoryKV())


async def test_a_size_that_is_wrong_is_refused(model: Model) -> None:
    """Clients would pull none of an image whose descriptors lie, so no tag shows one (P3)."""
    config, layer = await model.upload(b"{}"), await model.upload(b"layer")
    body = image_body(config, layer).replace(b'"size": 5', b'"size": 9999')
    with pytest.raises(ManifestInvalid, match="has 5 bytes, not 9999"):
        await model.push(body, "v1")
    child, manifest = await model.image()
    lie = index_body([child]).replace(f'"size": {len(manifest)}'.encode(), b'"size": 1')
    with pytest.raises(ManifestInvalid):
        await model.push(lie, "v1", media_type=OCI_INDEX)
    with pytest.raises(ManifestUnknown):
        await model.metadata.resolve(REPOSITORY, Tag("v1"))


async def test_what_says_nothing_leaves_the_text_of_its_repository(model: Model) -> None:
    """A signature, or an image without annotations, does not hide a repository from searches."""

    async def said() -> str:
        entry = model.kv.entries()[keys.repository(REPOSITORY)]
        return codec.decode_repository(entry).title

    title = "org.opencontainers.image.title"
    digest, _ = await model.image("v1", annotations={title: "Books"})
    assert await said() == "Books"
    await model.image("v2")
    await model.image(subject=descriptor(digest, OCI_MANIFEST), annotations={title: "Signature"})
    assert await said() == "Books"
    await model.image("v3", annotations={title: "Ledgers"})
    assert await said() == "Ledgers"
