"""The replicator's composition root: what stands on what, and in which order it starts and ends."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial

import aiohttp

from node import keys
from node.config import Config
from node.config_models import Peer
from node.election import Elections, Leadership
from node.globs import Filter
from node.health import HealthServer
from node.kv import only
from node.life import Life
from node.lifecycle import Lifecycle
from node.lifecycle import main as run_main
from node.losses import Losses
from node.remote import Remote, new_session
from node.replica import Replica
from node.scans import Scans
from node.site import Site, life_of, new_id, now_ms, opened
from node.telemetry import Metrics
from node.tls import calling, renew
from node.weather import Weather
from node.wire.feed_channel import credentials
from replicator.apply import Apply
from replicator.bandwidth import Throttle
from replicator.beside import AtWork, Beside
from replicator.bodies import Bodies
from replicator.census import Census
from replicator.duties import Duties, Duty
from replicator.duties import following as follow_duty
from replicator.feed_client import FeedClient
from replicator.follow import Follow
from replicator.former_peers import FormerPeers
from replicator.measures import Measures
from replicator.progress import ScanProgress
from replicator.reconcile import Numbers, Reconcile
from replicator.salvage import Salvage
from replicator.sources import Source, Sources
from replicator.sweep import Sweep
from replicator.transfer import Flights, Transfer
from replicator.turns import Turns


def main() -> int:
    """Be the process `python -m replicator`."""
    return run_main("replicator", serve)


async def serve(config: Config, lifecycle: Lifecycle) -> None:
    """Start everything; the drain undoes it in reverse: health, duties, connections, reads, KV."""
    stack = AsyncExitStack()
    lifecycle.on_stop("the site", stack.aclose)
    site = await stack.enter_async_context(opened(config))
    session = await stack.enter_async_context(new_session())
    lifecycle.spawn("reads", site.reads.run())
    life = life_of(config, site.kv)
    lifecycle.on_stop("the mark", partial(life.leave, site.record))
    lifecycle.spawn("life", life.watch(site.record))
    metrics = Metrics("replicator")
    followed = [(peer, calling(peer.ca, config.http.tls)) for peer in config.peers if peer.follow]
    taken = metrics.counter("salvaged_bytes", "Bytes of blobs that only files were left of.")
    following = Following(
        site,
        life,
        _sources(site, session, metrics, followed),
        Salvage(site.uploads, site.blobs, taken),
        numbers=Numbers(metrics),
        measures=Measures(metrics),
    )
    if config.http.tls.certificate is not None:
        lifecycle.spawn("certificate", renew(config.http.tls, [tls for _, tls in followed]))
    sweep = Sweep(
        site.kv,
        site.blobs,
        site.staging,
        FormerPeers(site.kv, [peer.site for peer in config.peers]),
        every_s=config.collect.interval,
        clock_ms=now_ms,
    )
    census = Census(site.kv, metrics)
    duties = Duties(
        Elections(site.kv, new_id()),
        [
            Duty("sweep", sweep.run),
            Duty("census", census.run),
            *(following.duty(peer) for peer, _ in followed),
        ],
        metrics,
    )
    weather = Weather(site.kv, metrics)
    health = HealthServer(
        config.replicator.listen,
        {"metadata": partial(_check_metadata, site), "blobs": site.blobs.check},
        lambda: {"site": site.record.name, "duties": duties.held, "store": weather.problems},
        metrics.registry,
        stopping=lifecycle.stopping,
        key="replicator.listen",
    )
    lifecycle.on_stop("health", health.stop)
    await health.start()
    lifecycle.spawn("weather", weather.run())
    lifecycle.spawn("duties", duties.run())


def _sources(
    site: Site,
    session: aiohttp.ClientSession,
    metrics: Metrics,
    followed: Sequence[tuple[Peer, ssl.SSLContext]],
) -> dict[str, Source]:
    """Every followed peer as a source of bytes, by its site."""
    received = metrics.counter("received_bytes", "Bytes of blobs from a peer.", "peer")
    sources = {}
    for peer, tls in followed:
        secret = peer.secret.get_secret_value() if peer.secret else None
        headers = dict(credentials(site.record.name, secret))
        sources[peer.site] = Source(
            Remote(session, peer.site, peer.http, headers, tls),
            Filter(peer.repositories, peer.tags),
            Throttle(peer.bandwidth.bytes_per_s if peer.bandwidth else None),
            received.labels(peer.site),
        )
    return sources


class Following:
    """Makes the duties that follow peers; they share their sources and fetch no blob twice."""

    def __init__(
        self,
        site: Site,
        life: Life,
        sources: Mapping[str, Source],
        salvage: Salvage,
        *,
        numbers: Numbers,
        measures: Measures,
    ) -> None:
        self._site = site
        self._life = life
        self._sources = sources
        self._salvage = salvage
        self._measures = measures
        self._numbers = numbers
        self._scans = Scans(site.kv)
        self._losses = Losses(site.kv, site.blobs)
        self._flights = Flights()
        self._at_work = AtWork()

    def duty(self, peer: Peer) -> Duty:
        """The duty to follow a peer."""
        return Duty(follow_duty(peer.site), partial(self._follow, peer))

    async def _follow(self, peer: Peer, leadership: Leadership) -> None:
        site = self._site
        others = [source for name, source in self._sources.items() if name != peer.site]
        sources = Sources(self._sources[peer.site], others)
        progress = ScanProgress()
        transfer = Transfer(
            site.content,
            site.uploads,
            site.blobs,
            sources,
            self._flights,
            salvage=self._salvage,
            fetching=progress.fetching,
            turns=Turns(peer.blobs_in_flight),
        )
        client = FeedClient(peer, site.record, sources)
        replica = Replica(site.decider, site.staging, new_id=new_id)
        bodies = Bodies(site.content, site.uploads, self._salvage)
        apply = Apply(replica, client, transfer, bodies, deletes=peer.deletes)
        reconcile = Reconcile(
            site.kv, self._scans, self._losses, client, self._numbers, clock_ms=now_ms
        )
        follow = Follow(
            site.kv,
            client,
            Beside(apply, self._at_work),
            leadership,
            held=replica,
            reconcile=reconcile,
            heard=partial(self._life.heard, site.record),
            measures=self._measures.of(peer.site),
            progress=progress,
            clock_ms=now_ms,
        )
        try:
            await follow.run()
        finally:
            await client.close()


async def _check_metadata(site: Site) -> None:
    # Without quorum pulls go on, so it is not asked for (DESIGN 10).
    await site.kv.read([only(keys.SITE)], may_be_stale=True)
