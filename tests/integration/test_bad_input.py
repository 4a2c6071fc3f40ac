"""What a gateway answers to input that is wrong, and that nothing of it stays behind."""

from __future__ import annotations

import json
import random
import urllib.request
from asyncio import to_thread
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest
import pytest_asyncio

from tests.faults.raw import RawAnswer, request, send, sent
from tests.faults.registry import (
    OCI_INDEX,
    OCI_MANIFEST,
    Image,
    Registry,
    digest_of,
    image_of,
    index_of,
    new_image,
)
from tests.faults.stopped import entries, files, sessions
from tests.sites import Site, ended
from tests.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

REPOSITORY: Final = "team/app"
TAG: Final = "v1"
LIMIT: Final = 4 << 20
ABSENT: Final = digest_of(b"nobody has this")
UPLOADS: Final = f"/v2/{REPOSITORY}/blobs/uploads"
MANIFESTS: Final = f"/v2/{REPOSITORY}/manifests"
HELD: Final = b"abc"

UNPUSHED: Final = image_of(b"{}", b"a layer that was never pushed")


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and the status and the error codes that it must get."""

    method: str
    path: str
    status: int
    codes: tuple[str, ...]
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    async def send(self, site: Site, session: str = "") -> RawAnswer:
        """Send it; `SESSION` in its path is an upload's location."""
        headers = {"Content-Length": str(len(self.body)), **self.headers}
        path = self.path.replace("SESSION", session)
        return await send(site.http, request(self.method, path, headers, self.body))


def _put(body: object, status: int, *codes: str, reference: str = "new", **headers: str) -> Case:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return Case("PUT", f"{MANIFESTS}/{reference}", status, codes, content, given)


def _get(path: str, status: int, code: str) -> Case:
    return Case("GET", path, status, (code,))


def _document(**changes: object) -> dict[str, object]:
    document: dict[str, object] = json.loads(UNPUSHED.manifest.content)
    return {**document, **changes}


_MISSING: Final = tuple("MANIFEST_BLOB_UNKNOWN" for _ in UNPUSHED.blobs)
_UNKNOWN_TYPE: Final = "application/vnd.docker.distribution.manifest.v1+json"

