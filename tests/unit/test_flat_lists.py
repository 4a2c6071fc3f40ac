"""A page of a list costs what it shows, however much there is beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from node.kv import Range, Snapshot
from node.manifest import OCI_INDEX
from node.metadata import Metadata
from node.reference import Repository
from node.stamps import Decider
from node.transaction import Reader
from tests.fake_kv import MemoryKV
from tests.model import REPOSITORY, Model, index_body

PAGE = 50


class Counting:
    """A reader that counts the entries it has answered."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.entries = 0

    async def read(self, ranges: Sequence[Range]) -> Snapshot:
        """See `node.kv.KV`."""
        snapshot = await self._reader.read(ranges)
        self.entries += sum(map(len, snapshot.ranges))
        return snapshot


def counted(model: Model) -> tuple[Metadata, Counting]:
    """The model's metadata again, over a reader that counts."""
    reader = Counting(model.kv)
    decider = Decider(model.kv, reader, model.decider.stamps)
    return Metadata(decider, model.staging, new_id=model.new_id), reader


async def tagged(total: int) -> tuple[Model, list[str]]:
    """A repository of so many tags, and as many deleted ones between them."""
    model = Model(MemoryKV())
    live = [f"v{n:05}" for n in range(total)]
    await model.push(index_body([]), *live, media_type=OCI_INDEX)
    dead = index_body([], annotations={"of": "the dead"})
    digest = await model.push(dead, *(f"{tag}-rc" for tag in live), media_type=OCI_INDEX)
    await model.metadata.delete_manifest(REPOSITORY, digest, None)
    return model, live


@pytest.mark.parametrize("total", [200, 2000])
async def test_a_page_of_tags(total: int) -> None:
    """First and last page are right and read no entry that they do not need."""
    model, live = await tagged(total)
    assert sum(key.startswith(b"T/") for key in model.kv.entries()) == 2 * total
    metadata, reader = counted(model)
    for after, page, more in (
        (None, live[:PAGE], True),
        (live[-PAGE - 1], live[-PAGE:], False),
        (f"{live[-PAGE - 1]}-rc", live[-PAGE:], False),
        (live[-1], [], False),
    ):
        reader.entries = 0
        assert await metadata.tags(REPOSITORY, after, PAGE) == (page, more)
        assert reader.entries == 1 + len(page) + more


@pytest.mark.parametrize("total", [100, 500])
async def test_a_page_of_the_catalog(total: int) -> None:
    """So it is with repositories, as many dead ones beside them."""
    model = Model(MemoryKV())
    for number in range(2 * total):
        repository = Repository(f"r{number:05}")
        digest = await model.push(index_body([]), repository=repository, media_type=OCI_INDEX)
        if number % 2:
            await model.metadata.delete_manifest(repository, digest, None)
    live = [f"r{number:05}" for number in range(0, 2 * total, 2)]
    metadata, reader = counted(model)
    for after, page, more in (
        (None, live[:PAGE], True),
        (live[-PAGE - 1], live[-PAGE:], False),
        (live[-1], [], False),
    ):
        reader.entries = 0
        assert await metadata.repositories(after, PAGE) == (page, more)
        assert reader.entries == len(page) + more
