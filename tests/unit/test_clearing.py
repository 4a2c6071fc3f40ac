"""What follows a manifest's death, where it dies twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import pytest

from node import clearing
from node.digest import Digest
from node.errors import ManifestUnknown
from node.kv import Delete, Guard, Op
from node.manifest import parse_manifest
from tests.fake_kv import Crash, MemoryKV
from tests.model import REPOSITORY, Model, image_body
from tests.scenario.checker import check_site

LAYERS: Final = 7


class Killed(Exception):
    """The process is killed."""


def _at_the_first_release(_guards: Sequence[Guard], ops: Sequence[Op]) -> Crash | None:
    releases = any(isinstance(op, Delete) and op.key.startswith(b"r/") for op in ops)
    return Crash(Killed(), applied=False) if releases else None


async def _nothing() -> None:
    return


@pytest.mark.parametrize("n", range(1, 34))
async def test_a_manifest_that_dies_twice_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    """It is pushed and deleted again while its first delete ends, and that second one is killed.

    The first has begun with references that the push has written anew.
    """
    monkeypatch.setattr(clearing, "_REFERENCES_AT_ONCE", 2)
    model = Model(MemoryKV())
    config = await model.upload(b"{}")
    body = image_body(config, *[await model.upload(f"layer {n}".encode()) for n in range(LAYERS)])
    digest, manifest = await model.push(body, "v1"), parse_manifest(body, None)
    left = n

    async def at_last() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            await model.push(body, "v2")
            model.kv.faults = _at_the_first_release
            with pytest.raises(Killed):
                await model.metadata.delete_manifest(REPOSITORY, digest, manifest)
            model.kv.faults = lambda *_: None

    model.kv._pause = at_last
    with suppress(ManifestUnknown):
        await model.metadata.delete_manifest(REPOSITORY, digest, manifest)
    assert left < 0, "it was over before anything was done"
    model.kv._pause = _nothing
    with suppress(ManifestUnknown):  # who deletes once more ends what was cut short
        await model.metadata.delete_manifest(REPOSITORY, digest, manifest)
    known = {Digest.of(body): manifest}
    check_site(model.kv.entries(), known.__getitem__, quiet=True)
