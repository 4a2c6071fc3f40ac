"""A registry on fakes that answers real HTTP, and small images to push to it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry
from yarl import URL

from gateway.answers import Renderer
from gateway.app import handlers
from gateway.auth import Peers
from gateway.connection import Limits
from gateway.counts import Counts
from gateway.fitness import Fitness
from gateway.gate import Gate
from gateway.headers import ALWAYS
from gateway.server import HttpServer
from node.config import Address, Config
from node.digest import Digest
from node.manifest import OCI_INDEX, OCI_MANIFEST
from node.records import SiteRecord
from node.site import Site, assembled
from node.telemetry import Metrics
from node.weather import Weather
from tests.clock import Clock
from tests.fake_blobs import MemoryBlobs
from tests.fake_kv import MemoryKV
from tests.ports import free_port

REPOSITORY: Final = "team/app"
CONFIG: Final = b"{}"
LAYER: Final = bytes(range(256)) * 4
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
JSON: Final = "application/json"


def digest_of(content: bytes) -> str:
    """The content's sha256 digest, as text."""
    return str(Digest.of(content))


def descriptor(content: bytes, media_type: str = OCI_LAYER) -> dict[str, Any]:
    """What a manifest says about content."""
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def image(*layers: bytes, **more: object) -> bytes:
    """An image manifest over the config and these layers, with other members."""
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG, OCI_CONFIG),
            "layers": [descriptor(layer) for layer in layers],
            **more,
        }
    ).encode()


def index(*manifests: bytes, **more: object) -> bytes:
    """An index of these image manifests, with other members."""
    children = [descriptor(manifest, OCI_MANIFEST) for manifest in manifests]
    return json.dumps(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children, **more}
    ).encode()


async def chunked(*chunks: bytes) -> AsyncIterator[bytes]:
    """A body that is sent without a length."""
    for chunk in chunks:
        yield chunk


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of the first error in the body."""
        return str(self.json()["errors"][0]["code"])


@dataclass(slots=True)
class Client:
    """Asks a registry that answers on a port; `repository` is where a test puts things.

    Where `others` answer for it too, each request and each connection goes to the next of them all.
    """

    port: int
    client: aiohttp.ClientSession
    repository: str = REPOSITORY
    others: tuple[int, ...] = ()

    def path(self, rest: str, repository: str = "") -> str:
        """The path of something in a repository: `manifests/v1`, `blobs/uploads/`."""
        return f"/v2/{repository or self.repository}/{rest}"

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    ) -> Reply:
        """Send a request whose path goes out as it is written; a body without length is chunked."""
        url = URL(f"http://127.0.0.1:{self._turn()}{path}", encoded=True)
        # aiohttp frowns on large bytes, not on large files.
        data = io.BytesIO(body) if isinstance(body, bytes) and body else body
        async with self.client.request(
            method,
            url,
            data=data,
            headers=CIMultiDict(headers),
            skip_auto_headers={"Content-Type"},
            allow_redirects=False,
        ) as answer:
            return Reply(answer.status, answer.headers, await answer.read())

    async def push_blob(self, content: bytes, repository: str = "") -> str:
        """Push a blob in one request, and return its digest."""
        digest = digest_of(content)
        path = self.path(f"blobs/uploads/?digest={digest}", repository)
        reply = await self.ask("POST", path, content)
        assert reply.status == 201, reply
        return digest

    async def push_manifest(self, body: bytes, reference: str = "", repository: str = "") -> str:
        """Push a manifest by tag, or by its digest, and return its digest."""
        digest = digest_of(body)
        media_type = json.loads(body).get("mediaType", OCI_MANIFEST)
        path = self.path(f"manifests/{reference or digest}", repository)
        reply = await self.ask("PUT", path, body, {"Content-Type": media_type})
        assert reply.status == 201, reply
        return digest

    async def push_image(self, tag: str = "v1", repository: str = "", **more: object) -> str:
        """Push an image of one layer, and return its digest."""
        for content in (CONFIG, LAYER):
            await self.push_blob(content, repository)
        return await self.push_manifest(image(LAYER, **more), tag, repository)

    async def start_upload(self, repository: str = "") -> str:
        """Begin an upload session, and return its location."""
        reply = await self.ask("POST", self.path("blobs/uploads/", repository))
        assert reply.status == 202, reply
        return reply.headers["Location"]

    async def held(self, location: str) -> str:
        """The range that an upload session says it holds."""
        reply = await self.ask("GET", location)
        assert reply.status == 204, reply
        return reply.headers["Range"]

    @asynccontextmanager
    async def connected(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A bare connection, for what no client would send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._turn())
        try:
            yield reader, writer
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    def _turn(self) -> int:
        """The port whose turn it is; then it is the next one's."""
        port = self.port
        self.port, *others = (*self.others, port)
        self.others = tuple(others)
        return port


@dataclass(slots=True, kw_only=True)
class Served(Client):
    """A registry in this process, and what it stands on."""

    site: Site
    kv: MemoryKV
    blobs: MemoryBlobs
    stopping: asyncio.Event
    clock: Clock
    new_id: Callable[[], str]
    metrics: CollectorRegistry
    weather: Weather


def _ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"id-{next(numbers)}"


@asynccontextmanager
async def served(
    config: Config | None = None,
    beside: Served | None = None,
    limits: Limits | None = None,
    fitness: Fitness | None = None,
) -> AsyncIterator[Served]:
    """Serve a registry on fakes with a configuration, but for its addresses.

    With `beside`, it is another gateway of that one's site; `limits` are its connections'; without
    `fitness` it is always fit.
    """
    config = config or Config()
    if beside is None:
        clock, kv, blobs, new_id = Clock(), MemoryKV(), MemoryBlobs(), _ids()
    else:
        clock, kv, blobs, new_id = beside.clock, beside.kv, beside.blobs, beside.new_id
    record = SiteRecord(config.site, "life")
    site = assembled(config, record, kv, blobs, clock_ms=clock, new_id=new_id)
    always = {**ALWAYS, **config.http.headers}
    stopping = asyncio.Event()
    renderer, counts = Renderer(always), Counts()
    metrics = CollectorRegistry()
    metrics.register(counts)
    weather = Weather(kv, Metrics("gateway"))
    gate = Gate(
        handlers(config, site, always, weather),
        Peers(config.peers),
        renderer,
        counts,
        fitness or Fitness({}),
        public_url=config.http.public_url or "",
        most=config.limits.requests,
        stopping=stopping,
        new_id=new_id,
    )
    server = HttpServer(gate.answer, renderer, limits)
    port = free_port()
    async with asyncio.TaskGroup() as group:
        reading = group.create_task(site.reads.run())
        try:
            await server.start({"http.listen[0]": Address("127.0.0.1", port)})
            async with aiohttp.ClientSession(auto_decompress=False) as client:
                yield Served(
                    port=port,
                    client=client,
                    site=site,
                    kv=kv,
                    blobs=blobs,
                    stopping=stopping,
                    clock=clock,
                    new_id=new_id,
                    metrics=metrics,
                    weather=weather,
                )
        finally:
            await server.stop()
            reading.cancel()
