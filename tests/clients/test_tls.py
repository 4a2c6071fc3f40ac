"""Real clients at a site that speaks TLS and wants a certificate of everybody.

Docker is not among them: at an address of the loopback it shows none (tests/clients/test_guide.py
has it push and pull under TLS).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from node.config_models import Tls
from node.tls import calling
from tests.authority import Authority, Pair
from tests.clients.images import large_image, oci_archive, oci_layout, tar_layer
from tests.clients.programs import Client
from tests.clients.site import MIB
from tests.faults.registry import digest_of
from tests.faults.stopped import check
from tests.sites import Site, ended

pytestmark = pytest.mark.slow


@dataclass(frozen=True, slots=True)
class Secured:
    """The site, and the certificates that it knows."""

    site: Site
    authority: Authority
    caller: Pair

    def known_in(self, folder: Path) -> Path:
        """Put what a client needs into a folder, under the names that the programs read."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.authority.certificate, folder / "ca.crt")
        shutil.copy(self.caller.certificate, folder / "client.cert")
        shutil.copy(self.caller.key, folder / "client.key")
        return folder

    def hosts(self, folder: Path) -> Path:
        """The same for containerd: a folder of hosts.toml."""
        url, pair = self.site.url, [str(self.caller.certificate), str(self.caller.key)]
        (folder / self.site.http).mkdir(parents=True)
        (folder / self.site.http / "hosts.toml").write_text(
            f'server = "{url}"\n[host."{url}"]\ncapabilities = ["pull", "resolve", "push"]\n'
            f"ca = {json.dumps(str(self.authority.certificate))}\nclient = [{json.dumps(pair)}]\n"
        )
        return folder

    def context(self) -> ssl.SSLContext:
        """The same for our own client."""
        own = Tls(certificate=self.caller.certificate, key=self.caller.key)
        return calling(self.authority.certificate, own)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A gateway of the module's own; sound when it is stopped."""
    folder = tmp_path_factory.mktemp("tls-clients")
    authority = Authority.make(folder / "authority")
    pair = authority.sign("fra")
    tls = {"certificate": pair.certificate, "key": pair.key, "client_ca": authority.certificate}
    site = Site(
        "fra", folder / "fra", programs=("gateway",), tls={k: str(v) for k, v in tls.items()}
    )
    with ended(site):
        asyncio.run(site.start())
        yield Secured(site, authority, authority.sign("caller"))
        site.show_logs()
        asyncio.run(site.stop_all())
        check(site)
    shutil.rmtree(folder)


@pytest.mark.parametrize("program", ["podman", "buildah"])
async def test_podman_and_buildah(
    secured: Secured, request: pytest.FixtureRequest, tmp_path: Path, program: str
) -> None:
    """Without an option: they find what lies in certs.d below their settings."""
    client: Client = request.getfixturevalue(program)
    name = f"{secured.site.http}/{program}:v1"
    image = oci_layout(tmp_path / "image", layers=[tar_layer()], tag="v1")
    (stored,) = (await client.run("pull", "--quiet", image.source)).split()
    refused = await client.attempt("push", stored, f"docker://{name}")
    assert refused.exit_code != 0
    secured.known_in(client.folder / "home/.config/containers/certs.d" / secured.site.http)
    await client.run("push", stored, f"docker://{name}")
    await client.run("rmi", "--force", stored)
    assert (await client.run("pull", "--quiet", name)).split() == [stored]
    await client.run("rmi", "--force", stored)


async def test_skopeo(secured: Secured, skopeo: Client, tmp_path: Path) -> None:
    """64 MiB go there and back, by --cert-dir; without a certificate skopeo is refused."""
    image = await asyncio.to_thread(large_image, tmp_path / "image", tag="v1", size=64 * MIB)
    name = f"docker://{secured.site.http}/skopeo:v1"
    folder = secured.known_in(tmp_path / "certs")
    await skopeo.run("copy", f"--dest-cert-dir={folder}", image.source, name)
    await skopeo.run("copy", f"--src-cert-dir={folder}", name, f"dir:{tmp_path / 'pulled'}")
    manifest = (tmp_path / "pulled" / "manifest.json").read_bytes()
    assert digest_of(manifest) == image.digest
    (folder / "client.cert").unlink()
    (folder / "client.key").unlink()
    refused = await skopeo.attempt("inspect", f"--cert-dir={folder}", name)
    assert refused.exit_code != 0
    shutil.rmtree(tmp_path)


async def test_ctr(secured: Secured, ctr: Client, tmp_path: Path) -> None:
    """containerd reads all from hosts.toml."""
    image = oci_layout(tmp_path / "image", layers=[tar_layer()], tag="v1")
    base = f"{secured.site.http}/ctr"
    hosts = ("--hosts-dir", secured.hosts(tmp_path / "hosts"), f"{base}:v1")
    archive = oci_archive(tmp_path / "image.tar", image)
    imported = ("--base-name", base, "--all-platforms", "--no-unpack", archive)
    await ctr.run("images", "import", *imported)
    await ctr.run("images", "push", *hosts)
    await ctr.run("images", "remove", "--sync", f"{base}:v1")
    await ctr.run("images", "pull", "--all-platforms", *hosts)
    listed = (await ctr.run("images", "list", f"name=={base}:v1")).splitlines()[1]
    assert listed.split()[2] == image.digest
    await ctr.run("images", "remove", "--sync", f"{base}:v1")


@pytest.mark.parametrize("row", ["G5"])
async def test_locations_hold_for_who_came_by_tls(secured: Secured, row: str) -> None:
    """Where an upload goes on and where a blob is can be followed as they are told."""
    connector = aiohttp.TCPConnector(ssl=await asyncio.to_thread(secured.context))
    async with aiohttp.ClientSession(secured.site.url, connector=connector) as client:
        async with client.post("/v2/app/blobs/uploads/") as begun:
            upload = begun.headers["Location"]
        digest = digest_of(b"content")
        async with client.put(f"{upload}&digest={digest}", data=b"content") as done:
            assert done.status == 201
            blob = done.headers["Location"]
        async with client.get(blob, headers={"Range": "bytes=0-1,3-4"}) as found:
            assert (found.status, found.url.scheme) == (206, "https")
            assert b"\r\nco\r\n" in await found.read()
