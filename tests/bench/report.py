"""The figures as a table for people, and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Final

from rich.box import SIMPLE
from rich.table import Table

from tests.bench.compare import Row
from tests.bench.lists import ETCD, SQLITE, Times
from tests.bench.replication import Delays
from tests.bench.servers import PEER, Server
from tests.bench.sizes import Sizes
from tests.bench.wan import Distance

_MIB: Final = 1 << 20


@dataclass(slots=True)
class Report:
    """What was measured in one run."""

    rows: list[Row] = field(default_factory=list)
    delays: list[Delays] = field(default_factory=list)
    lists: list[Times] = field(default_factory=list)
    list_peaks: dict[int, dict[str, int]] = field(default_factory=dict)
    sizes: list[Sizes] = field(default_factory=list)
    wan: Distance | None = None
    peaks: dict[str, int] = field(default_factory=dict)

    def add_peaks(self, servers: Sequence[Server]) -> None:
        """Note how much memory the servers have taken at most."""
        self.peaks = {server.name: server.peak_bytes for server in servers}

    def tables(self) -> list[Table]:
        """Those that have figures."""
        made = (
            (self.rows, self.comparison),
            (self.delays, self.replication),
            (self.lists, self.pages),
            (self.sizes, self.bytes_each),
        )
        tables = [make() for figures, make in made if figures]
        return tables if self.wan is None else [*tables, _distance(self.wan)]

    def comparison(self) -> Table:
        """Both registries, side by side."""
        rounds = len(self.rows[0].ours)
        table = Table(
            title=f"entrepot and {PEER}, medians of {rounds} rounds",
            box=SIMPLE,
            pad_edge=False,
            show_edge=False,
        )
        table.add_column("workload", no_wrap=True)
        for name in ("clients", "entrepot", PEER.replace("-", "-\n"), "ratio", "spread"):
            table.add_column(name, justify="right")
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            first = before is None or before.workload is not row.workload
            table.add_row(
                f"{row.workload.title}, {row.workload.unit}" if first else "",
                str(row.clients),
                _figure(median(row.ours)),
                _figure(median(row.theirs)),
                f"{row.ratio:.2f}",
                f"{min(row.ratios):.2f}–{max(row.ratios):.2f}",
                end_section=row.clients == self.rows[-1].clients,
            )
        peaks = ", ".join(f"{name} {size // _MIB} MiB" for name, size in self.peaks.items())
        table.caption = (
            f"Clients and servers share {os.cpu_count()} cores; both registries fsync uploads. "
            f"Peak memory: {peaks}."
        )
        return table

    def replication(self) -> Table:
        """From a push's 201 to a pull's 200 at the other site."""
        table = Table(
            title="from a push's 201 to a whole pull at the other site",
            box=SIMPLE,
            pad_edge=False,
            show_edge=False,
        )
        for name in ("images of 1 MiB", "at a time", "p50", "p99", "longest"):
            table.add_column(name, justify="right")
        for delays in self.delays:
            times = (delays.percentile(50), delays.percentile(99), max(delays.seconds))
            table.add_row(
                str(len(delays.seconds)),
                str(delays.clients),
                *(f"{seconds * 1000:.0f} ms" for seconds in times),
            )
        return table

    def pages(self) -> Table:
        """How long pages and searches take over each store, by how much there is."""
        sizes = sorted({times.size for times in self.lists})
        table = Table(
            title="a page, or a search, of so many: p50 and p99, ms",
            box=SIMPLE,
            pad_edge=False,
            show_edge=False,
        )
        for name in ("workload", "store"):
            table.add_column(name, no_wrap=True)
        for size in sizes:
            table.add_column(f"{size:,}", justify="right", no_wrap=True)
        found = {(times.name, times.store, times.size): times for times in self.lists}
        for name in dict.fromkeys(times.name for times in self.lists):
            file = [found[name, SQLITE, size] for size in sizes]
            etcd = [found[name, ETCD, size] for size in sizes]
            ratios = [
                f"{theirs.percentile(50) / ours.percentile(50):.2f}"
                for ours, theirs in zip(file, etcd, strict=True)
            ]
            table.add_row(name, SQLITE, *map(_milliseconds, file))
            table.add_row("", ETCD, *map(_milliseconds, etcd))
            table.add_row("", "ratio", *ratios, end_section=True)
        for name in self.list_peaks[sizes[0]]:
            peaks = [f"{self.list_peaks[size][name] // _MIB} MiB" for size in sizes]
            table.add_row("peak memory", name, *peaks)
        return table

    def bytes_each(self) -> Table:
        """How many bytes one of each thing takes, in an etcd and in a file."""
        table = Table(
            title=f"bytes of metadata for each of {self.sizes[0].count:,}",
            caption="Raw: of keys and values. 2 h, 78 h and history: in etcd, beside what stays.",
            box=SIMPLE,
            pad_edge=False,
            show_edge=False,
        )
        table.add_column("what", no_wrap=True)
        for name in ("keys", "raw", "etcd", "sqlite", "2 h", "78 h", "history"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in self.sizes:
            figures = (one.etcd, one.sqlite, one.operations, one.events, one.history)
            table.add_row(one.name, f"{one.keys:.1f}", *(f"{x:,.0f}" for x in (one.raw, *figures)))
        return table

    def write(self, file: Path) -> None:
        """Write every single figure as JSON.

        Raises:
            OSError: The file cannot be written.
        """
        rows = [
            {
                "workload": row.workload.name,
                "clients": row.clients,
                "unit": row.workload.unit,
                "entrepot": row.ours,
                PEER: row.theirs,
                "ratio": row.ratio,
            }
            for row in self.rows
        ]
        delays = [{"clients": d.clients, "seconds": d.seconds} for d in self.delays]
        lists = [
            {"store": t.store, "name": t.name, "size": t.size, "seconds": t.seconds}
            for t in self.lists
        ]
        machine = {"cores": os.cpu_count(), "kernel": platform.release()}
        content = {
            "machine": machine,
            "comparison": rows,
            "replication": delays,
            "lists": lists,
            "list_peak_bytes": self.list_peaks,
            "sizes": [asdict(one) for one in self.sizes],
            "wan": None if self.wan is None else asdict(self.wan),
            "peak_bytes": self.peaks,
        }
        file.write_text(json.dumps(content, indent=2) + "\n")


def _distance(found: Distance) -> Table:
    """What came how soon over a long line."""
    peaks = ", ".join(f"{name} {size // _MIB} MiB" for name, size in found.peaks.items())
    table = Table(
        title="from a push to a whole pull 50 ms away, over 100 Mbit/s",
        caption=f"Peak memory: {peaks}.",
        box=SIMPLE,
        pad_edge=False,
        show_edge=False,
    )
    table.add_column("what", no_wrap=True)
    for name in ("number", "p50", "p99", "longest", "of the line"):
        table.add_column(name, justify="right", no_wrap=True)
    for delays in (*found.delays, found.small):
        what = "small" if delays is found.small else "1 MiB"
        table.add_row(f"{what}, {delays.clients} at a time", *_times(delays.seconds))
    for large in found.large:
        what = f"{large.layers} x {large.mib} MiB"
        table.add_row(what, "1", "", "", f"{large.seconds:.1f} s", f"{large.share:.0%}")
    table.add_row("1 MiB, after a cut of 10 s", *_times(found.returns_s))
    return table


def _times(seconds: Sequence[float]) -> tuple[str, ...]:
    number = str(len(seconds))
    if len(seconds) == 1:
        return number, "", "", f"{seconds[0]:.2f} s"
    steps = quantiles(seconds, n=100, method="inclusive")
    return number, *(f"{one:.2f} s" for one in (steps[49], steps[98], max(seconds)))


def _milliseconds(times: Times) -> str:
    if len(times.seconds) == 1:
        return f"{times.seconds[0] * 1000:.0f}"
    return f"{times.percentile(50) * 1000:.1f}, {times.percentile(99) * 1000:.1f}"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
