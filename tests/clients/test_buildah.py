"""buildah at one real site, as a builder; test_podman.py has what it shares with podman.

Nothing is run in these builds: they start from scratch and copy files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from tests.clients.programs import Client
from tests.clients.site import mounted, uploaded, whole
from tests.faults.registry import Registry
from tests.sites import Site

pytestmark = pytest.mark.slow

CONTAINERFILE: Final = """\
FROM scratch
COPY one /one
COPY two /two
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """The folder of a build of two layers that no other build has."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Containerfile").write_text(CONTAINERFILE)
    for name in ("one", "two"):
        (folder / name).write_text(f"{name} of {tmp_path}\n")
    return folder


async def test_a_build_is_cached_in_the_registry(
    site: Site, buildah: Client, context: Path
) -> None:
    """A second builder, which knows nothing, takes every step from the cache and runs none."""
    cache = f"{site.http}/buildah/cache"
    build = ("build", "--layers", "--tls-verify=false", f"--cache-from={cache}")
    await buildah.run(*build, f"--cache-to={cache}", "--tag", "built", context)
    async with Registry.at(site.url) as registry:
        answer = await registry.call("GET", "/v2/buildah/cache/tags/list")
    assert len(json.loads(answer.body)["tags"]) == CONTAINERFILE.count("COPY")
    built = await _forget(buildah, "built")
    said = await buildah.run(*build, "--tag", "built", context)
    assert said.count("Cache pulled from remote") == CONTAINERFILE.count("COPY")
    assert await _forget(buildah, "built") == built


async def test_a_built_image_stands_on_a_pulled_one(
    site: Site, buildah: Client, context: Path
) -> None:
    """An image built from one at the site brings its own layer only; the others are mounted."""
    base, name = f"{site.http}/buildah/base:v1", f"{site.http}/buildah/child:v1"
    await buildah.run("build", "--tag", base, context)
    await buildah.run("push", "--tls-verify=false", base)
    await _forget(buildah, base)
    (context / "Containerfile").write_text(f"FROM {base}\nCOPY Containerfile /\n")
    await buildah.run("build", "--tls-verify=false", "--tag", name, context)
    mounts, uploads = await mounted(site), await uploaded(site)
    await buildah.run("push", "--tls-verify=false", name)
    assert await mounted(site) == mounts + 1  # a build without --layers makes one
    assert await uploaded(site) == uploads + 2  # the layer and the configuration
    assert await whole(site, name) != await whole(site, base)
    await _forget(buildah, name)


async def test_a_working_container_is_committed_to_the_site(
    site: Site, buildah: Client, context: Path
) -> None:
    """`from`, `copy` and `commit` make an image at the site without one in the store."""
    name = f"{site.http}/buildah/committed:v1"
    container = (await buildah.run("from", "scratch")).strip()
    await buildah.run("copy", container, context / "one", "/one")
    commit = ("commit", "--rm", "--tls-verify=false", container, f"docker://{name}")
    await buildah.run(*commit)
    digest = await whole(site, name)
    inspected = await buildah.run("pull", "--quiet", "--tls-verify=false", name)
    shown = await buildah.run("inspect", "--type=image", inspected.strip())
    assert json.loads(shown)["FromImageDigest"] == digest
    await _forget(buildah, name)


async def _forget(buildah: Client, name: str) -> str:
    """Take all images out of the store, and return the id of one."""
    images = await buildah.run("images", "--no-trunc", "--quiet", name)
    await buildah.run("rmi", "--all", "--force")
    return images.strip()
