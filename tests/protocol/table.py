"""The page docs/protocol.md, made from the rows and from the names of the tests that show them.

`python -m tests.protocol.table` prints it.  A test shows a row by naming it in its id, between the
brackets: `test_start[process-U1-U2]`.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "protocol.md"

# Where a reader looks first.
_ORDER: Final = ("tests/protocol/", "tests/clients/", "tests/integration/", "tests/fuzz/", "tests/")
_SHOWN: Final = 2
_ROW: Final = re.compile(r"(?<![\w.])(?:0\.\d{1,2}|[A-Z]{1,2}\d{1,2})(?![\w.])")
_CHAPTERS: Final = {
    "G": "Every response",
    "PI": "Ping",
    "MG": "Manifests: GET and HEAD",
    "MP": "Manifests: PUT",
    "MD": "Manifests: DELETE",
    "B": "Blobs",
    "U": "Uploads",
    "TL": "Tags, catalog, search",
    "R": "Referrers",
    "N": "Names, tags, digests",
    "V": "What a manifest must be",
    "H": "Traps of the HTTP library",
    "0": "New after version 1.1.1 of the specification",
}
_HEAD: Final = (
    "# The v2 API, row by row\n\n"
    "What a registry must do for its clients, whether Entrepot does it, and which tests show it.\n"
    "This page is made from the tests by `python -m tests.protocol.table > docs/protocol.md`; a "
    "test fails while the page is not what they say, and while a row that must hold has no test.\n"
    "\n"
    "Levels: **M** the distribution specification demands it, **S** it recommends it, **C** a "
    "client in use breaks or loses something without it, **O** optional. `N` is a repository's "
    "name, `D` a digest, `T` a tag, `R` a tag or a digest, `U` the URL of an upload; DS is the "
    "specification, CT its conformance suite (CT1.1 that of version 1.1.1). Tests of "
    "`tests/protocol` run over HTTP against a registry in the test's process, against a gateway "
    "process over SQLite and files, and against two nodes of a site over an etcd of three members, "
    "each request to the other gateway than the one before.\n"
)
_COLUMNS: Final = "| row | level | rule | built | shown by |\n| --- | --- | --- | --- | --- |"


class Row(NamedTuple):
    """One rule: its id, its level, what it says, and "yes" or why not."""

    row: str
    level: str
    requirement: str
    built: str


class _Collector:
    """Keeps the names of the tests that pytest has found."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.ids = [item.nodeid for item in session.items]


def read_rows() -> list[Row]:
    """All rows, in the order of the page."""
    with (Path(__file__).parent / "rows.tsv").open(newline="") as lines:
        found = [Row(**line) for line in csv.DictReader(lines, delimiter="\t", quoting=3)]
    chapters = list(_CHAPTERS)
    return sorted(found, key=lambda row: (chapters.index(_chapter(row)), _number(row)))


def shown_by(ids: Iterable[str]) -> dict[str, list[str]]:
    """The test functions that name each row in their ids."""
    found: dict[str, list[str]] = {}
    for nodeid in sorted(set(ids), key=_rank):
        function, _, parameters = nodeid.partition("[")
        for row in _ROW.findall(parameters):
            tests = found.setdefault(row, [])
            if function not in tests:
                tests.append(function)
    return found


def page(rows: Iterable[Row], tests: Mapping[str, list[str]]) -> str:
    """The whole page."""
    lines = [_HEAD]
    chapter = ""
    for row in rows:
        if _chapter(row) != chapter:
            chapter = _chapter(row)
            lines.append(f"\n## {_CHAPTERS[chapter]}\n")
            lines.append(_COLUMNS)
        links = ", ".join(_link(test) for test in tests.get(row.row, [])[:_SHOWN])
        rule = row.requirement.replace("|", "\\|")
        lines.append(f"| {row.row} | {row.level} | {rule} | {row.built} | {links} |")
    return "\n".join(lines) + "\n"


def collected() -> list[str]:
    """The ids of all tests; to be called in a process of its own, as it imports them."""
    collector = _Collector()
    with redirect_stdout(sys.stderr):
        status = pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider"], [collector])
    if status != pytest.ExitCode.OK:
        raise RuntimeError(f"the tests can't be collected: {status!r}")
    return collector.ids


def _chapter(row: Row) -> str:
    return re.split(r"\d", row.row, maxsplit=1)[0] or "0"


def _number(row: Row) -> int:
    return int(re.findall(r"\d+", row.row)[-1])


def _rank(nodeid: str) -> tuple[int, str]:
    return next(n for n, start in enumerate(_ORDER) if nodeid.startswith(start)), nodeid


def _link(function: str) -> str:
    path, _, name = function.rpartition("::")
    return f"[`{name}`](../{path.partition('::')[0]})"


if __name__ == "__main__":
    sys.stdout.write(page(read_rows(), shown_by(collected())))
