"""Load a site's configuration: one YAML file, then `ENTREPOT_` variables, then defaults.

Promises: every problem there is comes out at once, one line each, with the path of its key; a key
that is unknown, given twice or not built yet is never ignored; relative paths are relative to the
file's folder, or to the data folder if there is no file.

A variable names a key by its path, with `__` between levels: `ENTREPOT_HTTP__PUBLIC_URL`,
`ENTREPOT_PEERS__0__SITE`.  Lists and mappings are given as YAML (so JSON will do):
`ENTREPOT_HTTP__LISTEN='["0.0.0.0:5000"]'`.  An empty variable counts as not given.
"""

from __future__ import annotations

import difflib
import os
import re
import tempfile
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from node.config_checks import contradictions, secret_problems, tls_problems
from node.config_models import Config, Peer
from node.config_values import Address, Section, is_loopback_url

__all__ = [
    "Address",
    "Config",
    "ConfigError",
    "Peer",
    "ensure_folders",
    "load",
    "require_folder",
    "warnings",
]

Location: TypeAlias = tuple[str | int, ...]
S = TypeVar("S", bound=Section)

_PREFIX: Final = "ENTREPOT_"
# By this a process knows whose child it is (node/supervisor.py), and says so (node/health.py).
SUPERVISOR: Final = "ENTREPOT_SUPERVISOR"
# Given to the command itself (node/lifecycle.py), not part of a site's configuration.
_OF_THE_COMMAND: Final = frozenset({"ENTREPOT_CONFIG", "ENTREPOT_DATA", SUPERVISOR})
# Kubernetes sets these in every container beside a Service that is called entrepot.
_OF_KUBERNETES: Final = re.compile(r"ENTREPOT_(SERVICE_(HOST|PORT)(_.+)?|PORT(_\d+_.+)?)")
_SHOWN_CHARACTERS: Final = 40
# Stands in for what is wrong of a peer: nothing can be said against it.
_ANY_PEER: Final = {"site": "peer", "http": "http://127.0.0.1:1", "grpc": "127.0.0.1:1"}

_EXPECTED: Final = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "path_type": "a path",
}


class ConfigError(Exception):
    """The process cannot start as it is configured; `problems` are lines of `path: message`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def require_folder(data: Path) -> None:
    """Refuse what can't be a folder of data because it is a file.

    Raises:
        ConfigError: It is a file.
    """
    if data.is_file():
        raise ConfigError(f"--data: {data} is a file, not a folder")


def load(file: Path | None, data: Path, environ: Mapping[str, str] = os.environ) -> Config:
    """The configuration of a file, with variables over it; all paths in it are absolute.

    Raises:
        ConfigError: Something is wrong; it holds all that is.
    """
    if not file:
        require_folder(data)
    given, odd = _parse(file) if file else ({}, [])
    variables, problems = _overlay(given, environ)
    problems += odd
    config, errors = _mended(given)
    problems += dict.fromkeys(_render(error, variables) for error in errors)
    config = _with_absolute_paths(config, (file.parent if file else data).absolute())
    unknown = {_path(_place(error)) for error in errors}
    problems += contradictions(config, unknown)
    problems += [*secret_problems(config), *tls_problems(config)]
    if problems:
        raise ConfigError(*problems)
    return config


def warnings(config: Config, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What an operator should know although the process can start, one sentence each."""
    known = config.http.tls.client_ca is not None
    everybody = "everybody who has a certificate" if known else "everybody"
    may = "read" if config.read_only else "do"
    found = [f"there are no users yet: {everybody} may {may} everything"]
    if not known and not all(address.is_loopback for address in config.http.listen):
        found.append("http.listen is open to other machines, and anybody there may push and delete")
    etcd = config.metadata.etcd
    if etcd and not etcd.is_secure and not all(is_loopback_url(url) for url in etcd.endpoints):
        found.append("metadata.etcd.endpoints are other machines, spoken to without TLS")
    left_over = sorted(name for name in environ if name.startswith("REGISTRY_"))
    found += [f"{name} is a variable of registry:2 and means nothing here" for name in left_over]
    return tuple(found)


def ensure_folders(config: Config) -> None:
    """Make the folders of the metadata and the blobs, and be sure that both can be written.

    Raises:
        ConfigError: One of them can't be made or written.
    """
    folders = {"blobs.files.root": config.blobs.files.root}
    if not config.metadata.etcd:
        folders = {"metadata.sqlite.path": config.metadata.sqlite.path.parent, **folders}
    problems = []
    for key, folder in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as err:
            problems.append(f"{key}: {folder} can't be written: {err.strerror}")
    if problems:
        raise ConfigError(*problems)


# --- the file


