"""skopeo at a site of two nodes over an etcd of three members: each step goes to the other one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.images import oci_index, oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import mounted, uploaded, whole
from tests.etcd import Etcd
from tests.faults.registry import Registry
from tests.nodes import nodes
from tests.sites import Site, running

pytestmark = pytest.mark.slow

_HERE, _THERE = "--src-tls-verify=false", "--dest-tls-verify=false"


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory, cluster: Etcd) -> Iterator[list[Site]]:
    """The nodes, with their replicators; they have to end well."""
    found = nodes("fra", tmp_path_factory.mktemp("nodes"), cluster)
    with running(*found):
        yield found


async def test_what_is_pushed_at_one_gateway_is_pulled_from_the_other(
    gateways: list[Site], skopeo: Client, tmp_path: Path
) -> None:
    """An index with its images is there at once, whole, under its tag; both list the same tags."""
    one, other = gateways
    index = oci_index(tmp_path / "image", tag="multi")
    push = ("copy", "--all", _THERE, index.source)
    await skopeo.run(*push, f"docker://{one.http}/app:v1")
    pull = ("copy", "--all", _HERE, f"docker://{other.http}/app:v1", f"dir:{tmp_path / 'pulled'}")
    await skopeo.run(*pull)
    assert len(list((tmp_path / "pulled").glob("*.manifest.json"))) == len(index.images)
    await skopeo.run(*push, f"docker://{other.http}/app:v2")
    for node in gateways:
        assert await whole(node, f"{node.http}/app:v2") == index.digest
        listed = await skopeo.run("list-tags", "--tls-verify=false", f"docker://{node.http}/app")
        assert json.loads(listed)["Tags"] == ["v1", "v2"]


async def test_a_layer_of_one_gateway_is_mounted_at_the_other(
    gateways: list[Site], skopeo: Client, tmp_path: Path
) -> None:
    """What one repository holds needs no bytes in another, and a delete holds at both gateways."""
    one, other = gateways
    image = oci_layout(tmp_path / "image", layers=[tar_layer(), tar_layer()], tag="v1")
    await skopeo.run("copy", _THERE, image.source, f"docker://{other.http}/source:v1")
    mounts, uploads = await mounted(other), await uploaded(other)
    copy = ("copy", _HERE, _THERE, f"docker://{other.http}/source:v1")
    await skopeo.run(*copy, f"docker://{other.http}/target:v1")
    assert await mounted(other) == mounts + len(image.layers)
    assert await uploaded(other) == uploads + 1  # the configuration, which skopeo never mounts
    assert await whole(one, f"{one.http}/target:v1") == image.digest
    await skopeo.run("delete", "--tls-verify=false", f"docker://{one.http}/source:v1")
    async with Registry.at(other.url) as at:
        assert await at.shows("source", "v1") is None
        assert await at.pull("target", "v1") == image.digest
