"""The admin API as an OpenAPI 3.1 document, for programs that are made from one.

What is answered from a dataclass is described by that dataclass, so it can't be described wrongly;
a test holds the paths and the rest against the table of routes and the answers themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeAlias

from aiohttp import web
from pydantic import TypeAdapter

from gateway.answers import Answer
from gateway.conflicts import Choice
from gateway.routes import Resource, Target
from node.records import Parked
from node.replication_status import PeerStatus
from node.telemetry import VERSION
from node.whereabouts import Place

Schema: TypeAlias = Mapping[str, object]

_TEXT: Final[Schema] = {"type": "string"}
_NUMBER: Final[Schema] = {"type": "integer"}
_TRUTH: Final[Schema] = {"type": "boolean"}
_TEXTS: Final[Schema] = {"type": "array", "items": _TEXT}


async def openapi(_request: web.BaseRequest, _target: Target) -> Answer:
    """The document."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return Answer(200, headers, json.dumps(document()).encode())


@cache
def document() -> dict[str, Any]:
    """The document, as plain values."""
    schemas: dict[str, object] = {}
    peers = _list(_of(PeerStatus, schemas))
    places = _list(_of(Place, schemas))
    parked = _list({"allOf": [_of(Parked, schemas), _object(repository=_TEXT)]})
    choice = _of(Choice, schemas)
    schemas |= {"Error": _ERRORS, "Conflict": _CONFLICT}
    conflicts = _list({"$ref": "#/components/schemas/Conflict"})
    query, site = _query("repository", "Of one repository."), {**_query("peer", ""), "in": "path"}
    paths = {
        Resource.SITE: {"get": _call("Which site this is.", _SITE)},
        Resource.PEERS: {"get": _call("How each peer is followed.", _object(peers=peers))},
        f"{Resource.PEERS}/{{peer}}/reconcile": {
            "post": _call(
                "Compare with a peer at once.",
                _object(site=_TEXT, revision=_NUMBER),
                {**site, "required": True},
                _query("full", "Apply all anew that the peer has.", _TRUTH),
                status=202,
            )
        },
        Resource.IMAGES: {
            "get": _call(
                "Which sites have an image, and why the others have not.",
                _object(**_IMAGE, sites=places),
                {**query, "required": True},
                {**_query("reference", "A tag or a digest."), "required": True},
            )
        },
        Resource.PARKED: {
            "get": _call(
                "What is left out here, by peer.",
                _object(peers=_list(_object(site=_TEXT, parked=parked, more=_TRUTH))),
            )
        },
        Resource.CONFLICTS: {
            "get": _call(
                "Tags that were pushed at several sites at once; the next page by Link.",
                _object(conflicts=conflicts),
                query,
                _query("n", "The most on a page.", _NUMBER),
                _query("last", "REPOSITORY:TAG, after which the page begins."),
            )
        },
        Resource.RESOLVE: {
            "post": {
                **_call(
                    "Let a tag in conflict show one digest.",
                    choice,
                    {**_query("If-Match", "The conflict's etag."), "in": "header"},
                ),
                "requestBody": {"required": True, "content": _json(choice)},
            }
        },
        Resource.OPENAPI: {"get": _call("This document.", {"type": "object"})},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Entrepot: the admin API of a site", "version": VERSION},
        "paths": {str(path): calls for path, calls in paths.items()},
        "components": {"schemas": schemas},
    }


def _call(summary: str, answer: Schema, *parameters: Schema, status: int = 200) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {
            str(status): {"description": "Done.", "content": _json(answer)},
            "default": {"description": "Refused, or not now.", "content": _json(error)},
        },
    }


def _query(name: str, meaning: str, kind: Schema = _TEXT) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": meaning, "schema": kind}


def _json(schema: Schema) -> Schema:
    return {"application/json": {"schema": schema}}


def _of(kind: type, schemas: dict[str, object]) -> Schema:
    """A reference to a type's description, which is put among the schemas with all it needs."""
    template = "#/components/schemas/{model}"
    schema = TypeAdapter(kind).json_schema(mode="serialization", ref_template=template)
    schemas |= schema.pop("$defs", {})
    schemas[kind.__name__] = schema
    return {"$ref": template.format(model=kind.__name__)}


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_SITE: Final = _object(
    site=_TEXT,
    incarnation=_TEXT,
    version=_TEXT,
    revision={"type": ["integer", "null"]},
    peers=_TEXTS,
    health=_TEXTS,
    store={"type": "object"},
)
_IMAGE: Final[Mapping[str, Schema]] = {
    "repository": _TEXT,
    "reference": _TEXT,
    "digest": _TEXT,
    "media_type": _TEXT,
    "size": _NUMBER,
    "revision": _NUMBER,
    "pushed_ms": _NUMBER,
    "pushed_at": _TEXT,
    "now_ms": _NUMBER,
}
_SIBLING: Final = _object(
    digest=_TEXT, media_type=_TEXT, size=_NUMBER, pushed_ms=_NUMBER, site=_TEXT, shown=_TRUTH
)
_CONFLICT: Final = _object(repository=_TEXT, tag=_TEXT, etag=_TEXT, siblings=_list(_SIBLING))
_ERRORS: Final = _object(
    errors=_list(_object(code=_TEXT, message=_TEXT, detail={"type": "object"}))
)