REFUSED: Final = {
    # names, tags, digests, pages
    "N5 a name in upper case": _get("/v2/Team/app/tags/list", 400, "NAME_INVALID"),
    "N1 a name that ends in a dash": _get("/v2/team-/manifests/v1", 400, "NAME_INVALID"),
    "N1 a name of 256 characters": _get(f"/v2/{'a' * 256}/tags/list", 400, "NAME_INVALID"),
    "N1 a name with an empty part": _get("/v2/team//app/tags/list", 400, "NAME_INVALID"),
    "N1 a name that leads upwards": _get("/v2/../../etc/manifests/v1", 400, "NAME_INVALID"),
    "U14 an upload to a bad name": Case("POST", "/v2/A/blobs/uploads/", 400, ("NAME_INVALID",)),
    "MG6 a malformed tag is not there": _get(f"{MANIFESTS}/.bad", 404, "MANIFEST_UNKNOWN"),
    "MP16 a tag of 129 characters": _put(_document(), 400, "NAME_INVALID", reference="a" * 129),
    "MP16 a tag of bad characters": _put(_document(), 400, "NAME_INVALID", reference="a!"),
    "N3 a digest of the wrong length": _get(f"{MANIFESTS}/sha256:abc", 400, "DIGEST_INVALID"),
    "N3 a digest in upper case": _get(f"{MANIFESTS}/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
    "N3 an unknown algorithm": _get(f"{MANIFESTS}/md5:{'a' * 32}", 400, "DIGEST_INVALID"),
    "B16 a bad digest of a blob": _get(f"/v2/{REPOSITORY}/blobs/sha256:x", 400, "DIGEST_INVALID"),
    "R4 a bad digest of a subject": _get(f"/v2/{REPOSITORY}/referrers/x", 400, "DIGEST_INVALID"),
    "MP3 a put under a bad digest": _put(
        _document(), 400, "DIGEST_INVALID", reference="sha256:bad"
    ),
    "TL6 a page of no number": _get(
        f"/v2/{REPOSITORY}/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"
    ),
    "TL6 a page below nothing": _get("/v2/_catalog?n=-1", 400, "PAGINATION_NUMBER_INVALID"),
    # what is not there
    "MG5 an unknown tag": _get(f"{MANIFESTS}/none", 404, "MANIFEST_UNKNOWN"),
    "MG5 an unknown manifest": _get(f"{MANIFESTS}/{ABSENT}", 404, "MANIFEST_UNKNOWN"),
    "B3 an unknown blob": _get(f"/v2/{REPOSITORY}/blobs/{ABSENT}", 404, "BLOB_UNKNOWN"),
    "TL2 an unknown repository": _get("/v2/none/tags/list", 404, "NAME_UNKNOWN"),
    "U34 an unknown session": _get(f"{UPLOADS}/11111111-2222", 404, "BLOB_UPLOAD_UNKNOWN"),
    "U34 a patch of an unknown session": Case(
        "PATCH", f"{UPLOADS}/11111111-2222", 404, ("BLOB_UPLOAD_UNKNOWN",), b"bytes"
    ),
    "U34 a session that leads upwards": _get(f"{UPLOADS}/..%5C..", 404, "BLOB_UPLOAD_UNKNOWN"),
    "MD3 a delete of an unknown tag": Case(
        "DELETE", f"{MANIFESTS}/none", 404, ("MANIFEST_UNKNOWN",)
    ),
    "B14 a delete of an unknown blob": Case(
        "DELETE", f"/v2/{REPOSITORY}/blobs/{ABSENT}", 404, ("BLOB_UNKNOWN",)
    ),
    "G15 a method that is not offered": Case("POST", f"{MANIFESTS}/v1", 405, ("UNSUPPORTED",)),
    # manifests
    "MP12 a manifest without its blobs": _put(_document(), 400, *_MISSING),
    "MP12 an index without its children": _put(
        index_of(UNPUSHED).manifest.content, 400, "MANIFEST_BLOB_UNKNOWN", Content_Type=OCI_INDEX
    ),
    "MP3 another digest": _put(_document(), 400, "DIGEST_INVALID", reference=ABSENT),
    "MP7 a bad tag beside a good one": _put(
        UNPUSHED.manifest.content,
        400,
        "NAME_INVALID",
        reference=f"{UNPUSHED.digest}?tag=good&tag=.bad",
    ),
    "V3 no JSON": _put(b"{", 400, "MANIFEST_INVALID"),
    "V3 nothing": _put(b"", 400, "MANIFEST_INVALID"),
    "V3 a list": _put([], 400, "MANIFEST_INVALID"),
    "V3 no UTF-8": _put(b'{"schemaVersion": 2, "x": "\xff"}', 400, "MANIFEST_INVALID"),
    "V3 depth without end": _put(b"[" * 200_000, 400, "MANIFEST_INVALID"),
    "V3 a number that JSON lacks": _put(b'{"schemaVersion": NaN}', 400, "MANIFEST_INVALID"),
    "V2 schema 1": _put(_document(schemaVersion=1), 400, "MANIFEST_INVALID"),
    "V2 the type of schema 1": _put(b"{}", 400, "MANIFEST_INVALID", Content_Type=_UNKNOWN_TYPE),
    "V4 no config": _put(_document(config=None), 400, "MANIFEST_INVALID"),
    "V4 layers that are no list": _put(_document(layers={}), 400, "MANIFEST_INVALID"),
    "V5 a negative size": _put(
        _document(config={"mediaType": "a/b", "digest": ABSENT, "size": -1}),
        400,
        "MANIFEST_INVALID",
    ),
    "V5 a descriptor without a digest": _put(
        _document(config={"mediaType": "a/b", "size": 1}), 400, "MANIFEST_INVALID"
    ),
    "MP9 two types at once": _put(_document(), 400, "MANIFEST_INVALID", Content_Type="text/plain"),
    "MP9 an image that is an index": _put(_document(manifests=[]), 400, "MANIFEST_INVALID"),
    "MP5 a manifest over 4 MiB": _put(b" " * (LIMIT + 1), 413, "SIZE_INVALID"),
    # blobs in one request
    "U29 a blob that is another": Case(
        "POST", f"{UPLOADS}/?digest={ABSENT}", 400, ("DIGEST_INVALID",), b"not that"
    ),
    "U29 a blob with a bad digest": Case(
        "POST", f"{UPLOADS}/?digest=sha256:bad", 400, ("DIGEST_INVALID",), b"bytes"
    ),
    # percent signs
    "H6 a slash in disguise": _get("/v2/team%2Fapp/manifests/v1", 400, "NAME_INVALID"),
    "H6 dots in disguise": _get("/v2/%2e%2e/manifests/v1", 400, "NAME_INVALID"),
    "H6 a NUL": _get("/v2/team/app%00/tags/list", 400, "NAME_INVALID"),
    "H6 a line break": _get("/v2/team/app%0d%0ax/tags/list", 400, "NAME_INVALID"),
    "H6 no UTF-8": _get("/v2/team/%ff/tags/list", 400, "NAME_INVALID"),
    "H6 a percent sign alone": _get("/v2/team/%zz/tags/list", 400, "NAME_INVALID"),
    "H6 encoded twice": _get("/v2/team%252Fapp/manifests/v1", 400, "NAME_INVALID"),
    "H6 a NUL in a tag": _get(f"{MANIFESTS}/v1%00", 404, "MANIFEST_UNKNOWN"),
    "a path of nothing": _get("/v2/x", 404, "UNSUPPORTED"),
    # framing
    "H3 a URL of 100 KiB": _get(f"/v2/{'a/' * 51200}tags/list", 400, "UNKNOWN"),
    "H3 a header of 100 KiB": Case(
        "GET", "/v2/", 400, ("UNKNOWN",), headers={"Accept": "a" * 102400}
    ),
    "two lengths": Case(
        "PUT", f"{MANIFESTS}/new", 400, ("UNKNOWN",), b"{}", {"content-length": "3"}
    ),
    "a length of no number": Case(
        "PUT", f"{MANIFESTS}/new", 400, ("UNKNOWN",), headers={"Content-Length": "x"}
    ),
}

# Each of these finds a session that holds three bytes, and must leave it as it is.
BAD_CHUNKS: Final = {
    "U22 a chunk too far on": Case(
        "PATCH", "SESSION", 416, ("BLOB_UPLOAD_INVALID",), b"xyz", {"Content-Range": "4-6"}
    ),
    "U22 a chunk again": Case(
        "PATCH", "SESSION", 416, ("BLOB_UPLOAD_INVALID",), HELD, {"Content-Range": "0-2"}
    ),
    "U22 a range that is none": Case(
        "PATCH", "SESSION", 416, ("BLOB_UPLOAD_INVALID",), b"xyz", {"Content-Range": "a-b"}
    ),
    "U22 a range longer than the chunk": Case(
        "PATCH", "SESSION", 400, ("SIZE_INVALID",), b"xyz", {"Content-Range": "3-9"}
    ),
    "U28 a last chunk too far on": Case(
        "PUT",
        f"SESSION&digest={ABSENT}",
        416,
        ("BLOB_UPLOAD_INVALID",),
        b"xyz",
        {"Content-Range": "9-11"},
    ),
    "U29 an end without a digest": Case("PUT", "SESSION", 400, ("DIGEST_INVALID",)),
    "U29 an end with a bad digest": Case("PUT", "SESSION&digest=x", 400, ("DIGEST_INVALID",)),
    "U29 an end with an odd digest": Case(
        "PUT", f"SESSION&digest=md5:{'a' * 32}", 400, ("DIGEST_INVALID",)
    ),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def site(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    """A gateway that holds one image."""
    one = Site("fra", tmp_path_factory.mktemp("bad-input") / "fra", programs=("gateway",))
    with ended(one):
        await one.start()
        async with Registry.at(one.url) as registry:
            await registry.push(REPOSITORY, new_image(random.Random(1)), TAG)
        yield one
        await one.stop_all()


@pytest.fixture(autouse=True)
def _the_loop_is_never_blocked(site: Site) -> Iterator[None]:
    """No code of ours runs in this process: a guard here would only be slow.  Logs are shown."""
    yield
    site.show_logs()


@pytest_asyncio.fixture(loop_scope="module")
async def session(site: Site) -> AsyncIterator[str]:
    """The location of an upload that holds three bytes."""
    opened = await Case("POST", f"{UPLOADS}/", 202, ()).send(site)
    assert opened.status == 202
    location = opened.headers["location"]
    appended = await Case("PATCH", location, 202, (), HELD).send(site)
    assert appended.status == 202
    yield location
    await Case("DELETE", location, 204, ()).send(site)
    assert not sessions(entries(site))


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_wrong_is_refused_and_leaves_nothing(site: Site, case: Case) -> None:
    """A bad request gets the field's own error, and changes neither a key nor a file."""
    before = (entries(site), files(site))
    answer = await case.send(site)
    assert (answer.status, tuple(answer.codes)) == (case.status, case.codes)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
    assert (entries(site), files(site)) == before


@pytest.mark.parametrize("case", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
async def test_a_bad_chunk_leaves_the_session_as_it_was(
    site: Site, session: str, case: Case
) -> None:
    """A chunk out of order or of the wrong length is dropped, and the upload can go on."""
    before = (entries(site), files(site))
    answer = await case.send(site, session)
    assert (answer.status, tuple(answer.codes)) == (case.status, case.codes)
    assert (entries(site), files(site)) == before
    state = await Case("GET", session, 204, ()).send(site)
    assert (state.status, state.headers["range"]) == (204, "0-2")


async def test_a_wrong_digest_ends_the_session(site: Site) -> None:
    """U29: bytes that are not what the client says are dropped with their session."""
    before = (entries(site), files(site))
    opened = await Case("POST", f"{UPLOADS}/", 202, ()).send(site)
    location = opened.headers["location"]
    answer = await Case("PUT", f"{location}&digest={ABSENT}", 400, (), b"not that").send(site)
    assert (answer.status, answer.codes) == (400, ["DIGEST_INVALID"])
    assert (await Case("GET", location, 404, ()).send(site)).status == 404
    assert (entries(site), files(site)) == before


async def test_a_cut_chunk_is_kept_as_far_as_it_came(site: Site, session: str) -> None:
    """U36: a client that is cut can ask where to go on, and then finish."""
    chunk = random.Random(2).randbytes(1 << 20)
    head = {"Content-Length": str(2 << 20)}
    async with _cut(site, request("PATCH", session, head, chunk), "append-upload"):
        await eventually(lambda: _received(site) > len(HELD), 30, "a part of it was written")
    state = await Case("GET", session, 204, ()).send(site)
    rest = (HELD + chunk)[int(state.headers["range"].rpartition("-")[2]) + 1 :]
    assert len(rest) < len(chunk)
    whole = f"{session}&digest={digest_of(HELD + chunk)}"
    assert (await Case("PUT", whole, 201, (), rest).send(site)).status == 201


async def test_a_cut_end_makes_no_blob(site: Site, session: str) -> None:
    """A last chunk that is cut publishes nothing, even if the digest fits what did arrive."""
    came = HELD + b"defg"
    body = request("PUT", f"{session}&digest={digest_of(came)}", {"Content-Length": "9"}, b"defg")
    async with _cut(site, body, "finish-upload"):
        pass
    blob = _get(f"/v2/other/blobs/{digest_of(came)}", 404, "BLOB_UNKNOWN")
    assert (await blob.send(site)).status == 404


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_cut_manifest_stores_nothing(site: Site, framing: str) -> None:
    """MP18: a connection that is cut stores nothing, whatever says how long the body is."""
    before = (entries(site), files(site))
    body = UNPUSHED.manifest.content
    if framing == "length":
        content = request("PUT", f"{MANIFESTS}/cut", {"Content-Length": "99999"}, body)
    else:
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        content = request("PUT", f"{MANIFESTS}/cut", {"Transfer-Encoding": "chunked"}, chunk)
    async with _cut(site, content, "put-manifest"):
        pass
    assert (entries(site), files(site)) == before


async def test_a_manifest_over_the_limit_without_a_length_is_refused(site: Site) -> None:
    """MP5: 4 MiB are the limit, also of a body that doesn't say how long it is."""
    before = (entries(site), files(site))
    chunk = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    body = chunk * 4 + b"1\r\n \r\n0\r\n\r\n"
    headers = {"Transfer-Encoding": "chunked", "Content-Type": OCI_MANIFEST}
    answer = await send(site.http, request("PUT", f"{MANIFESTS}/large", headers, body))
    assert (answer.status, answer.codes) == (413, ["SIZE_INVALID"])
    assert (entries(site), files(site)) == before


async def test_what_is_no_http_is_refused(site: Site) -> None:
    """A client that speaks TLS, or anything else, to the port gets 400 and no more."""
    answer = await send(site.http, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
    assert answer.status == 400


async def test_a_manifest_of_four_mebibytes_is_taken(site: Site) -> None:
    """MP5: a manifest of exactly the limit, and what it needs, can be pushed and pulled."""
    image = image_of(b"{}", b"layer")
    document = json.loads(image.manifest.content)
    spare = LIMIT - len(json.dumps(document | {"padding": ""}))
    body = json.dumps(document | {"padding": "x" * spare}).encode()
    assert len(body) == LIMIT
    large = Image(type(image.manifest)(OCI_MANIFEST, body), image.blobs)
    async with Registry.at(site.url) as registry:
        await registry.push("large", large, TAG)
        assert await registry.pull("large", TAG) == large.digest


async def test_digests_may_be_escaped(site: Site) -> None:
    """G20: `:` and `%3A` mean the same, in a path and in a query."""
    async with Registry.at(site.url) as registry:
        digest = await registry.shows(REPOSITORY, TAG)
    assert digest is not None
    escaped = digest.replace(":", "%3A")
    answer = await send(site.http, request("GET", f"{MANIFESTS}/{escaped}", {}))
    assert (answer.status, answer.headers["docker-content-digest"]) == (200, digest)


@asynccontextmanager
async def _cut(site: Site, content: bytes, endpoint: str) -> AsyncIterator[None]:
    """Send a part of a request, leave when the body is done, and wait until that is refused."""
    before = await to_thread(_refused, site, endpoint)
    async with sent(site.http, content):
        yield

    async def refused() -> bool:
        return await to_thread(_refused, site, endpoint) > before

    await eventually(refused, 30, f"a cut {endpoint} is refused")


def _received(site: Site) -> int:
    """The bytes that uploads hold on the disk."""
    return sum(path.stat().st_size for path in site.blobs.glob("uploads/*/*"))


def _refused(site: Site, endpoint: str) -> float:
    """How many requests to an endpoint were answered 400."""
    url = f"http://127.0.0.1:{site.port + 2}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    wanted = ("http_requests_total{", f'endpoint="{endpoint}"', 'status="400"')
    found = [line for line in lines if all(part in line for part in wanted)]
    return float(found[0].rpartition(" ")[2]) if found else 0.0
