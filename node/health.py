"""What a process tells its keeper, over plain HTTP: /livez, /readyz and /metrics.

`/livez` says that the loop turns, and nothing else: restarting a process mends no disk and no
network.  `/readyz` says whether requests should come here; its checks are few and local, because
one slow peer must not take every gateway out of its load balancer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from node.config import SUPERVISOR, Address
from node.lifecycle import binding

# A store that does not answer in 2 s is asked once more for something stale, for as long.
CHECK_LIMIT_S: Final = 4.5
OK: Final = "ok"

Check = Callable[[], Awaitable[None]]


class HealthServer:
    """Answers the three on an address of its own, so that they stay out of the clients' way.

    A check passes by returning, and fails by raising or by taking longer than 4.5 seconds.
    `status` is shown in /readyz's body and decides nothing; so is the supervisor's nonce, by which
    it tells its own children from a stranger on the same address.  While `stopping` is set, /readyz
    answers 503.
    """

    def __init__(
        self,
        listen: Address,
        checks: Mapping[str, Check],
        status: Callable[[], Mapping[str, object]],
        registry: CollectorRegistry,
        *,
        stopping: asyncio.Event,
        key: str = "metrics.listen",
        supervisor: str | None = os.environ.get(SUPERVISOR),
    ) -> None:
        self._listen = listen
        self._checks = checks
        self._status = status
        self._registry = registry
        self._stopping = stopping
        self._key = key
        self._supervisor = supervisor
        self._runner = web.ServerRunner(
            web.Server(self._answer, access_log=None), shutdown_timeout=1
        )

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: The address is in use, or this machine does not have it.
        """
        await self._runner.setup()
        with binding(self._key, self._listen):
            await web.TCPSite(self._runner, self._listen.host, self._listen.port).start()

    async def stop(self) -> None:
        """Stop listening; answers under way get a second to end."""
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        if request.method not in {"GET", "HEAD"}:
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        match request.path:
            case "/livez":
                return web.Response(text="ok\n")
            case "/readyz":
                return await self._ready()
            case "/metrics":
                return self._metrics(request.headers.get("Accept", ""))
            case _:
                return web.Response(status=404, text="there is /livez, /readyz and /metrics\n")

    async def _ready(self) -> web.Response:
        outcomes = dict(
            zip(
                self._checks,
                await asyncio.gather(
                    *(outcome(check, CHECK_LIMIT_S) for check in self._checks.values())
                ),
                strict=True,
            )
        )
        draining = self._stopping.is_set()
        ready = not draining and all(said == OK for said in outcomes.values())
        return web.json_response(
            {
                "ready": ready,
                "draining": draining,
                "checks": outcomes,
                "status": dict(self._status()),
                "supervisor": self._supervisor,
            },
            status=200 if ready else 503,
        )

    def _metrics(self, accept: str) -> web.Response:
        encode, content_type = choose_encoder(accept)
        return web.Response(body=encode(self._registry), headers={"Content-Type": content_type})


async def outcome(check: Check, limit_s: float) -> str:
    """What a check says within so many seconds: `OK`, or in words why not."""
    try:
        async with asyncio.timeout(limit_s):
            await check()
    except TimeoutError:
        return f"no answer within {limit_s:g} s"
    except Exception as err:  # noqa: BLE001 - whatever a check raises is its answer: not ready
        return f"{type(err).__name__}: {err}"
    return OK
