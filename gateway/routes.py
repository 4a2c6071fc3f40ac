"""Which endpoint a request is for: one table, and paths read from the right.

A repository's name may hold any of the words of the paths (`a/manifests/b`), so what a path is
about stands at its end (PROTOCOL N4, H6).  Percent signs are undone once, segment by segment; what
can't be undone, or would then hold a slash, stays as it came, and no grammar of ours allows `%`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, unquote

from gateway.errors import EndpointUnknown
from node.digest import Digest
from node.errors import Unsupported
from node.reference import Repository, parse_repository


class Endpoint(StrEnum):
    """What can be asked for; the specification's endpoints and ours."""

    ROOT = "root"
    TO_PING = "to-ping"
    PING = "ping"  # end-1
    GET_BLOB = "get-blob"  # end-2
    GET_MANIFEST = "get-manifest"  # end-3
    START_UPLOAD = "start-upload"  # end-4a, 4b, 4c; end-11
    APPEND_UPLOAD = "append-upload"  # end-5
    FINISH_UPLOAD = "finish-upload"  # end-6
    PUT_MANIFEST = "put-manifest"  # end-7
    LIST_TAGS = "list-tags"  # end-8
    DELETE_MANIFEST = "delete-manifest"  # end-9
    DELETE_BLOB = "delete-blob"  # end-10
    LIST_REFERRERS = "list-referrers"  # end-12
    GET_UPLOAD = "get-upload"  # end-13
    CANCEL_UPLOAD = "cancel-upload"  # end-14
    LIST_REPOSITORIES = "list-repositories"
    PING_V1 = "ping-v1"
    SEARCH = "search"
    SHOW_SITE = "show-site"
    SHOW_PEERS = "show-peers"
    RECONCILE = "reconcile"
    SHOW_IMAGE = "show-image"
    LIST_PARKED = "list-parked"
    SHOW_OPENAPI = "show-openapi"
    LIST_CONFLICTS = "list-conflicts"
    RESOLVE_CONFLICT = "resolve-conflict"


class Resource(StrEnum):
    """What a path is about."""

    ROOT = "/"
    TO_PING = "/v2"
    PING = "/v2/"
    CATALOG = "/v2/_catalog"
    PING_V1 = "/v1/_ping"
    SEARCH = "/v1/search"
    SITE = "/api/v1/site"
    PEERS = "/api/v1/peers"
    IMAGES = "/api/v1/images"
    PARKED = "/api/v1/parked"
    OPENAPI = "/api/v1/openapi.json"
    CONFLICTS = "/api/v1/conflicts"
    RESOLVE = "/api/v1/conflicts/resolve"
    RECONCILE = "reconcile"
    MANIFEST = "manifests"
    BLOB = "blobs"
    UPLOADS = "uploads"
    UPLOAD = "upload"
    TAGS = "tags"
    REFERRERS = "referrers"


def _read(endpoint: Endpoint) -> dict[str, Endpoint]:
    return {"GET": endpoint, "HEAD": endpoint}


TABLE: Final[Mapping[Resource, Mapping[str, Endpoint]]] = {
    Resource.ROOT: _read(Endpoint.ROOT),
    Resource.TO_PING: _read(Endpoint.TO_PING),
    Resource.PING: _read(Endpoint.PING),
    Resource.CATALOG: _read(Endpoint.LIST_REPOSITORIES),
    Resource.PING_V1: _read(Endpoint.PING_V1),
    Resource.SEARCH: _read(Endpoint.SEARCH),
    Resource.SITE: _read(Endpoint.SHOW_SITE),
    Resource.PEERS: _read(Endpoint.SHOW_PEERS),
    Resource.RECONCILE: {"POST": Endpoint.RECONCILE},
    Resource.IMAGES: _read(Endpoint.SHOW_IMAGE),
    Resource.PARKED: _read(Endpoint.LIST_PARKED),
    Resource.OPENAPI: _read(Endpoint.SHOW_OPENAPI),
    Resource.CONFLICTS: _read(Endpoint.LIST_CONFLICTS),
    Resource.RESOLVE: {"POST": Endpoint.RESOLVE_CONFLICT},
    Resource.MANIFEST: {
        **_read(Endpoint.GET_MANIFEST),
        "PUT": Endpoint.PUT_MANIFEST,
        "DELETE": Endpoint.DELETE_MANIFEST,
    },
    Resource.BLOB: {**_read(Endpoint.GET_BLOB), "DELETE": Endpoint.DELETE_BLOB},
    Resource.UPLOADS: {"POST": Endpoint.START_UPLOAD},
    Resource.UPLOAD: {
        **_read(Endpoint.GET_UPLOAD),
        "PATCH": Endpoint.APPEND_UPLOAD,
        "PUT": Endpoint.FINISH_UPLOAD,
        "DELETE": Endpoint.CANCEL_UPLOAD,
    },
    Resource.TAGS: _read(Endpoint.LIST_TAGS),
    Resource.REFERRERS: _read(Endpoint.LIST_REFERRERS),
}

