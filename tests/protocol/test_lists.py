"""Lists of tags and of repositories, and the pages by which they come."""

from __future__ import annotations

from typing import Final

import pytest

from tests.registry import JSON, Client, Reply, index

TAGS: Final = ["V1", "_x", "blue", "v1", "v1.0"]
LIST: Final = "tags/list"
UNTAGGED: Final = index()


@pytest.fixture
async def tagged(registry: Client) -> Client:
    """A registry whose repository holds some tags."""
    for tag in reversed(TAGS):
        await registry.push_manifest(UNTAGGED, tag)
    return registry


def _next(reply: Reply) -> str:
    """The path of the next page, as clients read it; nothing after the last."""
    link = reply.headers.get("Link", "")
    if link:
        assert link.startswith("</v2/")
        assert link.endswith('>; rel="next"')
    return link.partition(">")[0].removeprefix("<")


async def _all(registry: Client, path: str, name: str) -> list[str]:
    """What stands on a page and on all that follow."""
    found: list[str] = []
    while path:
        reply = await registry.ask("GET", path)
        assert reply.status == 200
        found += reply.json()[name]
        path = _next(reply)
    return found


@pytest.mark.parametrize("row", ["TL1-0.9"])
async def test_tags(tagged: Client, row: str) -> None:
    """Tags come in the order of their bytes, capitals first, with the repository's name."""
    reply = await tagged.ask("GET", tagged.path(LIST))
    assert (reply.status, reply.headers["Content-Type"]) == (200, JSON)
    assert reply.json() == {"name": tagged.repository, "tags": TAGS}
    assert "Link" not in reply.headers
    head = await tagged.ask("HEAD", tagged.path(LIST))
    assert (head.status, head.headers["Content-Length"]) == (200, str(len(reply.body)))


@pytest.mark.parametrize("row", ["TL1"])
async def test_no_tags(registry: Client, row: str) -> None:
    """A repository without tags has an empty list of them, and is there."""
    await registry.push_manifest(UNTAGGED)
    reply = await registry.ask("GET", registry.path(LIST))
    assert reply.json() == {"name": registry.repository, "tags": []}
    await registry.push_manifest(UNTAGGED, "v1")
    await registry.ask("DELETE", registry.path("manifests/v1"))
    assert (await registry.ask("GET", registry.path(LIST))).json()["tags"] == []


@pytest.mark.parametrize("row", ["TL2"])
async def test_tags_of_an_unknown_repository(registry: Client, row: str) -> None:
    """A repository that holds no manifest is unknown, also if it holds a blob."""
    for _ in range(2):
        reply = await registry.ask("GET", registry.path(LIST))
        assert (reply.status, reply.code) == (404, "NAME_UNKNOWN")
        await registry.push_blob(b"a blob")


@pytest.mark.parametrize(
    ("query", "tags", "more"),
    [
        pytest.param("n=2", TAGS[:2], True, id="some [TL3]"),
        pytest.param("n=5", TAGS, False, id="just all [TL3]"),
        pytest.param("n=6", TAGS, False, id="more than there are [TL3]"),
        pytest.param("n=0", [], False, id="none [TL3]"),
        pytest.param("n=0&last=blue", [], False, id="none behind one [TL3]"),
        pytest.param("n=", TAGS, False, id="a number left empty [TL3]"),
        pytest.param("last=blue", TAGS[3:], False, id="behind one [TL4]"),
        pytest.param("last=bluf", TAGS[3:], False, id="behind one that is none [TL4]"),
        pytest.param("last=v", TAGS[3:], False, id="behind the beginning of one [TL4]"),
        pytest.param("last=v1.0", [], False, id="behind the last [TL4]"),
        pytest.param("last=zz%00", [], False, id="behind what can't be one [TL4]"),
        pytest.param("last=", TAGS, False, id="behind nothing [TL4]"),
        pytest.param("n=1&last=blue", ["v1"], True, id="one behind one [TL3 TL4]"),
        pytest.param("last=blue&n=2", TAGS[3:], False, id="the last ones [TL3 TL4]"),
        pytest.param("n=10000", TAGS, False, id="as Renovate asks [TL5]"),
        pytest.param(f"n={'9' * 5000}", TAGS, False, id="a great many [TL5]"),
    ],
)
async def test_a_page_of_tags(tagged: Client, query: str, tags: list[str], more: bool) -> None:
    """A page has as many tags as are asked for, from behind a name, and says if more follow."""
    reply = await tagged.ask("GET", tagged.path(f"{LIST}?{query}"))
    assert (reply.status, reply.json()["tags"]) == (200, tags)
    assert bool(_next(reply)) == more


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "+1", "%202", "0x10"])
@pytest.mark.parametrize("path", ["tags", "catalog"])
@pytest.mark.parametrize("row", ["TL6"])
async def test_no_number(tagged: Client, row: str, path: str, n: str) -> None:
    """A page of a number that is none is refused."""
    path = tagged.path(LIST) if path == "tags" else "/v2/_catalog"
    reply = await tagged.ask("GET", f"{path}?n={n}")
    assert (reply.status, reply.code) == (400, "PAGINATION_NUMBER_INVALID")