class _Loader(yaml.SafeLoader):
    """The safe loader, that also refuses a key given twice: the second would win unseen."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} is given twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml(text: str | bytes) -> object:
    # A subclass of SafeLoader: builds plain values only.
    return yaml.load(text, Loader=_Loader)  # noqa: S506


def _parse(file: Path) -> tuple[dict[str, object], list[str]]:
    """What stands under keys of text, and a problem for each other key."""
    try:
        content = _yaml(file.read_bytes())
    except OSError as err:
        raise ConfigError(f"{file}: can't be read: {err.strerror}") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{file}{_position(err)}") from err
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: expected keys with values, found {_found(content)}")
    given = {key: value for key, value in content.items() if isinstance(key, str)}
    return given, [f"{key}: a key is text" for key in content if key not in given]


def _position(err: yaml.YAMLError) -> str:
    if isinstance(err, yaml.MarkedYAMLError) and err.problem_mark:
        mark = err.problem_mark
        return f":{mark.line + 1}:{mark.column + 1}: {err.problem or err.context}"
    return f": is no YAML: {str(err).splitlines()[0]}"


# --- the variables


def _overlay(
    given: dict[str, object], environ: Mapping[str, str]
) -> tuple[dict[Location, str], list[str]]:
    """Put the variables over what the file gave; which variable set what, and what went wrong."""
    variables: dict[Location, str] = {}
    problems = []
    for name in sorted(environ):
        if not name.startswith(_PREFIX) or name in _OF_THE_COMMAND or not environ[name].strip():
            continue
        if _OF_KUBERNETES.fullmatch(name):
            continue
        steps = [step.lower() for step in name.removeprefix(_PREFIX).split("__")]
        try:
            variables[_put(given, steps, _value(environ[name]))] = name
        except yaml.YAMLError as err:
            problems.append(f"{name}{_position(err)}")
        except LookupError:
            problems.append(f"{name}: there is no such key, or it is not inside of one")
    return variables, problems


def _value(text: str) -> object:
    """Lists, mappings and null as YAML; all else stays text, and its key knows what it is."""
    stripped = text.strip()
    return _yaml(text) if stripped.startswith(("[", "{")) or stripped == "null" else stripped


def _put(given: dict[str, object], steps: Sequence[str], value: object) -> Location:
    """Raises: LookupError: The path leads through something that holds no keys."""
    here: object = given
    location: list[str | int] = []
    for step in steps[:-1]:
        if isinstance(here, dict):
            inner = here.get(step)
            here[step] = inner = {} if inner is None else inner
            location.append(step)
        elif isinstance(here, list) and step.isdigit():
            location.append(int(step))
            inner = here[int(step)]
        else:
            raise LookupError
        here = inner
    last: str | int = steps[-1]
    if isinstance(here, list) and steps[-1].isdigit():
        last = int(steps[-1])
        here[last] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise LookupError
    return (*location, last)


# --- what can be read of it


def _mended(given: dict[str, object]) -> tuple[Config, list[ErrorDetails]]:
    """The configuration without what is wrong in it, so that the rest can be checked too."""
    found: list[ErrorDetails] = []
    mended: set[Location] = set()
    while True:
        try:
            return Config.model_validate(given), found
        except ValidationError as err:
            errors = err.errors(include_url=False)
        # Some mistakes are seen only when others are gone.
        found += errors
        for place in {_place(error) for error in errors}:
            # If it is still there, it goes with its whole section.
            with suppress(LookupError):
                _mend(given, place[:1] if place in mended else place)
            mended.add(place)


def _mend(given: dict[str, object], place: Location) -> None:
    match place:
        case ("peers", int(n)):
            _within(given, place[:-1])[n] = dict(_ANY_PEER)
        case ("peers", int(), str(key)) if key in _ANY_PEER:
            _within(given, place[:-1])[key] = _ANY_PEER[key]
        case ("metadata", "etcd", *_):
            # Without its endpoints it is none.
            _within(given, place[:1]).pop("etcd", None)
        case _:
            while isinstance(place[-1], int):
                place = place[:-1]
            _within(given, place[:-1]).pop(place[-1], None)


def _within(given: dict[str, object], steps: Location) -> Any:
    here: Any = given
    for step in steps:
        here = here[step]
    return here


def _place(error: ErrorDetails) -> Location:
    # pydantic marks a mapping whose key itself is wrong with "[key]"; the key is what matters.
    return tuple(step for step in error["loc"] if step != "[key]")


# --- what is said of a problem


def _render(error: ErrorDetails, variables: Mapping[Location, str]) -> str:
    location = _place(error)
    return f"{_path(location)}: {_message(error)}{_source(location, variables)}"


def _path(location: Location) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
    return text.removeprefix(".")


def _source(location: Location, variables: Mapping[Location, str]) -> str:
    for length in range(len(location), 0, -1):
        if location[:length] in variables:
            return f" (from {variables[location[:length]]})"
    # A variable may have brought a whole section with it.
    inside = (name for at, name in variables.items() if at[: len(location)] == location)
    return f" (from {name})" if (name := next(inside, None)) else ""


def _message(error: ErrorDetails) -> str:
    kind, found, limits = error["type"], error["input"], error.get("ctx", {})
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, found {_found(found)}"
    match kind:
        case "missing":
            message = "is required"
        case "extra_forbidden":
            message = f"unknown key{_suggestion(error['loc'])}"
        case "greater_than_equal":
            message = f"must be at least {limits['ge']}, is {_found(found)}"
        case "less_than_equal":
            message = f"must be at most {limits['le']}, is {_found(found)}"
        case _:
            message = error["msg"]
    return message


def _found(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "keys with values"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _suggestion(location: Location) -> str:
    near = difflib.get_close_matches(str(location[-1]), _keys_beside(location), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _keys_beside(location: Location) -> Iterable[str]:
    model: type[BaseModel] = Config
    for step in location[:-1]:
        if isinstance(step, str):
            annotation = model.model_fields[step].annotation
            model = next(
                one
                for one in (annotation, *get_args(annotation))
                if isinstance(one, type) and issubclass(one, BaseModel)
            )
    return model.model_fields


# --- what is found to be right


def _with_absolute_paths(section: S, base: Path) -> S:
    """The section, and all inside of it, with the paths that are relative beginning at `base`."""
    return section.model_copy(update={name: _absolute(value, base) for name, value in section})


def _absolute(value: object, base: Path) -> object:
    match value:
        case Path():
            return base / value
        case Section():
            return _with_absolute_paths(value, base)
        case tuple():
            return tuple(_absolute(one, base) for one in value)
        case _:
            return value
