"""oras, the library for Python, at one real site: files go there and back, with what they are."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from oras.client import OrasClient
from oras.oci import Subject

from tests.clients.site import BREAKS_AFTER, MIB, answered, broken_once, whole
from tests.faults.registry import OCI_MANIFEST, Registry
from tests.sites import Site

pytestmark = pytest.mark.slow


async def test_push_and_pull(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """Without a login files are pushed, and pulled by the tag and by the digest."""
    files = [_file(tmp_path, name, 1000) for name in ("report.txt", "table.csv")]
    repository = f"{site.http}/oras/files"
    typed = [f"{files[0]}:text/plain", f"{files[1]}:text/csv"]
    digest = await _push(oras, f"{repository}:v1", *typed)
    assert await whole(site, f"{repository}:v1") == digest
    manifest = await asyncio.to_thread(oras.get_manifest, f"{repository}:v1")
    assert [layer["mediaType"] for layer in manifest["layers"]] == ["text/plain", "text/csv"]
    for name in (f"{repository}:v1", f"{repository}@{digest}"):
        assert await _pull(oras, name, tmp_path / name[-8:]) == _contents(files)


async def test_a_folder_comes_back_as_a_folder(
    site: Site, oras: OrasClient, tmp_path: Path
) -> None:
    """A folder is packed for its way, and unpacked on arrival."""
    (tmp_path / "folder").mkdir()
    file = _file(tmp_path / "folder", "inside", 1000)
    name = f"{site.http}/oras/folder:v1"
    await _push(oras, name, str(file.parent))
    await asyncio.to_thread(oras.pull, name, outdir=str(tmp_path / "pulled"))
    assert (tmp_path / "pulled/folder/inside").read_bytes() == file.read_bytes()


async def test_pushing_again_uploads_nothing(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """What finds all blobs there already sends the manifest only."""
    file = str(_file(tmp_path, "again", 1000))
    name = f"{site.http}/oras/again:v1"
    digest = await _push(oras, name, file)
    before = await answered(site, "start-upload", 202)
    assert await _push(oras, name, file) == digest
    assert await answered(site, "start-upload", 202) == before


async def test_tags_are_listed_and_deleted(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """All pages of the tags are found, and a deleted one is no more among them."""
    tags = [f"v{number:02}" for number in range(5)]
    repository = f"{site.http}/oras/tags"
    for tag in tags:
        await _push(oras, f"{repository}:{tag}", str(_file(tmp_path, tag, 10)))
    assert await asyncio.to_thread(oras.get_tags, repository) == tags
    assert await asyncio.to_thread(oras.get_tags, repository, N=3) == tags[:3]
    assert await asyncio.to_thread(oras.delete_tags, repository, tags[1]) == [tags[1]]
    assert await asyncio.to_thread(oras.get_tags, repository) == [tags[0], *tags[2:]]


@pytest.mark.parametrize("row", ["MP6-R3"])
async def test_what_is_attached_is_found(
    site: Site, oras: OrasClient, tmp_path: Path, row: str
) -> None:
    """An artifact with a subject is listed as its referrer, and pulled by the digest found so.

    The library makes such artifacts, but has no call that lists them.
    """
    repository = f"{site.http}/oras/attached"
    subject = await _push(oras, f"{repository}:v1", str(_file(tmp_path, "subject", 1000)))
    config = _file(tmp_path, "config", 10)
    report = _file(tmp_path, "report", 1000)
    async with Registry.at(site.url) as registry:
        body = (await registry.call("GET", f"/v2/oras/attached/manifests/{subject}")).body
        attached = await _push(
            oras,
            f"{repository}:report",
            str(report),
            manifest_config=f"{config}:application/vnd.test.report",
            manifest_annotations={"test.for": "all"},
            subject=Subject(OCI_MANIFEST, subject, len(body)),
        )
        listed = await registry.call("GET", f"/v2/oras/attached/referrers/{subject}")
    (found,) = json.loads(listed.body)["manifests"]
    assert found["digest"] == attached
    assert found["artifactType"] == "application/vnd.test.report"
    assert found["annotations"] == {"test.for": "all"}
    name = f"{repository}@{found['digest']}"
    assert await _pull(oras, name, tmp_path / "pulled") == _contents([report])


async def test_a_broken_push_is_done_again(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """A push that breaks in the middle is tried again by the library, and is whole then."""
    file = _file(tmp_path, "large", 4 * BREAKS_AFTER)
    async with broken_once(site) as link:
        digest = await _push(oras, f"{link.address}/oras/cut-push:v1", str(file))
    assert await whole(site, f"{site.http}/oras/cut-push:v1") == digest


async def test_a_broken_pull_is_done_again(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """A pull that breaks in the middle fails, and the next one has every byte."""
    file = _file(tmp_path, "large", 4 * BREAKS_AFTER)
    await _push(oras, f"{site.http}/oras/cut-pull:v1", str(file))
    async with broken_once(site) as link:
        name = f"{link.address}/oras/cut-pull:v1"
        with pytest.raises(OSError, match="Connection broken"):
            await _pull(oras, name, tmp_path / "cut")
        assert await _pull(oras, name, tmp_path / "pulled") == _contents([file])


@pytest.mark.parametrize("row", ["U21"])
async def test_a_file_of_256_mebibytes(
    site: Site, oras: OrasClient, tmp_path: Path, row: str
) -> None:
    """A large file goes there in chunks, and back."""
    await _large(site, oras, tmp_path, 256 * MIB)


@pytest.mark.torture
@pytest.mark.timeout(1800)
async def test_a_file_of_2_gibibytes(site: Site, oras: OrasClient, tmp_path: Path) -> None:
    """A very large file goes there in chunks, and back."""
    await _large(site, oras, tmp_path, 2048 * MIB)


async def _large(site: Site, oras: OrasClient, folder: Path, size: int) -> None:
    file = await asyncio.to_thread(_file, folder, "large", size)
    name = f"{site.http}/oras/large:v{size}"
    before = await answered(site, "append-upload", 202)
    await _push(oras, name, str(file), do_chunked=True, chunk_size=16 * MIB)
    assert await answered(site, "append-upload", 202) == before + size // (16 * MIB)
    assert await _pull(oras, name, folder / "pulled") == _contents([file])
    shutil.rmtree(folder)


async def _push(oras: OrasClient, name: str, *files: str, **options: object) -> str:
    """Push files, and return the digest of what is there now."""
    answer = await asyncio.to_thread(
        oras.push, name, files=list(files), disable_path_validation=True, quiet=True, **options
    )
    return str(answer.headers["Docker-Content-Digest"])


async def _pull(oras: OrasClient, name: str, folder: Path) -> dict[str, str]:
    """Pull files into a folder, and return what each name holds."""
    pulled = await asyncio.to_thread(oras.pull, name, outdir=str(folder))
    return _contents(map(Path, pulled))


def _contents(files: Iterable[Path]) -> dict[str, str]:
    """Return the digest of each file's content, by the file's name."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _file(folder: Path, name: str, size: int) -> Path:
    """Write a file that no other test has."""
    path = folder / name
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))
    return path
