"""The OpenAPI document: it names what there is, and describes what is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest

from gateway.openapi import document
from gateway.routes import TABLE, Resource
from node import keys
from node.config import Config
from node.kv import Put
from node.records import Parked
from node.reference import Repository
from node.wire import codec
from tests.contested import arrives
from tests.feeds import peer_at
from tests.registry import CONFIG, LAYER, REPOSITORY, Served, image, served

BELOW: Final = {Resource.RECONCILE: f"{Resource.PEERS}/{{peer}}/reconcile"}


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A site with a peer, a park of it, and a tag in conflict."""
    async with served(Config(site="fra", peers=(peer_at(7001, "nyc"),))) as registry:
        for content in (CONFIG, LAYER):
            await registry.push_blob(content)
        await registry.push_manifest(image(LAYER), "v1")
        await arrives(registry, "v1", image(LAYER, LAYER), site="nyc", ms=1_700_000_001_000)
        parked = codec.encode_parked(Parked(1, 2, 3, "why", 4, 5))
        await registry.kv.txn([], [Put(keys.parked("nyc", Repository("a")), parked)])
        yield registry


def test_every_path_of_the_admin_api_is_documented() -> None:
    """With its methods, and no other; HEAD is everywhere where GET is."""
    table = {
        BELOW.get(resource, str(resource)): {method.lower() for method in methods} - {"head"}
        for resource, methods in TABLE.items()
        if resource.startswith("/api/") or resource in BELOW
    }
    documented = {path: set(calls) for path, calls in document()["paths"].items()}
    assert documented == table


def _answered(path: str) -> Any:
    (call,) = document()["paths"][path].values()
    return call["responses"]["200"]["content"]["application/json"]["schema"]


def _differ(schema: Any, value: Any, where: str = "") -> Iterator[str]:
    """Where a value has other members than its schema says."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield from _differ(document()["components"]["schemas"][name], value, where)
    elif "allOf" in schema:
        parts = [_resolved(part) for part in schema["allOf"]]
        merged = {key: kind for part in parts for key, kind in part["properties"].items()}
        yield from _differ({"type": "object", "properties": merged}, value, where)
    elif schema.get("type") == "array":
        for item in value:
            yield from _differ(schema["items"], item, f"{where}[]")
    elif "properties" in schema:
        if set(schema["properties"]) != set(value):
            yield f"{where}: {set(schema['properties']) ^ set(value)}"
            return
        for name, kind in schema["properties"].items():
            yield from _differ(kind, value[name], f"{where}.{name}")


def _resolved(schema: Any) -> Any:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document()["components"]["schemas"][name] if name else schema


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (Resource.SITE, ""),
        (Resource.PEERS, ""),
        (Resource.IMAGES, f"?repository={REPOSITORY}&reference=v1"),
        (Resource.PARKED, ""),
        (Resource.CONFLICTS, ""),
    ],
)
async def test_an_answer_is_as_it_is_documented(
    registry: Served, path: Resource, query: str
) -> None:
    """Every member that is answered is described, and every one that is described is answered."""
    answer = (await registry.ask("GET", f"{path}{query}")).json()
    assert list(_differ(_answered(path), answer)) == []
    assert all(answer.values())


async def test_an_error_is_as_it_is_documented(registry: Served) -> None:
    """What the site refuses has the form of all its errors."""
    answer = (await registry.ask("GET", f"{Resource.IMAGES}?repository=a&reference=b")).json()
    assert list(_differ({"$ref": "#/components/schemas/Error"}, answer)) == []


async def test_the_document_is_served(registry: Served) -> None:
    """As JSON, and every reference in it leads somewhere."""
    reply = await registry.ask("GET", Resource.OPENAPI)
    assert reply.status == 200
    assert reply.json() == document()
    schemas = document()["components"]["schemas"]
    named = {ref.rpartition("/")[2] for ref in _references(reply.json())}
    assert named <= set(schemas)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for member in value.values():
            yield from _references(member)
    elif isinstance(value, list):
        for member in value:
            yield from _references(member)
