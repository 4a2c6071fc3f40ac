"""Conflicts over the admin API: listed whole, resolved only as they were seen."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import pytest

from node import keys
from node.config import Config
from node.keys import ManifestName, TagName
from node.manifest import OCI_MANIFEST
from node.reference import Repository, Tag
from node.register import Register
from node.wire import codec
from tests.contested import arrives
from tests.registry import (
    CONFIG,
    LAYER,
    REPOSITORY,
    Reply,
    Served,
    digest_of,
    image,
    served,
)

PATH: Final = "/api/v1/conflicts"
OURS: Final = image(LAYER)
THEIRS: Final = image(LAYER, LAYER)
OTHER: Final = image()
OURS_DIGEST: Final = digest_of(OURS)
NOBODY_S: Final = "sha256:" + "0" * 64
# By the clocks of other sites: theirs is a second later than ours, and is shown.
LATER_MS: Final = 1_700_000_001_000


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A site `fra` where v1 was pushed at the same time as at nyc."""
    async with served(Config(site="fra")) as registry:
        for content in (CONFIG, LAYER):
            await registry.push_blob(content)
        await registry.push_manifest(OURS, "v1")
        await arrives(registry, "v1", THEIRS, site="nyc", ms=LATER_MS)
        yield registry


async def _list(registry: Served, query: str = "") -> list[dict[str, Any]]:
    reply = await registry.ask("GET", PATH + query)
    assert reply.status == 200
    found: list[dict[str, Any]] = reply.json()["conflicts"]
    return found


async def _resolve(registry: Served, digest: str, etag: str = "", tag: str = "v1") -> Reply:
    choice = {"repository": REPOSITORY, "tag": tag, "digest": digest}
    headers = {"If-Match": f'"{etag}"'} if etag else {}
    return await registry.ask("POST", f"{PATH}/resolve", json.dumps(choice).encode(), headers)


async def _shown(registry: Served, tag: str = "v1") -> tuple[str, str]:
    reply = await registry.ask("HEAD", registry.path(f"manifests/{tag}"))
    digest = reply.headers["Docker-Content-Digest"]
    return digest, reply.headers.get("Entrepot-Conflict", "none")


def _events(registry: Served) -> list[tuple[str, str]]:
    found = registry.kv.entries().items()
    events = [codec.decode_event(value) for key, value in found if key.startswith(b"ev/")]
    return [(event.action, str(event.digest)) for event in events if event.tag == "v1"]


def _sibling(body: bytes, **more: object) -> dict[str, object]:
    return {
        "digest": digest_of(body),
        "media_type": OCI_MANIFEST,
        "size": len(body),
        **more,
    }


async def test_every_push_of_a_conflict_is_listed(registry: Served) -> None:
    """What was pushed, when and where, and which of it is shown: the latest, first."""
    (conflict,) = await _list(registry)
    assert conflict.pop("etag")
    theirs = _sibling(THEIRS, site="nyc", pushed_ms=LATER_MS, shown=True)
    ours = _sibling(OURS, site="fra", pushed_ms=registry.clock(), shown=False)
    assert conflict == {"repository": REPOSITORY, "tag": "v1", "siblings": [theirs, ours]}


async def test_conflicts_come_by_pages(registry: Served) -> None:
    """Each tag once, in order, by the links; a page may be asked from anywhere."""
    for tag in ("v2", "v3", "a"):
        await registry.push_manifest(OURS, tag)
        await arrives(registry, tag, THEIRS, site="nyc", ms=LATER_MS + ord(tag[-1]))
    found, path = [], f"{PATH}?repository={REPOSITORY}&n=3"
    while path:
        reply = await registry.ask("GET", path)
        found.append([conflict["tag"] for conflict in reply.json()["conflicts"]])
        path = reply.headers.get("Link", "")[1:].partition(">")[0]
    assert found == [["a", "v1", "v2"], ["v3"]]
    assert [one["tag"] for one in await _list(registry, f"?last={REPOSITORY}:v1")] == ["v2", "v3"]
    assert len(await _list(registry, f"?last={REPOSITORY}")) == 4
    for query in ("repository=team/ap", "n=0", "last=z", "repository=x&last=a", "last=%ff%00:"):
        assert await _list(registry, f"?{query}") == []
    assert (await registry.ask("GET", f"{PATH}?n=x")).status == 400
    assert (await registry.ask("GET", f"{PATH}?repository=X")).status == 400


@pytest.mark.parametrize("body", [OURS, THEIRS, OTHER], ids=["hidden", "shown", "neither"])
@pytest.mark.parametrize("seen", [True, False], ids=["as-seen", "as-it-is"])
async def test_a_conflict_is_resolved(registry: Served, body: bytes, seen: bool) -> None:
    """The tag shows what was chosen and nothing else; all stays pullable by digest."""
    digest = await registry.push_manifest(body)
    before, conflicting = await _shown(registry)
    assert conflicting == "2"
    (conflict,) = await _list(registry)
    reply = await _resolve(registry, digest, conflict["etag"] if seen else "")
    assert reply.status == 200, reply
    assert await _shown(registry) == (digest, "none")
    assert await _list(registry) == []
    for sibling in conflict["siblings"]:
        reply = await registry.ask("GET", registry.path(f"manifests/{sibling['digest']}"))
        assert reply.status == 200
        assert "Entrepot-Conflict" not in reply.headers
    # Who listens is told of what clients see anew, and of nothing else.
    pushes = [digest for action, digest in _events(registry) if action == "push"]
    assert sorted(pushes) == sorted([OURS_DIGEST] + [digest] * (digest != before))


