"""The shape of a site's configuration: every key there is, its default and what it may hold.

A key whose feature is not built yet stands here too, as `NotBuilt`: giving it any value is refused
by name, because a registry must not look closed while it is open.  Nothing here reads a file or a
variable (node/config.py does), and what is built cannot be changed.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from node.config_values import (
    Address,
    Bandwidth,
    Header,
    HeaderValue,
    KeyPrefix,
    NotBuilt,
    Repositories,
    Reserve,
    Section,
    SiteName,
    Tags,
    Url,
    Whole,
    is_loopback_url,
    problem,
    some,
)

_SECRET: Final = re.compile(r"[\x21-\x7e]{16,4096}")


def _secret(file: Path) -> SecretStr:
    text = file.read_text(encoding="ascii", errors="replace").strip()
    if not _SECRET.fullmatch(text):
        raise ValueError("expected one line of at least 16 printable characters")
    return SecretStr(text)


class Tls(Section):
    """Listeners' certificate chain and its key, and whose certificates clients must have, if any.

    All three are files in PEM form; without a certificate there is no TLS.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class Http(Section):
    """Where the registry answers, and how it names itself; `public_url` has no final slash."""

    listen: Annotated[tuple[Address, ...], AfterValidator(some)] = (Address("127.0.0.1", 5000),)
    public_url: Url | None = None
    headers: dict[Header, HeaderValue] = Field(default_factory=dict)
    trusted_proxies: NotBuilt = None
    tls: Tls = Tls()

    @property
    def scheme(self) -> str:
        """How URLs of the listeners begin."""
        return "https" if self.tls.certificate else "http"


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


class Etcd(Section):
    """An etcd: its members, where the site's keys begin in it, and what opens it.

    The user's password is in `password`, not here.
    """

    endpoints: Annotated[tuple[Url, ...], AfterValidator(some)]
    prefix: KeyPrefix = "/entrepot/"
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    username: str | None = None
    password_file: Path | None = None

    @property
    def is_secure(self) -> bool:
        """Whether it is spoken to by TLS only."""
        return all(url.startswith("https:") for url in self.endpoints)

    @cached_property
    def password(self) -> SecretStr | None:
        """The user's password; None if none is given.  `load` has read it once already.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no secret of 16 to 4096 printable characters.
        """
        return None if self.password_file is None else _secret(self.password_file)


class Metadata(Section):
    """Which KV holds the site's metadata: an etcd if there is one, else a file."""

    sqlite: Sqlite = Sqlite()
    etcd: Etcd | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if self.etcd and "sqlite" in self.model_fields_set:
            raise problem("holds both sqlite and etcd")
        return self


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
    ca: Path | None = None
    follow: bool = True
    repositories: Annotated[tuple[Repositories, ...], AfterValidator(some)] = ("**",)
    tags: Annotated[tuple[Tags, ...], AfterValidator(some)] = ("**",)
    deletes: bool = True
    bandwidth: Bandwidth | None = None
    blobs_in_flight: Whole = Field(default=4, ge=1, le=64)

    @cached_property
    def secret(self) -> SecretStr | None:
        """The secret of the pair; None if none is given.  `load` has read it once already.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file holds no secret of 16 to 4096 printable characters.
        """
        return None if self.secret_file is None else _secret(self.secret_file)

    @property
    def is_loopback(self) -> bool:
        """Whether both of its addresses are on this machine."""
        return self.grpc.is_loopback and is_loopback_url(self.http)


class Collect(Section):
    """How long an unreferenced blob is kept after it was last wanted, and how often to look for
    what nobody wants any more, in seconds.
    """

    grace: Whole = Field(default=86400, ge=1)
    interval: Whole = Field(default=3600, ge=1)


class Limits(Section):
    """The largest manifest taken, in bytes; names on one page of a list; requests at once."""

    manifest_bytes: Whole = Field(default=4194304, ge=1024, le=16777216)
    page: Whole = Field(default=1000, ge=1, le=10000)
    requests: Whole = Field(default=4096, ge=1, le=65536)


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

    @property
    def folder(self) -> Path:
        """Where the site's files lie, for who looks for them; with an etcd all its nodes do it."""
        return self.blobs.files.root if self.metadata.etcd else self.metadata.sqlite.path.parent