@pytest.mark.parametrize("row", ["TL7-G9"])
async def test_a_link_can_be_followed_however_the_name_was_written(
    tagged: Client, row: str
) -> None:
    """The next page's path is written plainly, also if this one's was escaped."""
    name = tagged.repository
    escaped = f"/v2/%{ord(name[0]):x}{name[1:]}/{LIST}?n=1"
    reply = await tagged.ask("GET", escaped)
    assert reply.headers["Link"] == f'</v2/{name}/{LIST}?last=V1&n=1>; rel="next"'
    assert await _all(tagged, escaped, "tags") == TAGS


@pytest.mark.parametrize("row", ["TL5-TL7-0.2"])
async def test_more_tags_than_a_page_has(registry: Client, row: str) -> None:
    """However many are asked for, a page has a thousand, and the links lead to every tag once."""
    tags = sorted(f"t{n}" for n in range(1_200))
    digest = await registry.push_manifest(UNTAGGED)
    for start in range(0, len(tags), 10):
        query = "&".join(f"tag={tag}" for tag in tags[start : start + 10])
        path = registry.path(f"manifests/{digest}?{query}")
        assert (await registry.ask("PUT", path, UNTAGGED)).status == 201
    for query in ("", "?n=100000"):
        path = registry.path(LIST + query)
        assert len((await registry.ask("GET", path)).json()["tags"]) == 1000
        assert await _all(registry, path, "tags") == tags


# --- the catalog, of which other tests have a part


@pytest.mark.parametrize("row", ["TL8-G9"])
async def test_the_catalogs_page_is_a_hundred(registry: Client, row: str) -> None:
    """Without a number a page of the catalog has 100 names, and leads to the next."""
    home = registry.repository
    names = [f"{home}/{n:03}" for n in range(101)]
    for name in reversed(names):
        await registry.push_manifest(UNTAGGED, repository=name)
    escaped = home.replace("/", "%2F")
    path = f"/v2/_catalog?last={escaped}"
    reply = await registry.ask("GET", path)
    assert (reply.status, reply.headers["Content-Type"]) == (200, JSON)
    assert reply.json() == {"repositories": names[:100]}
    assert _next(reply) == f"/v2/_catalog?last={escaped}%2F099&n=100"
    assert (await _all(registry, path, "repositories"))[:101] == names
    reply = await registry.ask("GET", f"{path}&n=2")
    assert reply.json() == {"repositories": names[:2]}
    assert _next(reply) == f"/v2/_catalog?last={escaped}%2F001&n=2"


@pytest.mark.parametrize("row", ["TL9"])
async def test_no_repositories_asked_for(registry: Client, row: str) -> None:
    """A page of nothing is empty, and leads nowhere."""
    await registry.push_manifest(UNTAGGED)
    reply = await registry.ask("GET", "/v2/_catalog?n=0")
    assert (reply.status, reply.json()) == (200, {"repositories": []})
    assert "Link" not in reply.headers


@pytest.mark.parametrize("row", ["TL8-MD2"])
async def test_what_the_catalog_leaves_out(registry: Client, row: str) -> None:
    """A repository is listed from its first manifest to its last, whatever blobs it has."""
    name = f"{registry.repository}/only"
    path = f"/v2/_catalog?last={registry.repository}&n=1"

    async def listed() -> bool:
        return bool((await registry.ask("GET", path)).json()["repositories"] == [name])

    await registry.start_upload(name)
    await registry.push_blob(b"a blob", name)
    assert not await listed()
    digest = await registry.push_manifest(UNTAGGED, "v1", name)
    assert await listed()
    await registry.ask("DELETE", registry.path("manifests/v1", name))
    assert await listed()
    await registry.ask("DELETE", registry.path(f"manifests/{digest}", name))
    assert not await listed()


@pytest.mark.parametrize("row", ["TL13"])
async def test_no_extensions(registry: Client, row: str) -> None:
    """There is nothing where extensions would be found."""
    reply = await registry.ask("GET", "/v2/_oci/ext/discover")
    assert (reply.status, reply.code) == (404, "UNSUPPORTED")
