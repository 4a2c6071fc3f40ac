"""The configuration of an etcd."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.config import ConfigError, load, warnings


def problems(folder: Path, text: str) -> list[str]:
    """What is said against a file of this text."""
    file = folder / "entrepot.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, folder, {})
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("etcd", "problem"),
    [
        pytest.param("endpoints: []", "endpoints: may not be empty", id="no endpoint"),
        pytest.param("prefix: /a/", "endpoints: is required", id="no endpoints at all"),
        pytest.param("endpoints: ['e:1']", "endpoints[0]: expected http://", id="no URL"),
        pytest.param(
            "endpoints: ['http://e:1'], prefix: a", "prefix: expected /name/", id="prefix"
        ),
        pytest.param("endpoints: ['http://e:1'], prefix: ''", "prefix: expected", id="no prefix"),
        pytest.param("endpoints: ['https://e:1']", "ca: is required", id="TLS without ca"),
        pytest.param("endpoints: ['http://e:1'], ca: file", "of no use", id="ca without TLS"),
        pytest.param(
            "endpoints: ['http://e:1', 'https://e:2']", "either all begin", id="some with TLS"
        ),
        pytest.param(
            "endpoints: ['https://e:1'], ca: file", "ca: {0}/file: holds no certificate", id="ca"
        ),
        pytest.param(
            "endpoints: ['http://e:1'], username: u", "password_file: is required", id="user only"
        ),
        pytest.param(
            "endpoints: ['http://e:1'], username: u, password_file: file",
            "password_file: {0}/file: expected one line",
            id="a short password",
        ),
    ],
)
def test_an_etcd_is_checked(tmp_path: Path, etcd: str, problem: str) -> None:
    """What can't work, or would look safer than it is, is refused by its key."""
    (tmp_path / "file").write_text("short\n")
    found = problems(tmp_path, f"metadata: {{etcd: {{{etcd}}}}}")
    assert all(line.startswith("metadata.etcd.") for line in found)
    assert problem.format(tmp_path) in found[0]


def test_a_site_has_one_store_of_metadata(tmp_path: Path) -> None:
    """Nobody has to guess which of two is used."""
    text = "metadata: {sqlite: {path: a}, etcd: {endpoints: ['http://e:1']}}"
    assert problems(tmp_path, text) == ["metadata: holds both sqlite and etcd"]


def test_etcd_on_other_machines_without_tls_is_warned_of(tmp_path: Path) -> None:
    """On this machine nobody else hears what is said."""
    file = tmp_path / "entrepot.yaml"
    for host, count in (("127.0.0.1", 0), ("etcd.example", 1)):
        file.write_text(f"metadata: {{etcd: {{endpoints: ['http://{host}:2379']}}}}")
        found = [one for one in warnings(load(file, tmp_path, {}), {}) if "without TLS" in one]
        assert len(found) == count
