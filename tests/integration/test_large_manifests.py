"""Manifests that refer to more than one transaction can write, between two real sites.

Over etcd the limit is real: it takes no transaction of more than 128 operations.
"""

from __future__ import annotations

import json
import random
from typing import Final

import pytest

from tests.faults.registry import Blob, Image, Refused, Registry, image_of, new_image
from tests.sites import Site
from tests.waiting import eventually

pytestmark = pytest.mark.slow

ARRIVES_S: Final = 120.0
REPOSITORY: Final = "team/large"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"


def _index(children: list[Image]) -> Image:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [child.manifest.descriptor for child in children],
    }
    return Image(Blob(OCI_INDEX, json.dumps(document).encode()), (), tuple(children))


async def test_more_layers_and_children_than_a_transaction_takes(sites: tuple[Site, Site]) -> None:
    """An image of 150 layers and an index of 130 images are pushed here and pulled there."""
    fra, nyc = sites
    chance = random.Random(200)
    layers = new_image(chance, [16] * 150)
    index = _index([image_of(chance.randbytes(8)) for _ in range(130)])
    async with Registry.at(fra.url) as here, Registry.at(nyc.url) as there:
        for tag, image in (("layers", layers), ("index", index)):
            await here.push(REPOSITORY, image, tag)

            async def arrived(tag: str = tag, image: Image = image) -> bool:
                return await there.pull(REPOSITORY, tag) == image.digest

            await eventually(arrived, ARRIVES_S, f"{tag} at {nyc.name}")
        with pytest.raises(Refused) as caught:
            await there.delete(REPOSITORY, index.children[100].digest)
        assert caught.value.status == 405
        await there.delete(REPOSITORY, index.digest)

        async def gone() -> bool:
            return await here.shows(REPOSITORY, "index") is None

        await eventually(gone, ARRIVES_S, f"the index goes at {fra.name}")
