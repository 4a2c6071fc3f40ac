"""A site over an etcd, as it is configured: TLS, users, several gateways."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from node import keys
from node.config import Config, load
from node.errors import MetadataUnavailable
from node.kv import Ok, Put, only, prefix
from node.site import opened
from tests.authority import Authority
from tests.etcd import Etcd, keyspace, running
from tests.faults.registry import Registry, new_image
from tests.kv_calls import commit, following, next_entries
from tests.kv_calls import keys as keys_of
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = pytest.mark.slow

PASSWORD: Final = "correct-horse-battery"


def config(folder: Path, etcd: Etcd, **settings: str) -> Config:
    """A site over this etcd."""
    urls = [f"{etcd.scheme}://{endpoint}" for endpoint in etcd.endpoints]
    metadata = {"etcd": {"endpoints": urls, **settings}}
    file = folder / "entrepot.yaml"
    file.write_text(yaml.safe_dump({"site": "fra", "metadata": metadata}))
    (folder / "blobs").mkdir(exist_ok=True)
    return load(file, folder, {})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Who has signed the certificates of etcd and of its clients."""
    return Authority.make(tmp_path / "ca")


@pytest.fixture
def secured(authority: Authority) -> Iterator[Etcd]:
    """An etcd that speaks TLS only, and only with those who have a certificate."""
    pair = authority.sign("etcd")
    options = (
        *(f"--cert-file={pair.certificate}", f"--key-file={pair.key}"),
        *("--client-cert-auth", f"--trusted-ca-file={authority.certificate}"),
    )
    with running(1, *options, scheme="https") as etcd:
        yield etcd


async def test_a_site_opens_an_etcd_by_its_certificate(
    tmp_path: Path, authority: Authority, secured: Etcd
) -> None:
    """With a certificate of the right authority it is let in, and knows its etcd by the same."""
    mine = authority.sign("fra")
    files = {"certificate": str(mine.certificate), "key": str(mine.key)}
    known = config(tmp_path, secured, ca=str(authority.certificate), **files)
    async with opened(known) as site:
        assert site.record.name == "fra"
        (entries,) = (await site.kv.read([only(keys.SITE)])).ranges
        assert entries


@pytest.mark.parametrize("wrong", ["no certificate", "another authority"])
async def test_an_etcd_is_not_opened_without_the_right_certificates(
    tmp_path: Path, authority: Authority, secured: Etcd, wrong: str
) -> None:
    """A client without certificate is not let in; one that trusts others doesn't go in."""
    mine = authority.sign("fra")
    settings = {"certificate": str(mine.certificate), "key": str(mine.key)}
    settings["ca"] = str(authority.certificate)
    if wrong == "no certificate":
        del settings["certificate"], settings["key"]
    else:
        settings["ca"] = str(Authority.make(tmp_path / "other").certificate)
    with pytest.raises(MetadataUnavailable):
        async with opened(config(tmp_path, secured, **settings)):
            pass


def _etcdctl(etcd: Etcd, *command: str) -> None:
    subprocess.run(
        ("etcdctl", f"--endpoints={','.join(etcd.endpoints)}", *command),
        env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
    )


async def test_a_user_goes_on_when_its_token_is_forgotten(tmp_path: Path) -> None:
    """etcd keeps tokens in memory: after its restart reads, writes and follows get new ones."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    with running() as etcd:
        for command in (
            ("user", "add", f"root:{PASSWORD}"),
            ("user", "grant-role", "root", "root"),
            ("role", "add", "site"),
            ("role", "grant-permission", "site", "readwrite", "--prefix", "/entrepot/"),
            ("user", "add", f"fra:{PASSWORD}"),
            ("user", "grant-role", "fra", "site"),
            ("auth", "enable"),
        ):
            await asyncio.to_thread(_etcdctl, etcd, *command)
        named = {"username": "fra", "password_file": str(tmp_path / "password")}
        async with opened(config(tmp_path, etcd, **named)) as site:
            kv = site.kv
            revision = await commit(kv, Put(b"a/1", b""))
            async with following(kv, prefix(b"a/"), revision, deadline_s=60) as stream:
                for number in (2, 3):
                    told = asyncio.ensure_future(next_entries(stream))
                    assert isinstance(await kv.txn([], [Put(b"a/%d" % number, b"")]), Ok)
                    assert [entry.key for entry in await told] == [b"a/%d" % number]
                    etcd.kill(0)
                    etcd.spawn(0)
                    await etcd.healthy()
                    assert len(await keys_of(kv, prefix(b"a/"))) == number
            lease = await kv.grant(5)
            assert await kv.keep_alive(lease)
        for refused in (
            config(tmp_path, etcd),
            config(tmp_path, etcd, **named, prefix="/other/"),
        ):
            with pytest.raises(MetadataUnavailable):
                async with opened(refused):
                    pass


def metadata(etcd: Etcd) -> dict[str, object]:
    """The section of a site that begins in this etcd."""
    urls = [f"http://{endpoint}" for endpoint in etcd.endpoints]
    return {"etcd": {"endpoints": urls, "prefix": keyspace().decode()}}


async def test_a_site_over_etcd_and_one_over_sqlite_replicate(tmp_path: Path, etcd: Etcd) -> None:
    """What is pushed at either is whole at the other; neither knows what the other stands on."""
    fra = Site("fra", tmp_path / "fra", {"metadata": metadata(etcd)})
    nyc = Site("nyc", tmp_path / "nyc")
    fra.follow(nyc)
    nyc.follow(fra)
    dice = random.Random(2)
    with ended(fra, nyc):
        await asyncio.gather(fra.start(), nyc.start())
        async with Registry.at(fra.url) as at_fra, Registry.at(nyc.url) as at_nyc:
            for here, there in ((at_fra, at_nyc), (at_nyc, at_fra)) * 2:
                image = new_image(dice)
                await here.push("app", image, "latest")

                async def arrived(
                    at: Registry = there, digest: str = image.manifest.digest
                ) -> bool:
                    return await at.pull("app", "latest") == digest

                await eventually(arrived, 60, "it is at the other site")
        await asyncio.gather(fra.stop_all(), nyc.stop_all())


async def test_two_gateways_are_one_site(tmp_path: Path, etcd: Etcd) -> None:
    """What is pushed at one is pulled from the other at once, and so is what follows (P2)."""
    shared = {
        "metadata": metadata(etcd),
        "blobs": {"files": {"root": str(tmp_path / "blobs")}},
    }
    one, two = (
        Site("fra", tmp_path / name, shared, programs=("gateway",)) for name in ("one", "two")
    )
    dice = random.Random(1)
    with ended(one, two):
        await asyncio.gather(one.start(), two.start())
        async with Registry.at(one.url) as at_one, Registry.at(two.url) as at_two:
            for number in range(5):
                image = new_image(dice)
                writer, reader = (at_one, at_two) if number % 2 else (at_two, at_one)
                await writer.push("app", image, "latest")
                assert await reader.pull("app", "latest") == image.manifest.digest
        await asyncio.gather(one.stop_all(), two.stop_all())
