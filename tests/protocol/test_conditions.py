"""Conditional requests: a client changes a tag only if it shows what the client has seen."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from node.config_models import Config, Limits
from tests.registry import LAYER, Client, digest_of, image, served
from tests.waiting import eventually

OLD: Final = image(LAYER, annotations={"which": "old"})
NEW: Final = image(LAYER, annotations={"which": "new"})
ABSENT: Final = digest_of(b"nobody has this")


async def _push(registry: Client, body: bytes, reference: str, **conditions: str) -> int:
    headers = {name.replace("_", "-"): value for name, value in conditions.items()}
    path = registry.path(f"manifests/{reference}")
    return (await registry.ask("PUT", path, body, headers)).status


async def _shown(registry: Client, tag: str = "v1") -> str | None:
    reply = await registry.ask("HEAD", registry.path(f"manifests/{tag}"))
    return reply.headers.get("Docker-Content-Digest")


@pytest.mark.parametrize(
    ("condition", "value", "status"),
    [
        pytest.param("If_Match", f'"{digest_of(OLD)}"', 201, id="what is shown [MP17]"),
        pytest.param("If_Match", f'"x", "{digest_of(OLD)}"', 201, id="one of a list [MP17]"),
        pytest.param("If_Match", digest_of(OLD), 201, id="without quotes [MP17]"),
        pytest.param("If_Match", "*", 201, id="anything [MP17]"),
        pytest.param("If_Match", f'"{ABSENT}"', 412, id="something else [MP17]"),
        pytest.param("If_Match", f'W/"{digest_of(OLD)}"', 412, id="a weak tag [MP17]"),
        pytest.param("If_Match", "", 412, id="nothing at all [MP17]"),
        pytest.param("If_None_Match", "*", 412, id="that it is new [MP17]"),
        pytest.param("If_None_Match", f'"{digest_of(OLD)}"', 412, id="not what is shown [MP17]"),
        pytest.param("If_None_Match", f'"{ABSENT}"', 201, id="not something else [MP17]"),
    ],
)
async def test_a_conditional_push(stocked: Client, condition: str, value: str, status: int) -> None:
    """A tag moves if its condition holds; else 412, and it shows what it did."""
    await stocked.push_manifest(OLD, "v1")
    assert await _push(stocked, NEW, "v1", **{condition: value}) == status
    assert await _shown(stocked) == digest_of(NEW if status == 201 else OLD)
    if status == 412:
        path = stocked.path(f"manifests/{digest_of(NEW)}")
        assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("row", ["MP17"])
async def test_a_tag_that_is_to_be_new(stocked: Client, row: str) -> None:
    """`If-None-Match: *` makes a tag once, and again when it was deleted."""
    for _ in range(2):
        assert await _push(stocked, OLD, "v1", If_None_Match="*") == 201
        assert await _push(stocked, OLD, "v1", If_None_Match="*") == 412
        assert await _push(stocked, NEW, "v2", If_Match="*") == 412
        path = stocked.path("manifests/v1")
        assert (await stocked.ask("DELETE", path)).status == 202


@pytest.mark.parametrize("row", ["MP17"])
async def test_a_manifest_that_is_to_be_new(stocked: Client, row: str) -> None:
    """By digest the condition is about the manifest itself, and its tags go with it."""
    by_digest = f"{digest_of(OLD)}?tag=v1"
    assert await _push(stocked, OLD, digest_of(OLD), If_Match="*") == 412
    assert await _push(stocked, OLD, by_digest, If_None_Match="*") == 201
    assert await _shown(stocked) == digest_of(OLD)
    assert await _push(stocked, OLD, f"{digest_of(OLD)}?tag=v2", If_None_Match="*") == 412
    assert await _shown(stocked, "v2") is None


@pytest.mark.parametrize("row", ["MP17"])
async def test_of_many_conditional_pushes_one_wins(stocked: Client, row: str) -> None:
    """Of clients that all saw the same, one moves the tag, however close they come (P2)."""
    await stocked.push_manifest(OLD, "v1")
    bodies = [image(LAYER, annotations={"n": str(n)}) for n in range(8)]
    seen = f'"{digest_of(OLD)}"'
    answers = await asyncio.gather(*(_push(stocked, b, "v1", If_Match=seen) for b in bodies))
    assert sorted(answers) == [201] + [412] * 7
    assert await _shown(stocked) == digest_of(bodies[answers.index(201)])


@pytest.mark.parametrize("row", ["MP17"])
async def test_a_conditional_delete(stocked: Client, row: str) -> None:
    """A tag, or a manifest, goes only if it is what the client has seen."""
    await stocked.push_manifest(OLD, "v1")
    for reference in ("v1", digest_of(OLD)):
        path = stocked.path(f"manifests/{reference}")
        refused = await stocked.ask("DELETE", path, None, {"If-Match": f'"{ABSENT}"'})
        assert (refused.status, refused.code) == (412, "DENIED")
        assert (await stocked.ask("GET", path)).status == 200
        reply = await stocked.ask("DELETE", path, None, {"If-Match": f'"{digest_of(OLD)}"'})
        assert reply.status == 202
        assert (await stocked.ask("GET", path)).status == 404


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("row", ["MP17-MG7"])
async def test_a_conditional_read(stocked: Client, row: str, method: str) -> None:
    """If-Match comes before If-None-Match, and is 412 where it fails."""
    await stocked.push_manifest(OLD, "v1")
    path, mine = stocked.path("manifests/v1"), f'"{digest_of(OLD)}"'

    async def status(**conditions: str) -> int:
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return (await stocked.ask(method, path, None, headers)).status

    assert await status(If_Match=mine) == 200
    assert await status(If_Match=f'"{ABSENT}"') == 412
    assert await status(If_Match=mine, If_None_Match=mine) == 304
    assert await status(If_Match=f'"{ABSENT}"', If_None_Match=mine) == 412


@pytest.mark.parametrize("row", ["G12-0.8"])
async def test_more_requests_than_the_gateway_takes(row: str) -> None:
    """A request too many gets 429 and when to come again; the next one is served."""
    async with served(Config(limits=Limits(requests=1))) as registry:
        path = registry.path("blobs/uploads/")
        location = (await registry.ask("POST", path)).headers["Location"]
        async with registry.connected() as (_, writer):
            head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nab"
            writer.write(head.encode())

            async def refused() -> bool:
                reply = await registry.ask("GET", "/v2/")
                return reply.status == 429 and reply.code == "TOOMANYREQUESTS"

            await eventually(refused, 60, "a request is refused")
            reply = await registry.ask("GET", "/v2/")
            assert int(reply.headers["Retry-After"]) > 0
            writer.write(b"cd")

            async def served_again() -> bool:
                return (await registry.ask("GET", "/v2/")).status == 200

            await eventually(served_again, 60, "a request is served")
