"""Names, tags and digests (rows N), and how paths are read (H3, H6)."""

from __future__ import annotations

from typing import Final

import pytest

from tests.protocol.exchanges import Exchange
from tests.registry import CONFIG, LAYER, Client, digest_of, image, index

IMAGE: Final = image(LAYER)
DIGEST: Final = digest_of(IMAGE)
BLOB: Final = digest_of(LAYER)

NAMES: Final = {
    "a letter": "a",
    "a digit": "0",
    "separators": "a.b_c__d-e---f",
    "components": "a/b-1/c.d",
}
NO_NAMES: Final = {
    "capitals [N1 N5]": "Team/app",
    "capitals inside [N1 N5]": "team/aPp",
    "begins with a dot [N1 N5]": ".a",
    "ends with a dash [N1 N5]": "a-",
    "two dots [N1 N5]": "a..b",
    "three underscores [N1 N5]": "a___b",
    "mixed separators [N1 N5]": "a._b",
    "an empty component [N1 N5]": "a//b",
    "a parent [N1 N5]": "../a",
    "a parent, escaped [N1 H6]": "a/%2e%2e",
    "a slash, escaped [N1 H6]": "team%2fapp",
    "NUL [N1 H6]": "a%00b",
    "no UTF-8 [N1 H6]": "%ff%fe",
    "escaped twice [N1 H6]": "a%2561",
    "an umlaut [N1 N5]": "%c3%a4",
    "a blank [N1 N5]": "a%20b",
    "a colon [N1 N5]": "a:b",
    "256 characters [N1]": "a/" * 127 + "bc",
    "_docker is reserved [N1 0.11]": "_docker/a",
    "_chainguard is reserved [N1 0.11]": "_chainguard/a",
    "_oci is reserved [N1 0.11]": "_oci/a",
}

# Where a name stands in a path, and how it is asked there.
PLACES: Final = (
    ("GET", "manifests/v1"),
    ("HEAD", "manifests/v1"),
    ("PUT", "manifests/v1"),
    ("DELETE", "manifests/v1"),
    ("GET", f"blobs/{BLOB}"),
    ("POST", "blobs/uploads/"),
    ("GET", "tags/list"),
    ("GET", f"referrers/{DIGEST}"),
)

TAGS: Final = ("a", "Z", "_", "0", "v1.0_x-Y", "x" * 128, "1.2.3_build.5")
NO_TAGS: Final = {
    "a dot in front [N2]": ".a",
    "a dash in front [N2]": "-a",
    "129 characters [N2]": "x" * 129,
    "a plus [N2]": "1.2%2B5",
    "a newline [N2 H6]": "v1%0a",
    "NUL [N2 H6]": "v%001",
    "an umlaut [N2]": "%c3%a4",
    "a slash, escaped [N2 H6]": "a%2fb",
}

NO_DIGESTS: Final = {
    "capitals": f"sha256:{DIGEST[7:].upper()}",
    "short": DIGEST[:-1],
    "long": f"{DIGEST}0",
    "no hex": f"sha256:{'g' * 64}",
    "empty": "sha256:",
    "sha512 of sha256's length": f"sha512:{DIGEST[7:]}",
    "unknown": "md5:d41d8cd98f00b204e9800998ecf8427e",
    "capital algorithm": DIGEST.replace("sha", "SHA"),
    "a tag with a colon": "v1:2",
}

# Words of the paths as parts of names; the test's repository stands in front.
WORDS: Final = (
    "blobs",
    "manifests",
    "tags",
    "uploads",
    "referrers",
    "blobs/uploads",
    "tags/list",
    "manifests/b",
    "blobs/uploads/manifests",
)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("row", ["N1-N6"])
async def test_names(registry: Client, name: str, row: str) -> None:
    """A name is components between slashes, one or more, with separators inside each."""
    await registry.push_manifest(index(), "v1", name)
    reply = await registry.ask("GET", registry.path("tags/list", name))
    assert reply.json() == {"name": name, "tags": ["v1"]}


@pytest.mark.parametrize("row", ["N1-N6"])
async def test_long_and_deep_names(registry: Client, row: str) -> None:
    """A name may have 255 characters, and as many components as fit into them."""
    name = f"{registry.repository}{'/a' * 110}"
    name += "b" * (255 - len(name))
    await registry.push_image("1.2.3_build.5", name)
    path = registry.path("manifests/1.2.3_build.5", name)
    assert (await registry.ask("GET", path)).body == IMAGE
    assert (await registry.ask("GET", registry.path("tags/list", f"{name}b"))).status == 400


