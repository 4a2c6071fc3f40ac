"""The shape of a site's configuration: every key there is, its default and what it may hold.

A key whose feature is not built yet stands here too, as `NotBuilt`: giving it any value is refused
by name, because a registry must not look closed while it is open.  Nothing here reads a file or a
variable (node/config.py does), and what is built cannot be changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    SecretStr,
)
from pydantic_core import CoreSchema, PydanticCustomError, PydanticKnownError, core_schema

# A DNS label (RFC 1123): a site's name is part of keys, metric labels and host names.
_SITE: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_HOST: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,252}[A-Za-z0-9])?")
_REPOSITORIES: Final = re.compile(r"(?:\*\*|[a-z0-9._*?-]+)(?:/(?:\*\*|[a-z0-9._*?-]+))*")
_TAGS: Final = re.compile(r"[A-Za-z0-9_.*?-]{1,128}")
_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?")
_AMOUNT: Final = re.compile(r"(\d+(?:\.\d+)?) ?(%|B|KiB|MiB|GiB|TiB)")
_SECRET: Final = re.compile(r"[\x21-\x7e]{16,4096}")
_ANY_HOST: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not listened on
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


def _problem(message: str) -> PydanticCustomError:
    # Braces would be taken for placeholders of pydantic's template.
    return PydanticCustomError("entrepot", "{message}", {"message": message})


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


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
        return _is_loopback(self.host)

    def overlaps(self, other: Address) -> bool:
        """Whether two listeners could not have both: same port, and same or any host."""
        hosts = {self.host, other.host}
        return self.port == other.port and (len(hosts) == 1 or bool(hosts & _ANY_HOST))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def __get_pydantic_core_schema__(cls, _: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validated(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        text = _text(value)
        try:
            return cls.parse(text)
        except ValueError as err:
            raise _problem(str(err)) from err


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
        return core_schema.no_info_plain_validator_function(cls._validated)

    @classmethod
    def _validated(cls, value: object) -> Self:
        if isinstance(value, cls):
            return value
        text = _text(value)
        try:
            return cls.parse(text)
        except ValueError as err:
            raise _problem(str(err)) from err


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ip_address(host).is_loopback)


def _not_built(_: object) -> None:
    raise _problem("not built yet")


def _not_bool(value: object) -> object:
    # YAML's `page: yes` would otherwise become 1.
    if isinstance(value, bool):
        raise PydanticKnownError("int_type")
    return value


def _deletes_only(value: bool) -> bool:
    if not value:
        raise _problem("false is not built yet: a peer's deletes are always taken")
    return value


def _site(text: str) -> str:
    if not _SITE.fullmatch(text):
        raise _problem("a site's name is 1 to 63 of a-z, 0-9 and -, with no - at either end")
    return text


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _problem(f"{text!r} is no URL") from None
    host = parts.hostname or ""
    if parts.scheme not in {"http", "https"} or not (_HOST.fullmatch(host) or _is_ip(host)):
        raise _problem("expected http://host:port or https://host:port")
    if port == 0 or parts.username is not None or parts.path.strip("/"):
        raise _problem("expected a scheme, a host and a port only")
    if parts.query or parts.fragment or parts.path == "//":
        raise _problem("expected a scheme, a host and a port only")
    return f"{parts.scheme}://{parts.netloc}"


def _repositories(text: str) -> str:
    if not _REPOSITORIES.fullmatch(text) or "***" in text:
        raise _problem(f"{text!r} is no pattern of repositories, such as team/* or **")
    return text


def _tags(text: str) -> str:
    if not _TAGS.fullmatch(text) or "***" in text:
        raise _problem(f"{text!r} is no pattern of tags, such as v1.* or **")
    return text


def _header(name: str) -> str:
    if not _HEADER.fullmatch(name):
        raise _problem("is no name of a header")
    if name.lower() in _OWN_HEADERS:
        raise _problem("is set by the registry itself")
    return name


def _header_value(text: str) -> str:
    if not _VALUE.fullmatch(text):
        raise _problem("is no text that a header can hold")
    return text


def _some(items: tuple[object, ...]) -> tuple[object, ...]:
    # Not `min_length`: pydantic then calls a list empty whose items are wrong.
    if not items:
        raise _problem("may not be empty")
    return items


NotBuilt = Annotated[None, BeforeValidator(_not_built)]
Whole = Annotated[int, BeforeValidator(_not_bool)]
SiteName = Annotated[str, AfterValidator(_site)]
Url = Annotated[str, AfterValidator(_url)]
Repositories = Annotated[str, AfterValidator(_repositories)]
Tags = Annotated[str, AfterValidator(_tags)]
Header = Annotated[str, AfterValidator(_header)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]


class Section(BaseModel):
    """A part of the configuration: cannot be changed, takes no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Http(Section):
    """Where the registry answers, and how it names itself; `public_url` has no final slash."""

    listen: Annotated[tuple[Address, ...], AfterValidator(_some)] = (Address("127.0.0.1", 5000),)
    public_url: Url | None = None
    headers: dict[Header, HeaderValue] = Field(default_factory=dict)
    trusted_proxies: NotBuilt = None
    tls: NotBuilt = None


