"""The figures as a table for people, and as JSON for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from rich.box import SIMPLE
from rich.table import Table

from tests.bench.compare import Row
from tests.bench.replication import Delays
from tests.bench.servers import PEER, Server

_MIB: Final = 1 << 20


@dataclass(slots=True)
class Report:
    """What was measured in one run."""

    rows: list[Row] = field(default_factory=list)
    delays: list[Delays] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)

    def add_peaks(self, servers: Sequence[Server]) -> None:
        """Note how much memory the servers have taken at most."""
        self.peaks = {server.name: server.peak_bytes for server in servers}

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
        machine = {"cores": os.cpu_count(), "kernel": platform.release()}
        content = {
            "machine": machine,
            "comparison": rows,
            "replication": delays,
            "peak_bytes": self.peaks,
        }
        file.write_text(json.dumps(content, indent=2) + "\n")


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