@pytest.mark.parametrize("name", NO_NAMES.values(), ids=NO_NAMES)
async def test_what_is_no_name(registry: Client, name: str) -> None:
    """What can't be a repository's name is 400 NAME_INVALID wherever it stands."""
    for method, rest in PLACES:
        code = "" if method == "HEAD" else "NAME_INVALID"
        await Exchange("", method, f"/v2/{name}/{rest}", 400, code=code).hold(registry)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        pytest.param("/v2/_docker", 404, id="_docker [0.11]"),
        pytest.param("/v2/_chainguard/events", 404, id="_chainguard [0.11]"),
        pytest.param("/v2/manifests/v1", 404, id="no name at all [N1]"),
        pytest.param("/v2/_catalog", 200, id="_catalog is ours [0.11]"),
    ],
)
async def test_prefixes_of_extensions(registry: Client, path: str, status: int) -> None:
    """What extensions have reserved is no repository's; what is not offered is 404."""
    code = "" if status == 200 else "UNSUPPORTED"
    await Exchange("", "GET", path, status, code=code).hold(registry)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("row", ["N2-N7"])
async def test_tags(stocked: Client, tag: str, row: str) -> None:
    """A reference without a colon that has a tag's characters is one, of up to 128."""
    await stocked.push_manifest(IMAGE, tag)
    assert (await stocked.ask("GET", stocked.path(f"manifests/{tag}"))).body == IMAGE
    assert (await stocked.ask("GET", stocked.path("tags/list"))).json()["tags"] == [tag]


@pytest.mark.parametrize("row", ["N2"])
async def test_tags_differ_by_case(stocked: Client, row: str) -> None:
    """Two tags that differ in case only are two."""
    await stocked.push_manifest(IMAGE, "v1")
    await stocked.push_manifest(index(), "V1")
    assert (await stocked.ask("GET", stocked.path("manifests/v1"))).body == IMAGE
    assert (await stocked.ask("GET", stocked.path("manifests/V1"))).body == index()


@pytest.mark.parametrize("tag", NO_TAGS.values(), ids=NO_TAGS)
async def test_what_is_no_tag(stocked: Client, tag: str) -> None:
    """What can't be a tag can't be pushed, and is not there to be read or deleted."""
    path = stocked.path(f"manifests/{tag}")
    assert (await stocked.ask("PUT", path, IMAGE)).status == 400
    for method in ("GET", "HEAD", "DELETE"):
        assert (await stocked.ask(method, path)).status == 404


@pytest.mark.parametrize("digest", NO_DIGESTS.values(), ids=NO_DIGESTS)
@pytest.mark.parametrize("row", ["N3-N7-0.5"])
async def test_what_is_no_digest(stocked: Client, digest: str, row: str) -> None:
    """What has a colon is a digest, and 400 if it is none that is known here, on pull and push."""
    session = await stocked.start_upload()
    uploads = stocked.path("blobs/uploads/")
    for method, path, body in (
        ("GET", stocked.path(f"manifests/{digest}"), None),
        ("DELETE", stocked.path(f"manifests/{digest}"), None),
        ("GET", stocked.path(f"blobs/{digest}"), None),
        ("GET", stocked.path(f"referrers/{digest}"), None),
        ("PUT", stocked.path(f"manifests/{digest}"), IMAGE),
        ("POST", f"{uploads}?digest={digest}", LAYER),
        ("PUT", f"{session}&digest={digest}", LAYER),
    ):
        reply = await stocked.ask(method, path, body)
        assert (reply.status, reply.code) == (400, "DIGEST_INVALID"), path


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("row", ["N4-H6"])
async def test_names_of_the_api_s_own_words(registry: Client, word: str, row: str) -> None:
    """A name may hold the words of the paths, as these are read from the right."""
    name = f"{registry.repository}/{word}"
    await registry.push_image("v1", name)
    for method, rest, status in (
        ("GET", "manifests/v1", 200),
        ("GET", f"manifests/{DIGEST}", 200),
        ("GET", f"blobs/{BLOB}", 200),
        ("GET", "tags/list", 200),
        ("GET", f"referrers/{DIGEST}", 200),
        ("POST", "blobs/uploads/", 202),
        ("DELETE", "manifests/v1", 202),
    ):
        assert (await registry.ask(method, registry.path(rest, name))).status == status, rest
    location = await registry.start_upload(name)
    assert (await registry.ask("PATCH", location, CONFIG)).status == 202
    assert (await registry.ask("GET", location)).headers["Range"] == "0-1"


@pytest.mark.parametrize("row", ["H3"])
async def test_long_queries_and_headers(filled: Client, row: str) -> None:
    """A query, a header or a token of 40,000 characters is read."""
    path, long = filled.path("manifests/v1"), "y" * 40_000
    assert (await filled.ask("GET", f"{path}?x={long}")).body == IMAGE
    for headers in ({"Authorization": f"Bearer {long}"}, {"X-Anything": long}):
        assert (await filled.ask("GET", path, headers=headers)).body == IMAGE