_FIXED: Final = frozenset(r for r in Resource if r.startswith("/"))
_NAMED: Final = {r.value: r for r in (Resource.MANIFEST, Resource.BLOB, Resource.REFERRERS)}


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about: the parts of its path, percent signs undone, and its query as sent.

    `last` is a reference, a digest or a session's id, whatever the resource has at its end.
    """

    resource: Resource
    path: str
    query: str = ""
    name: str = ""
    last: str = ""

    @property
    def repository(self) -> Repository:
        """Raises: NameInvalid: The name breaks the grammar."""
        return parse_repository(self.name)

    @property
    def digest(self) -> Digest:
        """Raises: DigestInvalid, DigestUnsupported: The path does not end in a digest."""
        return Digest.parse(self.last)

    def parameter(self, name: str) -> str | None:
        """The first value of a query parameter; None if it is not given."""
        values = self.parameters(name)
        return values[0] if values else None

    def parameters(self, name: str) -> list[str]:
        """All values of a query parameter."""
        if not self.query:
            return []
        query = self.query
        if self.resource is Resource.UPLOAD:
            # U3: scripts written from the specification append `?digest=` to our query.
            query = query.replace("?", "&")
        return [value for key, value in parse_qsl(query, keep_blank_values=True) if key == name]

    def media_types(self, name: str) -> list[str]:
        """All values of a parameter in which a blank can only have been a plus (G20)."""
        return [value.replace(" ", "+") for value in self.parameters(name)]

    def digest_parameter(self, name: str) -> Digest | None:
        """A digest in the query, escaped or not.

        Raises:
            DigestInvalid, DigestUnsupported: It is given and is none.
        """
        text = self.parameter(name)
        return None if text is None else Digest.parse(text.replace(" ", "+"))


def parse_target(raw: str) -> Target:
    """Read a request's target as it stood in the request line.

    Raises:
        EndpointUnknown: There is nothing of that shape.
    """
    path, _, query = raw.partition("?")
    if not path.startswith("/"):
        # The absolute form, which a proxy's client sends (RFC 9112 3.2.2).
        _, _, rest = path.partition("://")
        path = "/" + rest.partition("/")[2]
    if path in _FIXED:
        return Target(Resource(path), path, query)
    if path.startswith("/v2/"):
        return _parse_named(path, query)
    peer = path.removeprefix(f"{Resource.PEERS}/").removesuffix("/reconcile")
    if path != f"{Resource.PEERS}/{peer}/reconcile":
        raise EndpointUnknown(path)
    return Target(Resource.RECONCILE, path, query, _decoded(peer))


def _parse_named(path: str, query: str) -> Target:
    head, _, last = path[len("/v2/") :].removesuffix("/").rpartition("/")
    name, _, word = head.rpartition("/")
    if last == "uploads" and word == "blobs":
        return Target(Resource.UPLOADS, path, query, _decoded(name))
    if last == "list" and word == "tags":
        return Target(Resource.TAGS, path, query, _decoded(name))
    if word == "uploads" and name.endswith("/blobs"):
        name = name.removesuffix("/blobs")
        return Target(Resource.UPLOAD, path, query, _decoded(name), _decoded(last))
    resource = _NAMED.get(word)
    if resource is None or not name or path.endswith("/"):
        raise EndpointUnknown(path)
    return Target(resource, path, query, _decoded(name), _decoded(last))


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    return "/".join(_decoded_segment(segment) for segment in text.split("/"))


def _decoded_segment(segment: str) -> str:
    try:
        decoded = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        return segment
    return segment if "/" in decoded else decoded


def endpoint_of(method: str, target: Target) -> Endpoint:
    """The endpoint for a method on a target.

    Raises:
        Unsupported: Not with this method.
    """
    methods = TABLE[target.resource]
    endpoint = methods.get(method)
    if endpoint is None:
        raise Unsupported(f"method {method[:20]} is not offered here", tuple(methods))
    return endpoint
