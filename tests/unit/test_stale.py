"""A site whose store has no majority: what it still answers, how it marks that, what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from node.errors import MetadataUnavailable
from node.kv import Put, Stale, only
from node.reads import JoinedReads
from node.showing import deciding, showing
from tests.fake_kv import MemoryKV
from tests.registry import CONFIG, LAYER, REPOSITORY, Served, digest_of, image, index, served

WARNING = '299 - "metadata may be stale: the site\'s store has no majority"'

MANIFEST = image(LAYER)
PUSHED_LATER = image(LAYER, annotations={"pushed": "later"})
REFERRER = image(LAYER, subject={"mediaType": "a/b", "digest": digest_of(MANIFEST), "size": 1})


@pytest.fixture
async def registry() -> AsyncIterator[Served]:
    """A registry whose store has a member that has not heard of the latest push."""
    async with served() as registry:
        await registry.push_image("v1")
        await registry.push_manifest(REFERRER)
        behind = registry.kv.copy()
        await registry.push_manifest(PUSHED_LATER, "v1")
        await registry.push_manifest(PUSHED_LATER, "v2")
        registry.kv.behind = behind
        yield registry


SHOWN = {
    "a manifest by tag": "manifests/v1",
    "a manifest by digest": f"manifests/{digest_of(MANIFEST)}",
    "a blob": f"blobs/{digest_of(LAYER)}",
    "tags": "tags/list",
    "referrers": f"referrers/{digest_of(MANIFEST)}",
    "repositories": "",
}


@pytest.mark.parametrize("row", ["G11"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", SHOWN)
async def test_what_is_known_is_shown_and_marked(
    registry: Served, method: str, what: str, row: str
) -> None:
    """Pulls and lists go on without a majority; each answer says that it may be stale (G11)."""
    path = registry.path(SHOWN[what]) if SHOWN[what] else "/v2/_catalog"
    stale = await registry.ask(method, path)
    assert (stale.status, stale.headers.getall("Warning")) == (200, [WARNING])
    assert stale.headers.getall("Cache-Control") == ["no-store"]
    registry.kv.behind = None
    fresh = await registry.ask(method, path)
    assert fresh.status == 200
    assert "Warning" not in fresh.headers


@pytest.mark.parametrize("what", SHOWN)
async def test_a_warning_says_why(registry: Served, what: str) -> None:
    """A store that is only too slow is not said to have no majority."""
    registry.kv.why = Stale.TOO_SLOW
    path = registry.path(SHOWN[what]) if SHOWN[what] else "/v2/_catalog"
    stale = await registry.ask("GET", path)
    slow = '299 - "metadata may be stale: the site\'s store did not answer in time"'
    assert (stale.status, stale.headers["Warning"]) == (200, slow)


async def test_a_stale_answer_is_forgotten_once_there_is_a_majority(registry: Served) -> None:
    """What the member behind shows is not remembered as if it were true now."""
    path = registry.path("manifests/v1")
    assert (await registry.ask("GET", path)).body == MANIFEST
    registry.kv.behind = None
    assert (await registry.ask("GET", path)).body == PUSHED_LATER
    registry.kv.behind = registry.kv.copy()
    assert (await registry.ask("GET", path)).body == PUSHED_LATER


async def test_a_known_blob_is_not_modified_and_marked(registry: Served) -> None:
    """A 304 says that it may be stale, too."""
    tag = {"If-None-Match": digest_of(LAYER)}
    for method in ("GET", "HEAD"):
        reply = await registry.ask(method, registry.path(f"blobs/{digest_of(LAYER)}"), None, tag)
        assert (reply.status, reply.headers["Warning"]) == (304, WARNING)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        "manifests/v2",
        f"manifests/{digest_of(PUSHED_LATER)}",
        f"blobs/{digest_of(b'of nobody')}",
    ],
)
async def test_nothing_is_said_to_be_missing(registry: Served, method: str, path: str) -> None:
    """What a member behind does not know may have been pushed: 503 and no 404."""
    reply = await registry.ask(method, registry.path(path))
    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")


async def test_a_repository_that_is_not_known_is_not_said_to_be_missing(registry: Served) -> None:
    """The same goes for the tags of a repository."""
    reply = await registry.ask("GET", registry.path("tags/list", "of/nobody"))
    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [
        f"referrers/{digest_of(PUSHED_LATER)}",
        f"referrers/{digest_of(MANIFEST)}?artifactType=signed/later",
        f"referrers/{digest_of(MANIFEST)}?last={digest_of(REFERRER)}",
    ],
)
async def test_nothing_is_said_to_be_unsigned(registry: Served, method: str, path: str) -> None:
    """A referrer that a member behind does not know may have been pushed: no empty list."""
    reply = await registry.ask(method, registry.path(path))
    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    registry.kv.behind = None
    reply = await registry.ask("GET", registry.path(path))
    assert (reply.status, reply.json()["manifests"]) == (200, [])


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "manifests/v3", MANIFEST),
        ("PUT", "manifests/v3", index(MANIFEST)),
        ("DELETE", "manifests/v1", None),
        ("DELETE", f"manifests/{digest_of(MANIFEST)}", None),
        ("DELETE", f"blobs/{digest_of(CONFIG)}", None),
        ("POST", "blobs/uploads/", None),
        ("POST", f"blobs/uploads/?digest={digest_of(b'new')}", b"new"),
        ("POST", f"blobs/uploads/?mount={digest_of(LAYER)}&from={REPOSITORY}", None),
    ],
)
async def test_no_change_is_taken(
    registry: Served, method: str, path: str, body: bytes | None
) -> None:
    """Pushes and deletes get 503 and when to come back; nothing has changed when it clears up."""
    before = registry.kv.entries()
    reply = await registry.ask(method, registry.path(path), body)
    assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    assert registry.kv.entries() == before
    registry.kv.behind = None
    again = await registry.ask(method, registry.path(path), body)
    assert again.status < 500


async def test_an_upload_waits_for_a_majority(registry: Served) -> None:
    """A chunk is refused, and its session goes on where it was when it clears up."""
    behind, registry.kv.behind = registry.kv.behind, None
    location = await registry.start_upload()
    assert (await registry.ask("PATCH", location, b"first")).status == 202
    registry.kv.behind = behind
    for method, path in (
        ("PATCH", location),
        ("GET", location),
        ("PUT", f"{location}&digest={digest_of(b'firstsecond')}"),
        ("DELETE", location),
    ):
        reply = await registry.ask(method, path, b"second" if method[0] == "P" else None)
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    registry.kv.behind = None
    assert await registry.held(location) == "0-4"
    done = await registry.ask("PUT", f"{location}&digest={digest_of(b'firstsecond')}", b"second")
    assert done.status == 201


async def test_a_search_is_never_stale(registry: Served) -> None:
    """What a search keeps in memory is not brought up to date by an old state."""
    assert (await registry.ask("GET", "/v1/search?q=app")).status == 503
    registry.kv.behind = None
    assert (await registry.ask("GET", "/v1/search?q=app")).json()["num_results"] == 1


async def test_the_site_says_what_is_wrong(registry: Served) -> None:
    """Who asks is answered without a majority, and told of it."""
    await registry.weather.look()
    site = (await registry.ask("GET", "/api/v1/site")).json()
    assert [problem.partition(":")[0] for problem in site["store"]["problems"]] == [
        "leaderless",
        "member_down",
    ]
    assert [member["endpoint"] for member in site["store"]["members"]] == ["left:1", "gone:1"]
    assert (await registry.ask("GET", "/api/v1/peers")).json() == {"peers": []}


# --- reads


async def test_only_those_who_show_are_answered_stale() -> None:
    """Of reads that were sent together those that decide are refused, and say why."""
    kv = MemoryKV()
    await kv.txn([], [Put(b"a", b"1")])
    kv.behind = kv.copy()
    reads = JoinedReads(kv)

    async def shows() -> bool:
        with showing() as shown:
            snapshot = await reads.read([only(b"a")])
            assert snapshot.ranges[0][0].value == b"1"
            return shown.stale is not None

    async def decides() -> bool:
        with showing() as shown, deciding(), pytest.raises(MetadataUnavailable):
            await reads.read([only(b"a")])
        with pytest.raises(MetadataUnavailable):
            await reads.read([only(b"a")])
        return shown.stale is not None

    async with asyncio.TaskGroup() as group:
        running = group.create_task(reads.run())
        assert list(await asyncio.gather(shows(), decides(), shows())) == [True, False, True]
        kv.behind = None
        assert not await shows()
        running.cancel()
