"""A site of two nodes over one etcd and one folder of blobs, each run by `entrepot serve`."""

from __future__ import annotations

import random
import subprocess
from asyncio import to_thread
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.etcd import Etcd
from tests.faults.registry import Registry, new_image
from tests.faults.served import DEADLINE_S, entrepot, served
from tests.nodes import nodes

pytestmark = pytest.mark.slow

REPOSITORY: Final = "team/app"


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


async def test_two_served_nodes_are_one_site(tmp_path: Path, etcd: Etcd) -> None:
    """Each has a folder of its own: what is pushed at one is pulled at the other at once."""
    one, other = nodes("fra", tmp_path, etcd)
    image = new_image(random.Random(1), (1 << 16,))
    first, second = (str(node.folder / "data") for node in (one, other))
    async with (
        served(one, "--data", first) as process,
        served(other, "--data", second),
        Registry.at(one.url) as here,
        Registry.at(other.url) as there,
    ):
        await here.push(REPOSITORY, image, "v1")
        assert await there.pull(REPOSITORY, "v1") == image.digest
        await there.push(REPOSITORY, image, "v2")
        process.terminate()
        assert await to_thread(process.wait, DEADLINE_S) == 0
        assert await there.pull(REPOSITORY, "v2") == image.digest


async def test_two_supervisors_share_no_folder_of_a_node(tmp_path: Path, etcd: Etcd) -> None:
    """A node that is given another's folder is refused with status 2, and says which it is."""
    one, other = nodes("fra", tmp_path, etcd)
    data = str(one.folder / "data")
    async with served(one, "--data", data), Registry.at(one.url) as here:
        argv = entrepot(other, "serve", "--data", data)
        done = await to_thread(
            subprocess.run, argv, capture_output=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(b"--data: ")
        assert await here.answers()
