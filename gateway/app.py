"""The gateway's composition root: what stands on what, and in which order it starts and ends."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial

from aiohttp import web
from structlog.contextvars import bind_contextvars

from gateway.admin import Admin
from gateway.answers import Answer, Renderer
from gateway.auth import Peers
from gateway.blobs import Blobs
from gateway.conflicts import ConflictsApi
from gateway.counts import Counts
from gateway.feed import FeedServer
from gateway.fitness import Fitness
from gateway.gate import Gate, Handler
from gateway.headers import ALWAYS
from gateway.images import ImagesApi
from gateway.manifests import Manifests
from gateway.openapi import openapi
from gateway.registry import Registry, Rules
from gateway.routes import Endpoint, Target
from gateway.search import SearchApi
from gateway.server import HttpServer
from gateway.stale import marked
from gateway.tags import Lists
from gateway.uploads import Uploads
from node import keys
from node.blob_files import FileBlobs
from node.config import Config
from node.conflicts import Conflicts
from node.health import Check, HealthServer
from node.kv import only
from node.lifecycle import Lifecycle
from node.lifecycle import main as run_main
from node.search import Search
from node.site import Site, life_of, new_id, now_ms, opened
from node.telemetry import Metrics
from node.tls import listening, renew
from node.weather import Weather
from node.whereabouts import Whereabouts
from node.workers import Worker, health_addresses


def main(argv: Sequence[str] | None = None) -> int:
    """Be the process `python -m gateway`; `--worker 0/4` makes it the first of four on a port."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--worker", type=Worker.parse, default=Worker())
    found, others = parser.parse_known_args(argv)
    if found.worker.shares:
        bind_contextvars(worker=found.worker.number)
    return run_main("gateway", partial(serve, worker=found.worker), others)


async def serve(config: Config, lifecycle: Lifecycle, worker: Worker) -> None:
    """Start everything; the drain undoes it in reverse: feed, HTTP, health, reads, KV."""
    stack = AsyncExitStack()
    lifecycle.on_stop("the site", stack.aclose)
    site = await stack.enter_async_context(opened(config))
    lifecycle.spawn("reads", site.reads.run())
    life = life_of(config, site.kv)
    lifecycle.on_stop("the mark", partial(life.leave, site.record))
    lifecycle.spawn("life", life.watch(site.record))
    metrics = Metrics("gateway")
    always = {**ALWAYS, **config.http.headers}
    renderer, counts = Renderer(always), Counts()
    metrics.registry.register(counts)
    checks: Mapping[str, Check] = {
        "metadata": partial(_check_metadata, site),
        "blobs": site.blobs.check,
    }
    fitness = Fitness(checks)
    weather = Weather(site.kv, metrics)
    gate = Gate(
        handlers(config, site, always, weather, worker.count),
        Peers(config.peers),
        renderer,
        counts,
        fitness,
        public_url=config.http.public_url or "",
        most=config.limits.requests,
        stopping=lifecycle.stopping,
        new_id=new_id,
    )
    server = HttpServer(gate.answer, renderer)
    feed = FeedServer(site, config.peers, metrics, heard=partial(life.heard, site.record))
    health = HealthServer(
        health_addresses(config, worker.count)[worker.number],
        checks,
        lambda: {
            "site": site.record.name,
            "incarnation": site.record.incarnation,
            "store": weather.problems,
        },
        metrics.registry,
        stopping=lifecycle.stopping,
        key=worker.health_key,
    )
    # It answers last and ends after the others: who can reach it, can be sent requests.
    lifecycle.on_stop("health", health.stop)
    lifecycle.on_stop("http", server.stop)
    lifecycle.spawn("fitness", fitness.run())
    lifecycle.spawn("weather", weather.run())
    tls = listening(config.http.tls)
    addresses = {f"http.listen[{n}]": address for n, address in enumerate(config.http.listen)}
    await server.start(addresses, tls, shared=worker.shares)
    if tls is not None:
        lifecycle.spawn("certificate", renew(config.http.tls, [tls]))
    lifecycle.on_stop("feed", feed.stop)
    await feed.start(config.grpc.listen, shared=worker.shares)
    await health.start()


def handlers(
    config: Config, site: Site, always: Mapping[str, str], weather: Weather, workers: int = 1
) -> Mapping[Endpoint, Handler]:
    """Who answers what, in each of so many workers."""
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
    search = SearchApi(Search(site.kv, site.reads), config.limits.page)
    conflicts = ConflictsApi(Conflicts(site.reads), registry, config.limits.page)
    whereabouts = Whereabouts(site.record, site.reads, site.kv, config.peers, clock_ms=now_ms)
    images = ImagesApi(whereabouts, site.reads, config.peers)
    health = health_addresses(config, workers)
    admin = Admin(site.record, site.kv, config.peers, health, weather)
    return {
        Endpoint.ROOT: _root,
        Endpoint.TO_PING: _to_ping,
        Endpoint.PING: _ping,
        Endpoint.GET_BLOB: blobs.get,
        Endpoint.DELETE_BLOB: blobs.delete,
        Endpoint.GET_MANIFEST: marked(manifests.get),
        Endpoint.PUT_MANIFEST: manifests.put,
        Endpoint.DELETE_MANIFEST: manifests.delete,
        Endpoint.START_UPLOAD: uploads.start,
        Endpoint.APPEND_UPLOAD: uploads.append,
        Endpoint.FINISH_UPLOAD: uploads.finish,
        Endpoint.GET_UPLOAD: uploads.get,
        Endpoint.CANCEL_UPLOAD: uploads.cancel,
        Endpoint.LIST_TAGS: marked(lists.tags),
        Endpoint.LIST_REFERRERS: marked(lists.referrers),
        Endpoint.LIST_REPOSITORIES: marked(lists.repositories),
        Endpoint.PING_V1: search.ping,
        Endpoint.SEARCH: search.search,
        Endpoint.SHOW_SITE: admin.site,
        Endpoint.SHOW_PEERS: admin.peers,
        Endpoint.RECONCILE: admin.reconcile,
        Endpoint.SHOW_IMAGE: marked(images.image),
        Endpoint.LIST_PARKED: marked(images.parked),
        Endpoint.SHOW_OPENAPI: openapi,
        Endpoint.LIST_CONFLICTS: conflicts.list,
        Endpoint.RESOLVE_CONFLICT: conflicts.resolve,
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
    # Without quorum pulls go on, so it is not asked for (DESIGN 10).
    await site.kv.read([only(keys.SITE)], may_be_stale=True)
