"""The keys of the configuration: what each may hold, and that none is there for show."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from node.config import Config, ConfigError, load
from node.config_values import Address, Bandwidth, NotBuilt, Reserve

ROOT = Path(__file__).parents[2]


# --- values


@pytest.mark.parametrize(
    ("given_text", "address"),
    [
        ("127.0.0.1:5000", Address("127.0.0.1", 5000)),
        ("[::1]:1", Address("::1", 1)),
        ("registry.example:65535", Address("registry.example", 65535)),
    ],
)
def test_addresses_are_read_as_they_are_written(given_text: str, address: Address) -> None:
    """An address is host and port, and is shown as it was given."""
    assert Address.parse(given_text) == address
    assert str(address) == given_text


@pytest.mark.parametrize(
    "given_text",
    [
        "",
        "5000",
        ":5000",
        "a:",
        "a:0",
        "a:65536",
        "a:٣",
        "::1:5000",
        "[::g]:1",
        "a b:1",
        "a:1 ",
        "-:1",
    ],
)
def test_what_is_no_address_is_refused(given_text: str) -> None:
    """Text that is not host:port never becomes an address."""
    with pytest.raises(ValueError, match=r".+"):
        Address.parse(given_text)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(given_text: str) -> None:
    """No text breaks the parser, and what it takes it can show."""
    try:
        address = Address.parse(given_text)
    except ValueError:
        return
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("100Mbit/s", 12_500_000),
        ("12MB/s", 12_000_000),
        ("1.5 GB/s", 1_500_000_000),
        ("64kbit/s", 8_000),
        ("1000000bit/s", 125_000),
    ],
)
def test_a_bandwidth_is_in_bits_or_bytes(text: str, bytes_per_s: int) -> None:
    """What providers sell and what tools show: both are taken, by powers of a thousand."""
    assert Bandwidth.parse(text).bytes_per_s == bytes_per_s


@pytest.mark.parametrize(
    ("given_text", "bytes_of_a_gib"),
    [("5%", 53687091), ("0%", 0), ("1.5%", 16106127), ("10MiB", 10 * 2**20), ("1 GiB", 2**30)],
)
def test_a_reserve_is_a_share_or_a_size(given_text: str, bytes_of_a_gib: int) -> None:
    """What stays free of a disk of 1 GiB."""
    assert Reserve.parse(given_text).bytes_of(2**30) == bytes_of_a_gib


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("site", "-a", "a site's name"),
        ("site", "a" * 64, "a site's name"),
        ("http.listen", "[]", "may not be empty"),
        ("http.public_url", "ftp://a", "expected http://host:port"),
        ("http.public_url", "https://u:p@a", "a host and a port only"),
        ("http.public_url", "https://a/b", "a host and a port only"),
        ("http.public_url", "https://a?b", "a host and a port only"),
        ("http.public_url", "https://[::1", "is no URL"),
        ("http.headers", '{"a b": c}', "is no name of a header"),
        ("http.headers", '{Location: "/"}', "is set by the registry itself"),
        ("http.headers", '{A: "b\\r\\nc: d"}', "no text that a header can hold"),
        ("http.headers", "{A: 5}", "expected text, found 5"),
        ("blobs.reserve", "5", "such as 5% or 20GiB"),
        ("blobs.reserve", "100%", "leaves no room"),
        ("limits.page", "1.5", "expected a whole number, found '1.5'"),
        ("deletes", "maybe", "expected true or false, found 'maybe'"),
    ],
)
def test_values_are_checked(key: str, value: str, problem: str, tmp_path: Path) -> None:
    """A value that its key can't hold is refused with what was expected."""
    name = f"ENTREPOT_{key.upper().replace('.', '__')}"
    with pytest.raises(ConfigError) as caught:
        load(None, tmp_path, {name: value})
    (line,) = caught.value.problems
    assert line.startswith(key)
    assert problem in line
    assert line.endswith(f"(from {name})")


def test_a_public_url_has_no_final_slash(tmp_path: Path) -> None:
    """Paths are put right behind it."""
    config = load(None, tmp_path, {"ENTREPOT_HTTP__PUBLIC_URL": "https://registry.example:444/"})
    assert config.http.public_url == "https://registry.example:444"


# --- the model itself


def leaves(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, bool]]:
    """Every key that holds no other keys, and whether its feature is built."""
    for name, field in model.model_fields.items():
        inner = [
            one
            for one in (field.annotation, *get_args(field.annotation))
            if isinstance(one, type) and issubclass(one, BaseModel)
        ]
        if inner:
            yield from leaves(inner[0], f"{path}{name}.")
        else:
            yield f"{path}{name}", field.metadata[:1] != [*get_args(NotBuilt)[1:]]


@cache
def attributes_read() -> frozenset[str]:
    """Every name that some module reads from something, but for the models of the keys."""
    files = [
        file for name in ("node", "gateway", "replicator") for file in (ROOT / name).glob("*.py")
    ]
    return frozenset(
        node.attr
        for file in files
        if file.name != "config_models.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    )


def test_the_walk_sees_both_kinds() -> None:
    """The walk over the model tells what is built from what is not."""
    found = dict(leaves(Config))
    assert found["http.public_url"]
    assert found["peers.secret_file"]
    assert found["http.tls.certificate"]
    assert not found["grpc.tls"]
    assert found["peers.bandwidth"]
    assert not found["webhooks"]


@pytest.mark.parametrize("path", [path for path, built in leaves(Config) if not built])
@pytest.mark.parametrize("value", ["null", "[]", "{}", "5"])
def test_what_is_not_built_is_refused_by_name(tmp_path: Path, path: str, value: str) -> None:
    """A registry never looks closed while it is open: whatever the value, the key is refused."""
    *sections, key = path.split(".")
    if sections == ["peers"]:
        text = f"peers: [{{site: nyc, http: 'http://[::1]:1', grpc: '[::1]:2', {key}: {value}}}]"
    else:
        text = "".join(f"{section}: {{" for section in sections) + f"{key}: {value}"
        text += "}" * len(sections)
    shown = path.replace("peers.", "peers[0].")
    file = tmp_path / "entrepot.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file, tmp_path, {})
    assert caught.value.problems == (f"{shown}: not built yet",)


@pytest.mark.parametrize("path", [path for path, built in leaves(Config) if built])
def test_what_is_built_is_used(path: str) -> None:
    """A key that is taken is read somewhere: none is there for show."""
    name = path.rpartition(".")[2]
    # The file is read where the secret is asked for.
    assert ("secret" if name == "secret_file" else name) in attributes_read()
