"""The gateway's composition root: what stands on what, and in which order it starts and ends."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

from aiohttp import web

from gateway.admin import Admin
from gateway.answers import Answer, Renderer
from gateway.auth import Peers
from gateway.blobs import Blobs
from gateway.counts import Counts
from gateway.feed import FeedServer
from gateway.gate import Gate, Handler
from gateway.headers import ALWAYS
from gateway.manifests import Manifests
from gateway.registry import Registry, Rules
from gateway.routes import Endpoint, Target
from gateway.server import HttpServer
from gateway.tags import Lists
from gateway.uploads import Uploads
from node import keys
from node.blob_files import FileBlobs
from node.config import Config
from node.health import HealthServer
from node.kv import only
from node.lifecycle import Lifecycle
from node.lifecycle import main as run_main
from node.site import Site, new_id, opened
from node.telemetry import Metrics


def main() -> int:
    """Be the process `python -m gateway`."""
    return run_main("gateway", serve)


async def serve(config: Config, lifecycle: Lifecycle) -> None:
    """Start everything; the drain undoes it in reverse: feed, HTTP, health, reads, KV."""
    stack = AsyncExitStack()
    lifecycle.on_stop("the site", stack.aclose)
    site = await stack.enter_async_context(opened(config))
    lifecycle.spawn("reads", site.reads.run())
    metrics = Metrics("gateway")
    always = {**ALWAYS, **config.http.headers}
    renderer, counts = Renderer(always), Counts()
    metrics.registry.register(counts)
    gate = Gate(
        handlers(config, site, always),
        Peers(config.peers),
        renderer,
        counts,
        public_url=config.http.public_url or "",
        stopping=lifecycle.stopping,
        new_id=new_id,
    )
    server = HttpServer(gate.answer, renderer)
    feed = FeedServer(site, config.peers, metrics)
    health = HealthServer(
        config.metrics.listen,
        {"metadata": partial(_check_metadata, site), "blobs": site.blobs.check},
        lambda: {"site": site.record.name, "incarnation": site.record.incarnation},
        metrics.registry,
        stopping=lifecycle.stopping,
    )
    # It answers last and ends after the others: who can reach it, can be sent requests.
    lifecycle.on_stop("health", health.stop)
    lifecycle.on_stop("http", server.stop)
    await server.start({f"http.listen[{n}]": a for n, a in enumerate(config.http.listen)})
    lifecycle.on_stop("feed", feed.stop)
    await feed.start(config.grpc.listen)
    await health.start()


def handlers(config: Config, site: Site, always: Mapping[str, str]) -> Mapping[Endpoint, Handler]:
    """Who answers what."""
    rules = Rules(
        deletes=config.deletes,
        read_only=config.read_only,
        manifest_bytes=config.limits.manifest_bytes,
        grace_ms=config.collect.grace * 1000,
    )
    registry = Registry(site.content, site.uploads, site.metadata, rules, new_id=new_id)
    public_url = config.http.public_url or ""
    manifests = Manifests(registry, public_url)
    blobs = Blobs(registry, _threads(site), always)
    uploads = Uploads(registry, public_url)
    lists = Lists(site.metadata, config.limits.page)
    admin = Admin(site.record, site.kv, config.peers)
    return {
        Endpoint.ROOT: _root,
        Endpoint.TO_PING: _to_ping,
        Endpoint.PING: _ping,
        Endpoint.GET_BLOB: blobs.get,
        Endpoint.DELETE_BLOB: blobs.delete,
        Endpoint.GET_MANIFEST: manifests.get,
        Endpoint.PUT_MANIFEST: manifests.put,
        Endpoint.DELETE_MANIFEST: manifests.delete,
        Endpoint.START_UPLOAD: uploads.start,
        Endpoint.APPEND_UPLOAD: uploads.append,
        Endpoint.FINISH_UPLOAD: uploads.finish,
        Endpoint.GET_UPLOAD: uploads.get,
        Endpoint.CANCEL_UPLOAD: uploads.cancel,
        Endpoint.LIST_TAGS: lists.tags,
        Endpoint.LIST_REFERRERS: lists.referrers,
        Endpoint.LIST_REPOSITORIES: lists.repositories,
        Endpoint.SHOW_SITE: admin.site,
        Endpoint.SHOW_PEERS: admin.peers,
    }


def _threads(site: Site) -> Executor:
    """Where blobs are sent from: beside the store's other work, if it has threads."""
    if isinstance(site.blobs, FileBlobs):
        return site.blobs.threads
    return ThreadPoolExecutor(4, thread_name_prefix="send")


async def _root(_request: web.BaseRequest, _target: Target) -> Answer:
    return Answer(200, {"Cache-Control": "no-cache"})


async def _to_ping(_request: web.BaseRequest, _target: Target) -> Answer:
    return Answer(301, {"Location": "/v2/"})


async def _ping(_request: web.BaseRequest, _target: Target) -> Answer:
    return Answer(200, {"Content-Type": "application/json"}, b"{}")


async def _check_metadata(site: Site) -> None:
    await site.kv.read([only(keys.SITE)])
