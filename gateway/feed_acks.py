"""What a peer says it has applied of this site, kept for status, `wait` and write concern.

    ack/<peer>    the peer's last report, what it had asked for, and the stream it was said on

It is written at most each second while what is said on a stream changes, and when that is over: two
sites that have nothing to tell each other write nothing.  Of several streams the one on which the
peer began to speak last speaks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from node import keys
from node.acked import read_ack
from node.errors import MetadataUnavailable
from node.globs import Filter
from node.kv import Ok, Put, only, unchanged
from node.records import Ack, Report
from node.site import Site, new_id, now_ms
from node.wire import codec

_INTERVAL_S: Final = 1.0
_END_S: Final = 3.0
_ATTEMPTS: Final = 3


class Acks:
    """Records what one peer says on one stream, the latest at most once a second.

    `ours` and `theirs` are the filters that its changes pass.  What it has applied never goes back
    while both sites live the same lives and the filters stay.
    """

    def __init__(self, site: Site, peer: str, ours: Filter, theirs: Filter) -> None:
        self._site = site
        self._key = keys.ack(peer)
        self._stream = new_id()
        self._theirs = theirs
        self._ours = ours.fingerprint
        self._begun = False
        self._said: Report | None = None
        self._news = asyncio.Event()

    def take(self, report: Report, head: int) -> None:
        """Note an ack; one of another life of this site, or of what it never said, is void."""
        if report.incarnation == self._site.record.incarnation and report.revision <= head:
            self._said = report
            self._news.set()

    async def run(self) -> None:
        """Write down what comes until cancelled, and then that the stream is over."""
        try:
            await self._run()
        finally:
            with suppress(MetadataUnavailable, TimeoutError):
                async with asyncio.timeout(_END_S):
                    await self._end()

    async def _run(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                if await self._change(self._with_what_is_said):
                    self._begun = True
                else:
                    self._news.set()
            except MetadataUnavailable:
                self._news.set()  # it is no use without the KV, and later ones bring it along
            await asyncio.sleep(_INTERVAL_S)

    async def _end(self) -> None:
        for _ in range(_ATTEMPTS):
            if await self._change(self._without_stream):
                return

    async def _change(self, change: Callable[[Ack | None], Ack | None]) -> bool:
        """Try to make the record what it should be; None leaves it. False: look again."""
        entry = (await self._site.decider.look([only(self._key)])).entry(self._key)
        known = read_ack(entry)
        ack = change(known)
        if ack is None or (known is not None and replace(ack, ms=known.ms) == known):
            return True
        value = codec.encode_ack(replace(ack, ms=now_ms()))
        # Refused: another gateway wrote; unknown: perhaps applied. The next look shows.
        outcome = await self._site.kv.txn([unchanged(self._key, entry)], [Put(self._key, value)])
        return isinstance(outcome, Ok)

    def _with_what_is_said(self, known: Ack | None) -> Ack | None:
        said = self._said
        if said is None:
            return None
        if self._begun and known is not None and known.stream not in {self._stream, ""}:
            return None  # a later stream speaks for the peer
        before = known.report if known is not None and self._continues(known, said) else None
        return Ack(_later(before, said), 0, self._theirs, self._ours, self._stream)

    def _without_stream(self, known: Ack | None) -> Ack | None:
        if known is None or known.stream != self._stream:
            return None
        return replace(known, stream="")

    def _continues(self, known: Ack, said: Report) -> bool:
        """Whether it was said in the same lives, and about what is told now."""
        before = known.report
        return (before.incarnation, before.life, known.theirs, known.ours) == (
            said.incarnation,
            said.life,
            self._theirs,
            self._ours,
        )


def _later(before: Report | None, said: Report) -> Report:
    """What is known once it is said: what was applied once stays so."""
    revision = 0 if before is None else before.revision
    return replace(said, revision=max(revision, said.revision))
