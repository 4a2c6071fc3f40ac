"""The replicator's composition root: what stands on what, and in which order it starts and ends."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial

import aiohttp

from node import keys
from node.config import Config
from node.config_models import Peer
from node.election import Elections, Leadership
from node.health import HealthServer
from node.kv import only
from node.lifecycle import Lifecycle
from node.lifecycle import main as run_main
from node.remote import Remote, new_session
from node.replica import Replica
from node.site import Site, new_id, now_ms, opened
from node.telemetry import Metrics
from node.wire.feed_channel import credentials
from replicator.apply import Apply
from replicator.bodies import Bodies
from replicator.duties import Duties, Duty
from replicator.feed_client import FeedClient
from replicator.follow import Follow
from replicator.transfer import Flights, Transfer


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
    metrics = Metrics("replicator")
    following = Following(site, session, metrics)
    duties = Duties(
        Elections(site.kv, new_id()),
        [following.duty(peer) for peer in config.peers if peer.follow],
        metrics,
    )
    health = HealthServer(
        config.replicator.listen,
        {"metadata": partial(_check_metadata, site), "blobs": site.blobs.check},
        lambda: {"site": site.record.name, "duties": duties.held},
        metrics.registry,
        stopping=lifecycle.stopping,
        key="replicator.listen",
    )
    lifecycle.on_stop("health", health.stop)
    await health.start()
    lifecycle.spawn("duties", duties.run())


class Following:
    """Makes the duties that follow peers; they share connections and fetch no blob twice."""

    def __init__(self, site: Site, session: aiohttp.ClientSession, metrics: Metrics) -> None:
        self._site = site
        self._session = session
        self._received = metrics.counter("received_bytes", "Bytes of blobs from a peer.", "peer")
        self._flights = Flights()

    def duty(self, peer: Peer) -> Duty:
        """The duty to follow a peer."""
        return Duty(f"follow/{peer.site}", partial(self._follow, peer))

    async def _follow(self, peer: Peer, leadership: Leadership) -> None:
        site = self._site
        secret = peer.secret.get_secret_value() if peer.secret else None
        headers = dict(credentials(site.record.name, secret))
        remote = Remote(self._session, peer.site, peer.http, headers)
        transfer = Transfer(
            site.content,
            site.uploads,
            site.blobs,
            remote,
            self._flights,
            in_flight=peer.blobs_in_flight,
            received=self._received.labels(peer.site),
        )
        client = FeedClient(peer, site.record, remote)
        replica = Replica(site.decider, new_id=new_id)
        apply = Apply(replica, client, transfer, Bodies(site.content, site.uploads))
        try:
            await Follow(site.kv, client, apply, leadership, clock_ms=now_ms).run()
        finally:
            await client.close()


async def _check_metadata(site: Site) -> None:
    await site.kv.read([only(keys.SITE)])
