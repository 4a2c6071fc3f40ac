"""Requests by chance: most of them what a client sends, or nearly; some of them bytes.

Everything comes from one `random.Random`, and from what the registry has answered so far.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from node.manifest import OCI_MANIFEST
from tests.registry import OCI_CONFIG, OCI_LAYER, digest_of

NAMES: Final = ("a", "fuzz/b", "a/blobs/uploads", "library/x.y_z__w-v/manifests")
BAD_NAMES: Final = (
    "", "A", "-", "..", "a//b", "a/../b", "a%2Fb", "a%252fb", "%2e%2e", "a%00", "%C0%AE", "%ff",
    "%",
    "%zz",
    "\u00e4".encode().decode("latin-1"), "a" * 256,
    "a/" * 3000 + "a", "a b", "a\tb", "*", "~",
)  # fmt: skip
BAD_DIGESTS: Final = (
    "sha256:", "sha256", ":", "sha256:" + "A" * 64, "sha256:" + "0" * 63, "sha512:" + "0" * 64,
    "md5:" + "0" * 32, "sha256:" + "0" * 5000, "sha256%3a..", "x+y.z:0", "sha256:%00", "blake3:0",
)  # fmt: skip
TAGS: Final = ("v1", "v2", "latest", "_", "A-b.C", "x" * 128)
BAD_TAGS: Final = (".x", "-x", "x" * 129, "x" * 9000, "v1%0d%0aX:%20y", "%F0%9F%90%B3", "a!", "%")
NUMBERS: Final = ("0", "1", "2", "-1", "00", "9" * 30, "9" * 5000, "1e3", "%D9%A3", "+1", "0x1", "")
RANGES: Final = (
    "bytes=0-", "bytes=-1", "bytes=5-2", "bytes=0-0,2-3", "bytes=-0", "bytes=9-", "bytes=", "x=0-1",
    "bytes=" + "0-0," * 999 + "1-1", "bytes=" + "0-0," * 9000, "bytes=0-" + "9" * 4000,
    "bytes=,-,1-",
    "bytes=99999999999999999999-", "bytes=0-18446744073709551616", "bytes 0-1",
)  # fmt: skip
CONTENT_RANGES: Final = (
    "0-", "0-0", "bytes 0-9/*", "5-9", "9-5", "a-b", "", "0-" + "9" * 40, "0-9/10", "-1-5",
    "18446744073709551615-18446744073709551616", "bytes */10",
)  # fmt: skip
FIXED: Final = (
    "/", "/v2", "/v2/", "/v2/_catalog", "/v1/_ping", "/v1/search", "/api/v1/site", "/api/v1/peers",
    "/api/v1/conflicts", "/api/v1/conflicts/resolve", "/api/v1/images", "/api/v1/parked", "//v2/",
    "/api/v1/openapi.json",
    "/v2//", "/v2/_oci/ext/discover", "*", "http://h/v2/", "http://h", "/%76%32/", "/v2/?", "x",
    "/v2/#", "/v2/;a", "/v2/%", "/..", "/" + "a" * 60_000, "/" + "a" * 70_000, "?",
    "http://[", "/v2\\",
)  # fmt: skip
PARAMETERS: Final = (
    "n", "last", "digest", "mount", "from", "tag", "artifactType", "q", "_state", "x", "%00", "%ff",
    "repository", "reference",
)  # fmt: skip
METHODS: Final = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
JSON_BODIES: Final = (
    b"", b"{}", b"[]", b"null", b"1", b'"', b"\xff", b"\xef\xbb\xbf{}", b"[" * 100_000,
    b'{"a":' * 50_000, b'{"schemaVersion": ' + b"9" * 5000 + b"}", b'{"schemaVersion": 2e999}',
    b'{"schemaVersion": NaN}', b'{"schemaVersion": -Infinity}', b'{"schemaVersion": true}',
    b'{"schemaVersion": 2, "schemaVersion": 2}', b'{"schemaVersion": 2.0}', b"{}{}", b"{}\x00",
)  # fmt: skip
MEMBERS: Final = (
    "schemaVersion", "mediaType", "config", "layers", "manifests", "subject", "annotations",
    "artifactType", "blobs", "urls", "\x00",
)  # fmt: skip
# To be put into bytes anywhere.
PIECES: Final = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b" ", b"\t", b":", b"%", b"\xff", b"/../", b"GET ",
    b"Content-Length: 5\r\n", b"Content-Length: 18446744073709551615\r\n", b"Host: y\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"HTTP/1.0", b"HTTP/9.9",
    b"Expect: 100-continue\r\n", b"Connection: upgrade\r\nUpgrade: websocket\r\n", b"0\r\n\r\n",
    b"Connection: close\r\n", b"Content-Encoding: gzip\r\n", b" folded\r\n",
    b"ffffffffffffffff\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00", b"X" * 70_000, b"X: y\r\n" * 200,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """A request that is framed as it should be, whatever else it is."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    chunk: int = 0

    @property
    def is_refused_unread(self) -> bool:
        """Whether its head can't be read, so that the connection is cut with more to come."""
        long = max(map(len, (self.target, *(value for _, value in self.headers)))) > 60_000
        return long or not self.target.startswith(("/", "http://h/"))

    def render(self) -> bytes:
        """Its bytes; with `chunk`, its body goes in chunks of so many."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: fuzz"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if self.chunk:
            lines.append("Transfer-Encoding: chunked")
            starts = range(0, len(body), self.chunk)
            parts = [body[start : start + self.chunk] for start in starts]
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        elif body or self.method in {"PUT", "POST", "PATCH"}:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@dataclass(slots=True)
class Known:
    """What the registry has said that it holds."""

    sessions: list[str] = field(default_factory=list)
    blobs: list[tuple[str, str, bytes]] = field(default_factory=list)
    manifests: list[tuple[str, str]] = field(default_factory=list)

    def learn(self, request: Request, status: int, location: str) -> None:
        """Take note of what an answer says."""
        if status == 202 and request.method == "POST":
            self.sessions = [*self.sessions[-30:], location]
        elif status == 201 and "/blobs/sha256:" in location:
            name, _, digest = location.removeprefix("/v2/").rpartition("/blobs/")
            content = request.body if digest_of(request.body) == digest else b""
            self.blobs = [*self.blobs[-100:], (name, digest, content)]
        elif status == 201 and "/manifests/" in location:
            name, _, digest = location.removeprefix("/v2/").rpartition("/manifests/")
            self.manifests = [*self.manifests[-100:], (name, digest)]


class Grammar:
    """Makes requests."""

    def __init__(self, chance: random.Random, known: Known) -> None:
        self._chance = chance
        self._known = known

    def request(self) -> Request:
        """A proper step of a client in half of all cases, else anything."""
        steps: tuple[Callable[[], Request], ...] = (
            self._start, self._append, self._append, self._finish, self._cancel, self._push_blob,
            self._push_blob, self._push_manifest, self._push_manifest, self._pull, self._pull,
            self._pull, self._delete, self._mount, self._list,
        )  # fmt: skip
        request = self._chance.choice(steps)() if self._chance.random() < 0.5 else self._wild()
        if 0 < len(request.body) < 1_000_000 and self._chance.random() < 0.3:
            return Request(*_parts(request), chunk=self._chance.choice((1, 7, 1000, 1 << 20)))
        return request

    def mutated(self, content: bytes) -> bytes:
        """Bytes with a few mistakes; the first kilobyte, where the head is, gets most of them."""
        for _ in range(self._chance.choice((1, 1, 1, 2, 5))):
            reach = min(len(content), self._chance.choice((40, 1000, 1 << 20)))
            at = self._chance.randint(0, reach)
            end = at + self._chance.choice((0, 0, 1, 1, 5, 50))
            piece = self._chance.choice(PIECES) if self._chance.random() < 0.7 else b""
            if self._chance.random() < 0.2:
                piece = self._chance.randbytes(self._chance.randint(1, 8))
            content = content[:at] + piece + content[end:]
        return content

    # --- proper steps

    def _start(self) -> Request:
        return Request("POST", f"/v2/{self._chance.choice(NAMES)}/blobs/uploads/")

    def _append(self) -> Request:
        headers = (("Content-Range", f"0-{self._chance.randint(0, 40)}"),)
        given = headers if self._chance.random() < 0.2 else ()
        return Request("PATCH", self._session(), given, self._content())

    def _finish(self) -> Request:
        content = self._content()
        return Request("PUT", f"{self._session()}&digest={digest_of(content)}", (), content)

    def _cancel(self) -> Request:
        return Request("DELETE", self._session())

    def _push_blob(self) -> Request:
        content, start = self._content(), self._start()
        return Request("POST", f"{start.target}?digest={digest_of(content)}", (), content)

    def _push_manifest(self) -> Request:
        name, body = self._manifest()
        if self._chance.random() < 0.01:
            body = body.ljust(self._chance.choice((4 << 20, (4 << 20) + 1)))
        tag = self._chance.choice((*TAGS, digest_of(body), f"{digest_of(body)}?tag=v1&tag=_"))
        headers = [("Content-Type", OCI_MANIFEST)]
        if self._chance.random() < 0.2:
            headers.append((self._chance.choice(("If-Match", "If-None-Match")), "*"))
        return Request("PUT", f"/v2/{name}/manifests/{tag}", tuple(headers), body)

    def _pull(self) -> Request:
        method = self._chance.choice(("GET", "GET", "HEAD"))
        conditions = (("Range", self._chance.choice(RANGES)), ("If-None-Match", "*"))
        headers = (self._chance.choice(conditions),) if self._chance.random() < 0.3 else ()
        if self._known.blobs and self._chance.random() < 0.6:
            name, digest, _ = self._chance.choice(self._known.blobs)
            return Request(method, f"/v2/{name}/blobs/{digest}", headers)
        return Request(method, self._manifest_path(), headers)

    def _delete(self) -> Request:
        if self._known.blobs and self._chance.random() < 0.5:
            name, digest, _ = self._chance.choice(self._known.blobs)
            return Request("DELETE", f"/v2/{name}/blobs/{digest}")
        return Request("DELETE", self._manifest_path())

    def _mount(self) -> Request:
        source, digest = NAMES[0], digest_of(b"")
        if self._known.blobs:
            source, digest, _ = self._chance.choice(self._known.blobs)
        return Request("POST", f"{self._start().target}?mount={digest}&from={source}")

    def _list(self) -> Request:
        name = self._chance.choice(NAMES)
        subject = digest_of(self._content())
        if self._known.manifests:
            name, subject = self._chance.choice(self._known.manifests)
        paths = (
            "/v2/_catalog",
            "/v1/search",
            f"/v2/{name}/tags/list",
            f"/v2/{name}/referrers/{subject}",
        )
        return Request("GET", self._chance.choice(paths) + self._query())

    # --- anything

    def _wild(self) -> Request:
        chance = self._chance
        name = chance.choice(NAMES if chance.random() < 0.6 else BAD_NAMES)
        last = chance.choice((*BAD_DIGESTS, *BAD_TAGS, *TAGS, digest_of(b""), digest_of(b"x")))
        word = chance.choice(
            ("blobs", "manifests", "referrers", "tags", "uploads", "blobs/uploads")
        )
        paths = (
            chance.choice(FIXED),
            f"/v2/{name}/{word}/{last}",
            f"/v2/{name}/{word}/",
            f"/v2/{name}/tags/list",
            self._session().partition("?")[0] + chance.choice(("", "/", "%00", "x")),
        )
        body = chance.choice(
            (b"", b"", self._content(), chance.choice(JSON_BODIES), self._manifest()[1])
        )
        headers = tuple(self._header() for _ in range(chance.choice((0, 0, 1, 1, 2, 4))))
        target = chance.choice(paths).replace(" ", "%20").replace("\t", "%09") + self._query()
        return Request(chance.choice(METHODS), target, headers, body)

    def _query(self) -> str:
        chance = self._chance
        if chance.random() < 0.5:
            return ""
        values = (
            *NUMBERS,
            *BAD_DIGESTS,
            *TAGS,
            *BAD_TAGS,
            *NAMES,
            digest_of(b""),
            "a;b=c",
            "%26",
            "\xe4",
        )
        count = chance.choice((1, 1, 2, 3, 500))
        pairs = [
            f"{chance.choice(PARAMETERS)}={chance.choice(values)}" for _ in range(min(count, 3))
        ]
        return "?" + "&".join(pairs * max(1, count // 3))[:50_000]

    def _header(self) -> tuple[str, str]:
        chance = self._chance
        texts = (
            "",
            "*",
            '"',
            "\xe4\xff",
            "a" * 60_000,
            "a,b;q=0",
            digest_of(b""),
            f'"{digest_of(b"")}"',
            "-1",
        )
        return chance.choice(
            (
                ("Range", chance.choice(RANGES)),
                ("Content-Range", chance.choice(CONTENT_RANGES)),
                ("Content-Type", chance.choice((OCI_MANIFEST, "text/plain", "a/b; c=d", *texts))),
                ("If-Match", chance.choice(texts)),
                ("If-None-Match", chance.choice(texts)),
                ("If-Range", chance.choice(texts)),
                ("Accept", chance.choice(texts)),
                ("Accept-Encoding", "zstd, gzip;q=0, *"),
                ("Content-Encoding", chance.choice(("gzip", "x", ""))),
                ("Authorization", chance.choice(("Basic Og==", "Bearer \xff", "Bearer", *texts))),
                ("Entrepot-Site", chance.choice(("fra", "nyc", *texts))),
                ("Forwarded", chance.choice(texts)),
                ("X-Forwarded-Host", chance.choice(texts)),
                ("Cookie", chance.choice(texts)),
            )
        )  # fmt: skip

    # --- parts

    def _session(self) -> str:
        unknown = "/v2/a/blobs/uploads/0b5f9a6e-0000-4000-8000-000000000000?_state=open"
        return self._chance.choice(self._known.sessions or [unknown])

    def _content(self) -> bytes:
        size = self._chance.choice((0, 1, 10, 41, 1000, 1000, 70_000, 300_000))
        return self._chance.randbytes(4) * (size // 4) + b"x" * (size % 4)

    def _manifest_path(self) -> str:
        name, digest = self._chance.choice(self._known.manifests or [(NAMES[0], "v1")])
        return f"/v2/{name}/manifests/{self._chance.choice((digest, *TAGS))}"

    def _manifest(self) -> tuple[str, bytes]:
        """A name, and a manifest that can be pushed to it, or nearly."""
        chance = self._chance
        held = self._known.blobs or [(NAMES[0], digest_of(b"x"), b"x")]
        name = chance.choice(held)[0]
        here = [_descriptor(digest, content) for of, digest, content in held if of == name]
        document: dict[str, object] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {**here[0], "mediaType": OCI_CONFIG},
            "layers": chance.sample(here, min(len(here), 3)),
        }
        if chance.random() < 0.2:
            document["subject"] = _descriptor(digest_of(chance.randbytes(1)), b"")
        if chance.random() < 0.2:
            document["annotations"] = {"org.opencontainers.image.title": chance.choice(TAGS)}
        if chance.random() < 0.3:
            document[chance.choice(MEMBERS)] = self._value(3)
        return name, json.dumps(document).encode()

    def _value(self, depth: int) -> object:
        chance = self._chance
        plain = (
            None,
            True,
            0,
            -1,
            2,
            2**63,
            10**400,
            1.5,
            "",
            "\x00",
            "\ud800",
            "a/b",
            "x" * 300,
            digest_of(b""),
        )
        kind = chance.random()
        if depth and kind < 0.2:
            return [self._value(depth - 1) for _ in range(chance.randint(0, 3))]
        if depth and kind < 0.4:
            return {chance.choice((*MEMBERS, "\ud800")): self._value(depth - 1) for _ in range(2)}
        return chance.choice(plain)


def _parts(request: Request) -> tuple[str, str, tuple[tuple[str, str], ...], bytes]:
    return request.method, request.target, request.headers, request.body


def _descriptor(digest: str, content: bytes) -> dict[str, object]:
    return {"mediaType": OCI_LAYER, "digest": digest, "size": len(content)}
