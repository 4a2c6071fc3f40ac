"""What holds for the tree as a whole: what is shipped, and what never stands in a source."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import gateway
import node
import replicator

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = ("node", "gateway", "replicator")
GENERATED: Final = re.compile(r"_pb2(_grpc)?\.pyi?$")


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if not GENERATED.search(file.name):
                yield file


def test_the_packages_share_one_folder() -> None:
    """Names as plain as `node` must be ours, and of one version."""
    folders = {Path(package.__path__[0]).parent for package in (node, gateway, replicator)}
    assert folders == {ROOT}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of what it is made of: a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(
            ROOT / name, folder / "tree" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / "tree")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(folder), str(folder / "tree")], check=True, timeout=100)
    (built,) = folder.glob("*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_the_wheel_holds_all_of_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    """What is installed is what is tested, without the tests."""
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for pattern in ("*.py", "py.typed")
        for path in (ROOT / package).rglob(pattern)
    }
    assert {name for name in shipped if not name.endswith(".pyi")} == wanted


@pytest.mark.slow
def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    """Installing it gives `entrepot`."""
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "entrepot = node.cli:main" in wheel.read(entry_points).decode()


def test_every_decision_has_its_own_number() -> None:
    """An ADR is cited by its number."""
    names = [path.name for path in (ROOT / "docs/adr").glob("*.md")]
    odd = [name for name in names if not re.fullmatch(r"\d{4}-[a-z0-9-]+\.md", name)]
    assert odd == []
    numbers = Counter(name[:4] for name in names)
    assert [number for number, count in numbers.items() if count > 1] == []


def test_cited_decisions_exist() -> None:
    """Code that cites an ADR cites one that is there."""
    numbers = {path.name[:4] for path in (ROOT / "docs/adr").glob("*.md")}
    cited = {
        number
        for file in sources(*PACKAGES, "tests")
        for number in re.findall(r"\bADR (\d{4})\b", file.read_text())
    }
    assert cited <= numbers


def test_nothing_is_put_off() -> None:
    """What is left to do stands in an issue, not in a source."""
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sources(*PACKAGES, "tests")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert found == []


def test_background_work_is_started_in_one_place() -> None:
    """A task that nobody watches fails unseen: only lifecycle may start one outside of a group."""
    found = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file in sources(*PACKAGES)
        if file.name != "lifecycle.py"
        for call in ast.walk(ast.parse(file.read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"create_task", "ensure_future"}
        and isinstance(call.func.value, ast.Name)
        and call.func.value.id in {"asyncio", "loop"}
    ]
    assert found == []


def test_every_test_says_what_it_promises() -> None:
    """The first line of a test tells a reader what would be lost without it."""
    found = [
        f"{file.relative_to(ROOT)}::{test.name}"
        for file in sources("tests")
        for test in ast.walk(ast.parse(file.read_text()))
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef)
        and test.name.startswith("test_")
        and ast.get_docstring(test) is None
    ]
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    """A file can be judged from its first lines."""
    found = [
        str(file.relative_to(ROOT))
        for file in sources(*PACKAGES)
        if ast.get_docstring(ast.parse(file.read_text())) is None
    ]
    assert found == []