class Grpc(Section):
    """Where the gateway publishes its site's changes to peers."""

    listen: Address = Address("127.0.0.1", 5001)
    tls: NotBuilt = None


class Metrics(Section):
    """Where the gateway answers /livez, /readyz and /metrics."""

    listen: Address = Address("127.0.0.1", 5002)


class Replicator(Section):
    """Where the replicator answers /livez, /readyz and /metrics."""

    listen: Address = Address("127.0.0.1", 5003)


class Sqlite(Section):
    """The embedded KV; the path is absolute once loaded."""

    path: Path = Path("metadata.db")


class Metadata(Section):
    """Which KV holds the site's metadata."""

    sqlite: Sqlite = Sqlite()
    etcd: NotBuilt = None


class Files(Section):
    """A folder of blobs; the path is absolute once loaded."""

    root: Path = Path("blobs")


class Blobs(Section):
    """Which store holds the site's blobs, and how much of its disk stays free."""

    files: Files = Files()
    reserve: Reserve = Reserve(share=0.05)
    object_store: NotBuilt = None


class Peer(Section):
    """Another site: where it answers, what is taken from it, and the secret of the pair."""

    site: SiteName
    http: Url
    grpc: Address
    secret_file: Path | None = None
    ca: NotBuilt = None
    follow: bool = True
    repositories: Annotated[tuple[Repositories, ...], AfterValidator(_some)] = ("**",)
    tags: Annotated[tuple[Tags, ...], AfterValidator(_some)] = ("**",)
    deletes: Annotated[bool, AfterValidator(_deletes_only)] = True
    bandwidth: NotBuilt = None
    blobs_in_flight: Whole = Field(default=4, ge=1, le=64)

    @cached_property
    def secret(self) -> SecretStr | None:
        """The secret of the pair; None if none is given.  `load` has read it once already.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no secret of 16 to 4096 printable characters.
        """
        if self.secret_file is None:
            return None
        text = self.secret_file.read_text(encoding="ascii", errors="replace").strip()
        if not _SECRET.fullmatch(text):
            raise ValueError("expected one line of at least 16 printable characters")
        return SecretStr(text)

    @property
    def is_loopback(self) -> bool:
        """Whether both of its addresses are on this machine."""
        return self.grpc.is_loopback and _is_loopback(urlsplit(self.http).hostname or "")


class Collect(Section):
    """How long an unreferenced blob is kept after it was last wanted, in seconds."""

    grace: Whole = Field(default=86400, ge=1)
    interval: NotBuilt = None


class Limits(Section):
    """The largest manifest taken, in bytes, and the most names on one page of a list."""

    manifest_bytes: Whole = Field(default=4194304, ge=1024, le=16777216)
    page: Whole = Field(default=1000, ge=1, le=10000)


class Config(Section):
    """The whole configuration of one site's processes."""

    site: SiteName = "local"
    http: Http = Http()
    grpc: Grpc = Grpc()
    metrics: Metrics = Metrics()
    replicator: Replicator = Replicator()
    metadata: Metadata = Metadata()
    blobs: Blobs = Blobs()
    peers: tuple[Peer, ...] = ()
    webhooks: NotBuilt = None
    auth: NotBuilt = None
    collect: Collect = Collect()
    deletes: bool = True
    read_only: bool = False
    limits: Limits = Limits()
