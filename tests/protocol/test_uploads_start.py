"""How uploads begin: sessions, blobs at once, mounts."""

from __future__ import annotations

import base64
from typing import Final

import pytest

from tests.registry import JSON, LAYER, Client, chunked, digest_of

BLOB: Final = digest_of(LAYER)
OTHER: Final = digest_of(b"something else")
NOTHING: Final = digest_of(b"")
UPLOADS: Final = "blobs/uploads/"
SOURCE: Final = "room/of/others"


def _credentials(user: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


@pytest.mark.parametrize("row", ["U1-U2-U3"])
async def test_start(registry: Client, row: str) -> None:
    """A session is a path with an id of its own and a query; it holds nothing, without a unit."""
    ids = set()
    for _ in range(2):
        reply = await registry.ask("POST", registry.path(UPLOADS))
        assert (reply.status, reply.body) == (202, b"")
        assert reply.headers["Range"] == "0-0"
        assert reply.headers["Content-Length"] == "0"
        session_id = reply.headers["Docker-Upload-UUID"]
        assert reply.headers["Location"].startswith(registry.path(f"{UPLOADS}{session_id}?"))
        ids.add(session_id)
    assert len(ids) == 2


@pytest.mark.parametrize("row", ["U12"])
async def test_chunks_have_no_least_length(registry: Client, row: str) -> None:
    """No least length is announced, and a chunk of one byte is taken."""
    reply = await registry.ask("POST", registry.path(UPLOADS))
    assert "OCI-Chunk-Min-Length" not in reply.headers
    asked = {"Content-Range": "0-0"}
    reply = await registry.ask("PATCH", reply.headers["Location"], b"x", asked)
    assert (reply.status, reply.headers["Range"]) == (202, "0-0")
    assert "OCI-Chunk-Min-Length" not in reply.headers


@pytest.mark.parametrize("row", ["U14-N5"])
@pytest.mark.parametrize("query", ["", f"?digest={BLOB}", f"?mount={BLOB}&from={SOURCE}"])
async def test_start_in_a_bad_name(registry: Client, row: str, query: str) -> None:
    """Nothing begins under a name that can't be."""
    reply = await registry.ask("POST", registry.path(UPLOADS + query, "Team"))
    assert (reply.status, reply.code) == (400, "NAME_INVALID")


@pytest.mark.parametrize("row", ["G14"])
async def test_start_without_the_final_slash(registry: Client, row: str) -> None:
    """The final slash may be missing."""
    assert (await registry.ask("POST", registry.path("blobs/uploads"))).status == 202


@pytest.mark.parametrize("row", ["U4-U31-U32-U35"])
async def test_post_with_the_bytes(registry: Client, row: str) -> None:
    """One POST with digest and bytes makes the blob, again and again, with or without a length."""
    place = registry.path(f"blobs/{BLOB}")
    for body in (LAYER, LAYER, chunked(LAYER)):
        reply = await registry.ask("POST", registry.path(f"{UPLOADS}?digest={BLOB}"), body)
        assert reply.status == 201
        assert reply.headers["Location"] == place
        assert reply.headers["Docker-Content-Digest"] == BLOB
        assert (await registry.ask("HEAD", place)).status == 200
    assert (await registry.ask("GET", place)).body == LAYER


@pytest.mark.parametrize(
    ("digest", "body"),
    [
        pytest.param(OTHER, LAYER, id="of other bytes [U4]"),
        pytest.param("sha256:0", LAYER, id="none [U4]"),
        pytest.param(f"md5:{'a' * 32}", LAYER, id="of an unknown algorithm [U4]"),
        pytest.param("", LAYER, id="empty [U4]"),
    ],
)
async def test_post_with_a_wrong_digest(registry: Client, digest: str, body: bytes) -> None:
    """A digest that is wrong, or none, is refused, and nothing is there."""
    reply = await registry.ask("POST", registry.path(f"{UPLOADS}?digest={digest}"), body)
    assert (reply.status, reply.code) == (400, "DIGEST_INVALID")
    for known in (BLOB, OTHER):
        assert (await registry.ask("HEAD", registry.path(f"blobs/{known}"))).status == 404


@pytest.mark.parametrize("row", ["U5"])
async def test_post_of_an_announced_blob(registry: Client, row: str) -> None:
    """A digest without bytes begins a session that takes them; unless it is nothing's."""
    reply = await registry.ask("POST", registry.path(f"{UPLOADS}?digest={BLOB}"))
    assert reply.status == 202
    reply = await registry.ask("PUT", f"{reply.headers['Location']}&digest={BLOB}", LAYER)
    assert reply.status == 201
    reply = await registry.ask("POST", registry.path(f"{UPLOADS}?digest={NOTHING}"))
    assert (reply.status, reply.headers["Docker-Content-Digest"]) == (201, NOTHING)


@pytest.mark.parametrize(
    ("query", "headers"),
    [
        pytest.param("digest-algorithm=sha512", {}, id="algorithm [U6]"),
        pytest.param("origin=x&ns=docker.io", {}, id="what it doesn't know [U11]"),
        pytest.param("", {"Content-Type": JSON}, id="a type and no body [U11]"),
    ],
)
async def test_post_with_parameters(registry: Client, query: str, headers: dict[str, str]) -> None:
    """What a client may add to the POST changes nothing."""
    reply = await registry.ask("POST", registry.path(f"{UPLOADS}?{query}"), None, headers)
    assert reply.status == 202
    assert await registry.held(reply.headers["Location"]) == "0-0"


@pytest.mark.parametrize("row", ["U7-B3"])
async def test_mount(registry: Client, row: str) -> None:
    """A blob of another repository is mounted without its bytes, again and again."""
    await registry.push_blob(LAYER, SOURCE)
    place = registry.path(f"blobs/{BLOB}")
    assert (await registry.ask("HEAD", place)).status == 404
    for _ in range(2):
        path = registry.path(f"{UPLOADS}?mount={BLOB}&from={SOURCE}")
        reply = await registry.ask("POST", path)
        assert reply.status == 201
        assert reply.headers["Location"] == place
        assert reply.headers["Docker-Content-Digest"] == BLOB
        assert reply.headers["Content-Length"] == "0"
    assert (await registry.ask("GET", place)).body == LAYER


@pytest.mark.parametrize("row", ["U7-G20"])
async def test_mount_however_it_is_written(registry: Client, row: str) -> None:
    """Names and digests may come escaped."""
    await registry.push_blob(LAYER, SOURCE)
    query = f"mount={BLOB.replace(':', '%3A')}&from={SOURCE.replace('/', '%2F')}"
    assert (await registry.ask("POST", registry.path(f"{UPLOADS}?{query}"))).status == 201


@pytest.mark.parametrize(
    "query",
    [
        pytest.param(f"mount={BLOB}&from=nowhere", id="unknown source [U7]"),
        pytest.param(f"mount={OTHER}&from={SOURCE}", id="unknown blob [U7]"),
        pytest.param(f"mount=x&from={SOURCE}", id="no digest [U7]"),
        pytest.param(f"mount=md5:abc&from={SOURCE}", id="unknown algorithm [U7]"),
        pytest.param(f"mount={BLOB}&from=docker.io/Library", id="no name [U7]"),
        pytest.param(f"mount={BLOB}&from=", id="empty name [U7]"),
        pytest.param(f"from={SOURCE}", id="no blob [U7]"),
        pytest.param(f"mount={BLOB}", id="no source [U9 0.9]"),
    ],
)
@pytest.mark.parametrize("row", ["U7-U8"])
async def test_a_mount_that_fails_is_an_upload(registry: Client, row: str, query: str) -> None:
    """Where nothing can be mounted a live session answers: it takes the bytes, or is cancelled."""
    await registry.push_blob(LAYER, SOURCE)
    path = registry.path(f"{UPLOADS}?{query}")
    locations = []
    for _ in range(2):
        reply = await registry.ask("POST", path)
        assert (reply.status, reply.headers["Range"]) == (202, "0-0")
        locations.append(reply.headers["Location"])
    assert (await registry.ask("PATCH", locations[0], LAYER)).status == 202
    assert (await registry.ask("PUT", f"{locations[0]}&digest={BLOB}")).status == 201
    assert (await registry.ask("DELETE", locations[1])).status == 204


@pytest.mark.parametrize("row", ["U10"])
@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="nobody"),
        pytest.param(_credentials(":"), id="the empty user"),
        pytest.param(_credentials("anna:secret"), id="somebody"),
        pytest.param({"Authorization": "Bearer x.y.z"}, id="a token"),
    ],
)
async def test_a_mount_asks_for_nothing(
    registry: Client, row: str, headers: dict[str, str]
) -> None:
    """As long as nobody is asked for credentials, whoever has some may mount without them."""
    await registry.push_blob(LAYER, SOURCE)
    path = registry.path(f"{UPLOADS}?mount={BLOB}&from={SOURCE}")
    reply = await registry.ask("POST", path, None, headers)
    assert reply.status == 201
    assert "WWW-Authenticate" not in reply.headers
