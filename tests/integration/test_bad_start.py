"""What keeps a process from starting: it says all that is wrong, a line each, and ends with 2."""

from __future__ import annotations

import json
import subprocess
import sys
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from tests.faults.stopped import files
from tests.sites import PROGRAMS, Site, ended

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

_ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A site that has the ports."""
    site = Site("fra", tmp_path_factory.mktemp("bad-start") / "fra")
    with ended(site):
        await site.start()
        yield site
        await site.stop_all()


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked() -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow."""
    return iter([None])


@pytest.fixture
def other(tmp_path: Path) -> Site:
    """A site that was never started."""
    return Site("nyc", tmp_path / "nyc")


async def _refused(program: str, site: Site) -> list[str]:
    """Run a program that can't start; what it says on stderr beside its log."""
    done = await to_thread(
        subprocess.run,
        (sys.executable, "-P", "-m", program, "--config", str(site.config)),
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    return [line for line in done.stderr.splitlines() if not _is_log(line)]


def _is_log(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("program", "section", "taken"),
    [
        ("gateway", {"http": {"listen": ["{http}"]}}, "http.listen[0]: {http} is in use"),
        ("gateway", {"grpc": {"listen": "{grpc}"}}, "grpc.listen: {grpc} is in use"),
        ("gateway", {"metrics": {"listen": "{health}"}}, "metrics.listen: {health} is in use"),
        ("replicator", {"replicator": {"listen": "{own}"}}, "replicator.listen: {own} is in use"),
    ],
    ids=["http", "grpc", "health", "replicator"],
)
async def test_a_second_process_on_a_port_says_which_and_ends(
    running: Site, other: Site, program: str, section: dict[str, object], taken: str
) -> None:
    """A port that somebody has is refused in one line, and the one who has it goes on."""
    addresses = {
        "http": running.http,
        "grpc": running.grpc,
        "health": f"127.0.0.1:{running.port + 2}",
        "own": f"127.0.0.1:{running.port + 3}",
    }

    def fill(text: str) -> str:
        for name, address in addresses.items():
            text = text.replace(f"{{{name}}}", address)
        return text

    other.settings = json.loads(fill(json.dumps(section)))
    other.write_config()
    assert await _refused(program, other) == [fill(taken)]
    for one in PROGRAMS:
        await running.ready(one)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_a_folder_that_cannot_be_written_is_named(other: Site, program: str) -> None:
    """Each folder that can't be used gets its line: the superuser, too, writes no folder here."""
    other.folder.mkdir(parents=True)
    (other.folder / "file").write_text("in the way")
    other.settings = {
        "metadata": {"sqlite": {"path": "file/metadata.db"}},
        "blobs": {"files": {"root": "file/blobs"}},
    }
    other.write_config()
    said = await _refused(program, other)
    assert [line.partition(":")[0] for line in said] == ["metadata.sqlite.path", "blobs.files.root"]
    assert {path.name for path in other.folder.iterdir()} == {"file", "entrepot.yaml"}


@pytest.mark.parametrize("program", PROGRAMS)
async def test_every_problem_of_the_configuration_gets_a_line(other: Site, program: str) -> None:
    """Unknown keys, wrong types and features that are not built are all named at once."""
    other.settings = {
        "htpp": {},
        "limits": {"page": "many", "manifest_bytes": 1},
        "auth": {"htpasswd": {"path": "users"}},
        "deletes": 3,
    }
    other.write_config()
    said = await _refused(program, other)
    assert sorted(line.partition(":")[0] for line in said) == [
        "auth",
        "deletes",
        "htpp",
        "limits.manifest_bytes",
        "limits.page",
    ]
    assert {path.name for path in other.folder.iterdir()} == {"entrepot.yaml"}


async def test_what_is_no_yaml_is_refused_with_its_place(other: Site) -> None:
    """A file that can't be read as YAML is one problem, with line and column."""
    other.folder.mkdir(parents=True)
    other.config.write_text("site: fra\nhttp: [\n")
    (said,) = await _refused("gateway", other)
    assert said.startswith(f"{other.config}:3:1: ")


async def test_another_sites_data_is_refused(running: Site, other: Site) -> None:
    """A folder that holds the data of another site is not touched."""
    other.settings = {
        "metadata": {"sqlite": {"path": str(running.metadata)}},
        "blobs": {"files": {"root": str(running.blobs)}},
    }
    before = files(running)
    other.write_config()
    (said,) = await _refused("gateway", other)
    assert said.startswith("site: ")
    assert files(running) == before


async def test_supervised_processes_end_with_the_first_problem(other: Site) -> None:
    """`entrepot serve` on a configuration that is wrong says so like its processes, and ends."""
    other.settings = {"htpp": {}}
    other.write_config()
    done = await to_thread(
        subprocess.run,
        (Path(sys.executable).parent / "entrepot", "serve", "--config", other.config),
        cwd=_ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "htpp" in done.stderr
    assert yaml.safe_load(other.config.read_text())["htpp"] == {}
