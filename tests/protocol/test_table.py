"""The page about the protocol is what the tests say, and no row that must hold lacks a test."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.protocol.table import PAGE, ROOT, Row, page, read_rows, shown_by

IDS = (
    "tests/unit/test_b.py::test_two[U2-process]",
    "tests/protocol/test_a.py::test_one[U2-0.10]",
    "tests/protocol/test_a.py::test_one[process-U2]",
    "tests/protocol/test_a.py::test_none[B1x-AU22.5]",
)


def test_rows_are_found_in_ids() -> None:
    """A row is shown by a test that names it as a word of its own; the protocol's tests first."""
    one, two = "tests/protocol/test_a.py::test_one", "tests/unit/test_b.py::test_two"
    assert shown_by(IDS) == {"0.10": [one], "U2": [one, two]}


def test_the_page_links_rows_to_tests() -> None:
    """A row's line has its rule, whether it is built, and its tests."""
    made = page([Row("U2", "C", "a|b", "yes")], shown_by(IDS[:1]))
    assert "| U2 | C | a\\|b | yes | [`test_two`](../tests/unit/test_b.py) |" in made


@pytest.mark.timeout(600)
def test_the_page_is_what_the_tests_say() -> None:
    """docs/protocol.md is the page as it would be made now: see its second paragraph."""
    made = subprocess.run(
        (sys.executable, "-m", "tests.protocol.table"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.split(" | ") for line in made.splitlines() if line.startswith("| ")]
    untested = [line[0][2:] for line in lines if line[3].startswith("yes") and len(line[4]) < 3]
    assert untested == []
    assert PAGE.read_text() == made, "run: .venv/bin/python -m tests.protocol.table"
    assert all(row.built.startswith("yes") for row in read_rows() if row.level != "O")
