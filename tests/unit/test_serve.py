"""Which sites `entrepot serve` runs beside each other, by the folders that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from node.config import ConfigError, ensure_folders
from node.serve import Site
from node.supervisor import sole

ETCD = {"endpoints": ["http://127.0.0.1:2379"]}


def _site(folder: Path, data: str, **sections: object) -> Site:
    """A site whose configuration and data are its own, but for what the sections say."""
    (folder / data).mkdir()
    file = folder / f"{data}.yaml"
    file.write_text(yaml.safe_dump(sections))
    return Site(file, folder / data, {})


async def _both_run(one: Site, other: Site) -> bool:
    configs = [site.load() for site in (one, other)]
    for config in configs:
        ensure_folders(config)
    own = [site.own_folders(config) for site, config in zip((one, other), configs, strict=True)]
    shared = [
        site.shared_folders(config) for site, config in zip((one, other), configs, strict=True)
    ]
    async with sole(own[0], together=shared[0]):
        try:
            async with sole(own[1], together=shared[1]):
                return True
        except ConfigError:
            return False


async def test_nodes_over_an_etcd_share_their_blobs(tmp_path: Path) -> None:
    """Two nodes of a site run on one machine, each with a folder of its own."""
    shared = {"metadata": {"etcd": ETCD}, "blobs": {"files": {"root": "blobs"}}}
    one, other = _site(tmp_path, "one", **shared), _site(tmp_path, "other", **shared)
    assert await _both_run(one, other)
    assert not await _both_run(one, Site(other.file, one.data, {}))


@pytest.mark.parametrize("shared", ["the folder of the file", "the file by a link", "the blobs"])
async def test_nobody_shares_what_is_embedded(tmp_path: Path, shared: str) -> None:
    """Over SQLite a second site stays out, whatever its --data, if it shares metadata or blobs."""
    paths = {"one": ["one/m.db", "one/blobs"], "other": ["other/m.db", "other/blobs"]}
    if shared == "the folder of the file":
        paths["other"][0] = "one/other.db"
    elif shared == "the blobs":
        paths["other"][1] = "other/../one/blobs"
    one, other = (
        _site(
            tmp_path,
            name,
            metadata={"sqlite": {"path": path}},
            blobs={"files": {"root": blobs}},
        )
        for name, (path, blobs) in paths.items()
    )
    if shared == "the file by a link":
        (tmp_path / "other/m.db").symlink_to(tmp_path / "one/m.db")
    assert not await _both_run(one, other)


async def test_a_site_over_sqlite_stays_off_the_blobs_of_one_over_etcd(tmp_path: Path) -> None:
    """Each would take the other's uploads for nobody's, whoever of the two comes first."""
    blobs = {"files": {"root": "blobs"}}
    node = _site(tmp_path, "node", metadata={"etcd": ETCD}, blobs=blobs)
    alone = _site(tmp_path, "alone", metadata={"sqlite": {"path": "alone/m.db"}}, blobs=blobs)
    assert not await _both_run(node, alone)
    assert not await _both_run(alone, node)


async def test_sites_of_their_own_run_beside_each_other(tmp_path: Path) -> None:
    """Sites with folders of their own do not mind that they were given one --data."""
    one, other = (
        _site(
            tmp_path,
            name,
            metadata={"sqlite": {"path": f"{name}/m.db"}},
            blobs={"files": {"root": f"{name}/blobs"}},
        )
        for name in ("one", "other")
    )
    assert await _both_run(one, Site(other.file, one.data, {}))


@pytest.mark.parametrize("in_the_way", ["data", "data/serve.lock"])
async def test_a_folder_that_cannot_be_kept_is_said(tmp_path: Path, in_the_way: str) -> None:
    """What keeps a node from its own folder is one line that names the key."""
    site = _site(tmp_path, "data", metadata={"etcd": ETCD})
    if in_the_way == "data":
        site.data.rmdir()
        site.data.symlink_to("nowhere/at/all")
        (tmp_path / "nowhere").write_text("a file")
    else:
        (site.data / "serve.lock").mkdir()
    with pytest.raises(ConfigError) as caught:
        async with sole(site.own_folders(site.load())):
            pass
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["--data"]