async def test_what_resolves_a_conflict_is_a_push_of_its_own(registry: Served) -> None:
    """ADR 0011: the tag's dot is the manifest's too, or no peer could ever apply the tag."""
    (conflict,) = await _list(registry)
    digest = conflict["siblings"][1]["digest"]
    await _resolve(registry, digest)
    found = registry.kv.entries()
    repository = Repository(REPOSITORY)
    (dot,) = codec.decode_register(found[keys.register(TagName(repository, Tag("v1")))]).siblings
    shown = await registry.site.metadata.resolve(repository, Tag("v1"))
    name = ManifestName(repository, shown.digest)
    register: Register[Any] = codec.decode_register(found[keys.register(name)])
    assert dot in register.siblings
    assert dot.actor == "fra#life"


async def test_a_push_that_nobody_saw_is_not_replaced(registry: Served) -> None:
    """412, and the conflict is as it was, with the push that came in between."""
    (conflict,) = await _list(registry)
    await arrives(registry, "v1", OTHER, site="ams", ms=LATER_MS - 5000)
    reply = await _resolve(registry, conflict["siblings"][0]["digest"], conflict["etag"])
    assert (reply.status, reply.code) == (412, "DENIED")
    assert (await _shown(registry))[1] == "3"
    (conflict,) = await _list(registry)
    assert [sibling["site"] for sibling in conflict["siblings"]] == ["nyc", "fra", "ams"]


async def test_every_hidden_push_is_told(registry: Served) -> None:
    """Each sibling that is not shown has its event, once."""
    ams = await arrives(registry, "v1", OTHER, site="ams", ms=LATER_MS - 5000)
    (conflict,) = await _list(registry)
    hidden = [one["digest"] for one in conflict["siblings"] if not one["shown"]]
    assert ams in hidden
    told = [digest for action, digest in _events(registry) if action == "conflict"]
    assert sorted(told) == sorted(hidden)


async def test_a_tag_without_conflict_is_not_resolved(registry: Served) -> None:
    """412: whoever comes second does not undo the choice of who came first."""
    (conflict,) = await _list(registry)
    first, second = (sibling["digest"] for sibling in conflict["siblings"])
    assert (await _resolve(registry, second)).status == 200
    for etag in ("", conflict["etag"]):
        assert (await _resolve(registry, first, etag)).status == 412
    assert (await _resolve(registry, first, tag="v2")).status == 412
    assert await _shown(registry) == (second, "none")


async def test_only_what_is_there_can_be_chosen(registry: Served) -> None:
    """404 for a digest that the repository does not hold, or not any more."""
    assert (await _resolve(registry, NOBODY_S)).status == 404
    digest = await registry.push_manifest(OTHER)
    await registry.ask("DELETE", registry.path(f"manifests/{digest}"))
    assert (await _resolve(registry, digest)).status == 404
    assert (await _shown(registry))[1] == "2"


async def test_a_deleted_sibling_leaves_the_other(registry: Served) -> None:
    """A delete by digest ends the conflict and takes nothing else along."""
    (conflict,) = await _list(registry)
    shown, hidden = (sibling["digest"] for sibling in conflict["siblings"])
    reply = await registry.ask("DELETE", registry.path(f"manifests/{shown}"))
    assert reply.status == 202
    assert await _shown(registry) == (hidden, "none")
    assert await _list(registry) == []


async def test_a_push_ends_a_conflict(registry: Served) -> None:
    """Whoever pushes to the tag replaces all that the site showed."""
    digest = await registry.push_manifest(OTHER, "v1")
    assert await _shown(registry) == (digest, "none")
    assert await _list(registry) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"repository": "team/app", "tag": "v1"}',
        b'{"repository": "team/app", "tag": 1, "digest": "x"}',
        b'{"repository": "team/app", "tag": "v1", "digest": "x"}',
        b'{"repository": "team/app", "tag": "-", "digest": "%s"}' % NOBODY_S.encode(),
        b'{"repository": "UP", "tag": "v1", "digest": "%s"}' % NOBODY_S.encode(),
        b'{"repository": "a", "tag": "b", "digest": "%s", "force": 1}' % NOBODY_S.encode(),
        b"[" * 60_000,
    ],
)
async def test_what_is_no_choice_is_refused(registry: Served, body: bytes) -> None:
    """400 that says what is wrong, and nothing is changed."""
    reply = await registry.ask("POST", f"{PATH}/resolve", body)
    assert reply.status == 400
    assert reply.json()["errors"][0]["message"]
    assert (await _shown(registry))[1] == "2"
    assert (await registry.ask("POST", f"{PATH}/resolve", b" " * 70_000)).status == 413


async def test_who_may_not_write_resolves_nothing(registry: Served) -> None:
    """405 at a site that is read-only, and for any method but POST."""
    (conflict,) = await _list(registry)
    digest = conflict["siblings"][1]["digest"]
    async with served(Config(site="fra", read_only=True), registry) as other:
        assert (await _resolve(other, digest)).status == 405
        assert len(await _list(other)) == 1
    assert (await registry.ask("GET", f"{PATH}/resolve")).headers["Allow"] == "POST"
