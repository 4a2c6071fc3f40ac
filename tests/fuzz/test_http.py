"""Thousands of requests by chance to a real gateway: nothing breaks it, and nothing stays behind.

A failure names the seed: with ENTREPOT_FUZZ_SEED set to it the same requests are made again, though
not at the same moments.  The request that failed is shown in full, as Python writes bytes.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
from asyncio import IncompleteReadError, to_thread
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.faults.stopped import check, entries, open_uploads, sessions
from tests.fuzz.grammar import Grammar, Known, Request
from tests.fuzz.wire import Answer, Wire, Wrong, connected
from tests.registry import digest_of
from tests.sites import Site, ended
from tests.waiting import eventually

CONNECTIONS: Final = 8
# Of the requests that go over one connection before it is given up.
PER_CONNECTION: Final = 200
# So many requests have every answer among them.
RARE: Final = 100_000
MEMORY_KIB: Final = 400 << 10
SEED: Final = int(os.environ.get("ENTREPOT_FUZZ_SEED", "0")) or random.SystemRandom().getrandbits(
    32
)

_DIGEST: Final = re.compile(r"/v2/.+/(?:blobs|manifests)/(sha256:[0-9a-f]{64})")


@dataclass(slots=True)
class Run:
    """Some connections' requests, and what came of them."""

    port: int
    left: int
    known: Known = field(default_factory=Known)
    statuses: Counter[int] = field(default_factory=Counter)

    async def go(self, number: int) -> None:
        """Send requests over one connection after the other until none is left.

        Raises:
            Wrong: An answer was, with the request that got it.
        """
        chance = random.Random(f"{SEED} {number}")
        grammar = Grammar(chance, self.known)
        while self.left > 0:
            if chance.random() < 0.3:
                await self._broken(grammar, chance)
            else:
                await self._well_framed(grammar, chance)

    async def _broken(self, grammar: Grammar, chance: random.Random) -> None:
        """Mutated requests, and the client's end: whatever they are, the connection ends."""
        count = chance.choice((1, 1, 2, 5))
        content = grammar.mutated(b"".join(grammar.request().render() for _ in range(count)))
        cut = chance.choice((len(content), chance.randint(0, len(content))))
        self.left -= count
        async with connected(self.port) as wire:
            try:
                await _send(wire, content[:cut], content[cut:])
                answers = await wire.rest()
            except Wrong as err:
                raise Wrong(f"{err}\nto {content!r}") from err
        self.statuses.update(answer.status for answer in answers)

    async def _well_framed(self, grammar: Grammar, chance: random.Random) -> None:
        """Requests in a row over one connection, each answered, until one is the last."""
        async with connected(self.port) as wire:
            for _ in range(chance.randint(1, PER_CONNECTION)):
                requests = [grammar.request() for _ in range(chance.choice((1, 1, 1, 2, 8)))]
                self.left -= len(requests)
                if not await self._exchange(wire, requests) or self.left <= 0:
                    return

    async def _exchange(self, wire: Wire, requests: list[Request]) -> bool:
        """Whether the connection goes on."""
        sending = asyncio.ensure_future(_send(wire, b"".join(r.render() for r in requests)))
        try:
            for request in requests:
                answer = await self._answer(wire, request)
                if answer is None or answer.is_last:
                    return False
            await sending
        finally:
            sending.cancel()
        return True

    async def _answer(self, wire: Wire, request: Request) -> Answer | None:
        try:
            answer = await wire.answer(request.method)
            self._judge(request, answer)
        except (IncompleteReadError, ConnectionError, Wrong) as err:
            if request.is_refused_unread and not isinstance(err, Wrong):
                return None  # cut with more to come: the answer may be lost
            raise Wrong(f"{err}\nto {request.render()!r}") from err
        self.statuses[answer.status] += 1
        return answer

    def _judge(self, request: Request, answer: Answer) -> None:
        self.known.learn(request, answer.status, answer.headers.get("location", ""))
        asked = _DIGEST.fullmatch(request.target)
        got = answer.body if request.method == "GET" and answer.status == 200 else None
        if asked and got is not None and digest_of(got) != asked[1]:
            raise Wrong("not what its digest says")


async def _send(wire: Wire, *parts: bytes) -> None:
    """Send parts; the last ones broken ones end the client's side."""
    try:
        for number, part in enumerate(parts):
            await wire.send(part, end=len(parts) > 1 and number == len(parts) - 1)
    except OSError:
        return  # what was said before can be read


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """A gateway; in the end it has to stop well, with sound metadata and blobs."""
    site = Site("fra", tmp_path / "fra", programs=("gateway",))
    with ended(site):
        await site.start()
        yield site
        site.show_logs()
        await site.stop_all()
        await to_thread(check, site)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(10_000, marks=pytest.mark.slow),
        pytest.param(500_000, marks=[pytest.mark.torture, pytest.mark.timeout(7200)]),
    ],
)
async def test_no_request_breaks_the_gateway(site: Site, requests: int) -> None:
    """Every answer has its form, none is 500, and files, sessions, sockets, memory don't leak."""
    descriptors = _descriptors(site)
    run = Run(site.port, requests)
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(run.go(number))
    except* Wrong as wrong:
        failures = "\n".join(str(err) for err in wrong.exceptions)
        pytest.fail(f"ENTREPOT_FUZZ_SEED={SEED}: {failures}", pytrace=False)
    assert {200, 201, 202, 204, 206, 304, 400, 404, 405, 412, 416} <= set(run.statuses)
    assert 413 in run.statuses or requests < RARE  # three of ten thousand: it may well be none
    await _cancel_all(site)
    assert not [path for path in site.blobs.glob("uploads/**/*") if path.is_file()], SEED
    await eventually(lambda: _descriptors(site) < descriptors + 20, 30, "descriptors are closed")
    assert _peak_kib(site) < MEMORY_KIB
    assert "Traceback" not in site.log("gateway").read_text(errors="replace"), SEED
    await site.ready("gateway")


async def _cancel_all(site: Site) -> None:
    """End what uploads are open, through the API."""
    for session_id, session in open_uploads(entries(site)).items():
        target = f"/v2/{session.repository}/blobs/uploads/{session_id}"
        async with connected(site.port) as wire:
            await wire.send(Request("DELETE", target).render())
            assert (await wire.answer("DELETE")).status == 204
    assert not sessions(entries(site))


def _descriptors(site: Site) -> int:
    return len(list(Path(f"/proc/{site.pid('gateway')}/fd").iterdir()))


def _peak_kib(site: Site) -> int:
    status = Path(f"/proc/{site.pid('gateway')}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1])
