"""The values that a configuration may hold: what each looks like, and what is said if it doesn't.

Each is checked where it is read, so inside a value is always valid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Final, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

T = TypeVar("T", "Address", "Bandwidth", "Reserve")

# A DNS label (RFC 1123): a site's name is part of keys, metric labels and host names.
_SITE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_REPOSITORIES: Final = re.compile(r"(?:\*\*|[a-z0-9._*?-]+)(?:/(?:\*\*|[a-z0-9._*?-]+))*")
_TAGS: Final = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?) ?(%|B|KiB|MiB|GiB|TiB)")
_RATE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kMG]?)(bit|B)/s")
_PREFIXES: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_LEAST_BYTES_PER_S: Final = 8_000
_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on
_KEYS: Final = re.compile(r"/(?:[A-Za-z0-9._-]+/)+")
_UNITS: Final = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

# What a registry says by itself in its answers (PROTOCOL 1): a fixed value would be a lie.
_OWN_HEADERS: Final = frozenset(
    {
        "connection",
        "content-length",
        "content-range",
        "content-type",
        "date",
        "docker-content-digest",
        "docker-upload-uuid",
        "etag",
        "link",
        "location",
        "range",
        "transfer-encoding",
        "www-authenticate",
    }
)


def problem(message: str) -> PydanticCustomError:
    """What is said of a value that can't be."""
    # Braces would be taken for placeholders of pydantic's template.
    return PydanticCustomError("entrepot", "{message}", {"message": message})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


def _parsed(kind: type[T], value: object) -> T:
    """What the text says, in words of pydantic if it says nothing."""
    if isinstance(value, kind):
        return value
    text = _text(value)
    try:
        return kind.parse(text)
    except ValueError as err:
        raise problem(str(err)) from err


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address, `host:port` with a port of 1–65535; an IPv6 host stands in brackets."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: ValueError: The text is not `host:port`; the message says what is wrong."""
        host, colon, port = text.rpartition(":")
        if not colon or not host:
            raise ValueError("expected host:port")
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ValueError(f"{port or 'nothing'} is no port (1 to 65535)")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
            if not _is_ip(host) or ip_address(host).version != 6:
                raise ValueError(f"{host} is no IPv6 address")
        elif not _HOST.fullmatch(host):
            raise ValueError(f"{host} is no host")
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback_host(self.host)

    def overlaps(self, other: Address) -> bool:
        """Whether two listeners could not have both: same port, and same or any host."""
        hosts = {self.host, other.host}
        return self.port == other.port and (len(hosts) == 1 or bool(hosts & _ANY_HOST))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            partial(_parsed, cls), serialization=core_schema.to_string_ser_schema()
        )


@dataclass(frozen=True, slots=True)
class Reserve:
    """How much of a disk stays free: a share of its size (0 to 1), or a number of bytes."""

    share: float = 0.0
    fixed_bytes: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: ValueError: The text is no amount."""
        found = _AMOUNT.fullmatch(text)
        if not found:
            raise ValueError("expected a share or a size, such as 5% or 20GiB")
        number, unit = float(found[1]), found[2]
        if unit != "%":
            return cls(fixed_bytes=int(number * _UNITS[unit]))
        if number >= 100:
            raise ValueError("a reserve of 100% or more leaves no room for anything")
        return cls(share=number / 100)

    def bytes_of(self, disk_bytes: int) -> int:
        """The bytes to keep free on a disk of this size."""
        return self.fixed_bytes or int(disk_bytes * self.share)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(partial(_parsed, cls))


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """How many bytes a second may come, at least 8,000; k, M and G are powers of a thousand."""

    bytes_per_s: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: ValueError: The text is no rate, or one at which nothing would ever arrive."""
        found = _RATE.fullmatch(text)
        if not found:
            raise ValueError("expected a rate, such as 100Mbit/s or 12MB/s")
        bits = 8 if found[3] == "bit" else 1
        rate = int(float(found[1]) * _PREFIXES[found[2]] / bits)
        if rate < _LEAST_BYTES_PER_S:
            raise ValueError("a rate is at least 64kbit/s (8kB/s)")
        return cls(rate)

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(partial(_parsed, cls))


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback_host(host: str) -> bool:
    """Whether a host is this machine, as seen from itself only."""
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def is_loopback_url(url: str) -> bool:
    """Whether a URL's host is this machine."""
    return is_loopback_host(urlsplit(url).hostname or "")


def _not_built(_: object) -> None:
    raise problem("not built yet")


def _not_bool(value: object) -> object:
    # YAML's `page: yes` would otherwise become 1.
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _site(text: str) -> str:
    if not _SITE.fullmatch(text):
        raise problem("a site's name is 1 to 63 of a-z, 0-9 and -, with no - at either end")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise problem(f"{text!r} is no URL") from None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not (_HOST.fullmatch(host) or _is_ip(host)):
        raise problem("expected http://host:port or https://host:port")
    if port == 0 or parts.username is not None or parts.path.strip("/"):
        raise problem("expected a scheme, a host and a port only")
    if parts.query or parts.fragment or parts.path == "//":
        raise problem("expected a scheme, a host and a port only")
    return f"{parts.scheme}://{parts.netloc}"


def _repositories(text: str) -> str:
    if not _REPOSITORIES.fullmatch(text) or "***" in text:
        raise problem(f"{text!r} is no pattern of repositories, such as team/* or **")
    return text


def _tags(text: str) -> str:
    if not _TAGS.fullmatch(text) or "***" in text:
        raise problem(f"{text!r} is no pattern of tags, such as v1.* or **")
    return text


def _key_prefix(text: str) -> str:
    if not _KEYS.fullmatch(text) or len(text) > 100:
        raise problem("expected /name/, or several such names: a-z, A-Z, 0-9, '.', '_' and '-'")
    return text


def _header(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise problem("is no name of a header")
    if name.lower() in _OWN_HEADERS:
        raise problem("is set by the registry itself")
    return name


def _header_value(text: str) -> str:
    if not _VALUE.fullmatch(text):
        raise problem("is no text that a header can hold")
    return text


def some(items: tuple[object, ...]) -> tuple[object, ...]:
    """Refuse a list of nothing."""
    # Not `min_length`: pydantic then calls a list empty whose items are wrong.
    if not items:
        raise problem("may not be empty")
    return items


NotBuilt = Annotated[None, BeforeValidator(_not_built)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
SiteName = Annotated[str, AfterValidator(_site)]
Url = Annotated[str, AfterValidator(_url)]
Repositories = Annotated[str, AfterValidator(_repositories)]
Tags = Annotated[str, AfterValidator(_tags)]
KeyPrefix = Annotated[str, AfterValidator(_key_prefix)]
Header = Annotated[str, AfterValidator(_header)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]


class Section(BaseModel):
    """A part of the configuration: cannot be changed, takes no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
