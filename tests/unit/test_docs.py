"""The documentation is true: its examples load, and it leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from node.config import load
from node.config_models import Config, Peer

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "configuration.md").read_text()


def _examples(page: Path) -> list[str]:
    return re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_every_example_of_a_configuration_loads(page: Path, tmp_path: Path) -> None:
    """What a reader copies is taken as it stands."""
    for example in _examples(page):
        file = tmp_path / "entrepot.yaml"
        file.write_text(example)
        load(file, tmp_path, {})


def test_the_guide_shows_every_key_and_its_default(tmp_path: Path) -> None:
    """The example of the guide holds all keys that are built, with their defaults."""
    (example,) = _examples(ROOT / "docs" / "configuration.md")
    shown = yaml.safe_load(example)
    assert _shown(shown) == {path for path, built in _leaves(Config).items() if built}
    (tmp_path / "guide.yaml").write_text(example)
    guide, defaults = load(tmp_path / "guide.yaml", tmp_path, {}), load(None, tmp_path, {})
    told = {"site": defaults.site, "peers": ()}
    assert guide.model_copy(update=told) == defaults


def test_the_guide_names_every_key_that_is_not_built() -> None:
    """What is refused by name is listed by name."""
    (listed,) = re.findall(r"not built yet: (.*?)\.\n", GUIDE, flags=re.DOTALL)
    assert set(re.findall(r"`(.+?)`", listed)) == {
        path for path, built in _leaves(Config).items() if not built
    }


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))])
def test_every_file_that_is_named_stands(page: Path) -> None:
    """A reader who follows a page into the code finds it there."""
    named = re.findall(r"`((?:node|gateway|replicator|tests)/[\w/]+\.py)`", page.read_text())
    assert [path for path in named if not (ROOT / path).is_file()] == []


def test_the_picture_of_the_layers_names_every_module() -> None:
    """The table of `node/` leaves no module out and names none that is not there."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [\w ]+ \| (`.*?) \| ", page, flags=re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)[*/]*`", row)}
    # "and its parts": blob_files has blob_folders, config has config_models and config_checks.
    parts = {"blob_folders", "config_models", "config_values", "config_checks", "kv_sqlite_file"}
    parts |= {"kv_sqlite_rows", "kv_sqlite_threads", "kv_etcd_lines", "kv_etcd_members"}
    parts |= {
        "blob_bytes",
        "kv_etcd_landmarks",
        "kv_etcd_messages",
        "kv_etcd_status",
        "kv_etcd_watch",
    }
    modules = {path.stem for path in (ROOT / "node").glob("*.py")} - {"__init__"}
    assert named - {"wire"} == modules - parts


def _shown(value: object, path: str = "") -> set[str]:
    """The paths of an example's leaves."""
    if isinstance(value, dict) and value:
        return {key for name in value for key in _shown(value[name], f"{path}.{name}".lstrip("."))}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return _shown(value[0], f"{path}[]")
    return {path}


def _leaves(model: type[BaseModel], path: str = "") -> dict[str, bool]:
    """The paths of a model's leaves, and whether each is built."""
    found: dict[str, bool] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if kind == tuple[Peer, ...]:
            found |= _leaves(Peer, f"{path}{name}[].")
        elif isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _leaves(kind, f"{path}{name}.")
        else:
            found[path + name] = kind is not type(None)
    return found
