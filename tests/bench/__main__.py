"""Measure Entrepot side by side with docker-registry: `python -m tests.bench --help`."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import Progress

from tests.bench import lists, replication, sizes, wan
from tests.bench.compare import compare
from tests.bench.connection import UnexpectedAnswerError
from tests.bench.report import Report
from tests.bench.servers import PEER, docker_registry, entrepot
from tests.bench.workloads import WORKLOADS, Bed, Sources, Workload, sources

CLIENTS: Final = (1, 8, 32)
FREE_BYTES: Final = 20 << 30
REPLICATION: Final = "replication"
LISTS: Final = "lists"
SIZES: Final = "sizes"
WAN: Final = "wan"
IMAGES: Final = 100
AT_A_TIME: Final = (1, 8)

_USUAL: Final = (*(workload.name for workload in WORKLOADS), REPLICATION, LISTS)
# Bytes are the same in every run, and no matter of speed; a line of 100 Mbit/s takes its time.
_NAMES: Final = (*_USUAL, SIZES, WAN)
_ONLY_HELP: Final = f"Measure this alone; can be given several times: {', '.join(_NAMES)}."


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the program, with its data in a folder."""

    contents: Sources
    folder: Path
    progress: Progress
    report: Report

    def compare(self, workloads: Sequence[Workload], seconds: int, rounds: int) -> None:
        """Measure workloads at both registries."""
        with ExitStack() as stack:
            ours = stack.enter_context(entrepot(self.folder / "entrepot"))
            theirs = stack.enter_context(docker_registry(self.folder / PEER))
            beds = Bed(ours, self.contents), Bed(theirs, self.contents)
            task = self.progress.add_task("", total=len(workloads) * len(CLIENTS) * rounds * 2)
            for workload, clients in product(workloads, CLIENTS):
                self.progress.update(task, description=f"{workload.title}, {clients} clients")
                row = compare(
                    workload,
                    *beds,
                    clients=clients,
                    seconds=seconds,
                    rounds=rounds,
                    advance=partial(self.progress.advance, task),
                )
                self.report.rows.append(row)
            self.progress.remove_task(task)
            self.report.add_peaks((ours, theirs))

    def replicate(self, images: int) -> None:
        """Measure how long pushes take to reach another site, one and several at a time."""
        with replication.pair(self.folder) as sites:
            for clients in AT_A_TIME:
                task = self.progress.add_task(f"replication, {clients} at a time", total=images)
                delays = replication.measure(
                    sites,
                    self.contents.image_of_one,
                    clients=clients,
                    images=images,
                    advance=partial(self.progress.advance, task),
                )
                self.progress.remove_task(task)
                self.report.delays.append(delays)

    def list_pages(self, sizes: Sequence[int], seconds: int) -> None:
        """Measure pages and searches at sites that hold more and more, over both stores."""
        for size in sizes:
            task = self.progress.add_task(f"lists of {size:,}", total=None)
            with lists.filled(self.folder / f"lists-{size}", size) as stores:
                advance = partial(self.progress.advance, task)
                self.report.lists += lists.measure(stores, size, seconds, advance)
                self.report.list_peaks[size] = stores.peaks
            self.progress.remove_task(task)

    def weigh(self, count: int) -> None:
        """Measure how many bytes of metadata one of each thing takes."""
        task = self.progress.add_task("bytes of metadata", total=len(sizes.THINGS))
        advance = partial(self.progress.advance, task)
        self.report.sizes += sizes.measure(self.folder, count, advance)
        self.progress.remove_task(task)

    def go_far(self, *, quick: bool) -> None:
        """Measure what a distance between two sites costs."""
        task = self.progress.add_task("", total=None)

        def advance(what: str) -> None:
            self.progress.update(task, description=f"wan: {what}")

        self.report.wan = wan.measure(self.folder, self.contents, quick=quick, advance=advance)
        self.progress.remove_task(task)


def main(
    *,
    quick: Annotated[bool, typer.Option(help="Two rounds of 1 s: a look, no figures.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=_ONLY_HELP)] = None,
    seconds: Annotated[int, typer.Option(min=1, help="Of each measurement.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each server.")] = 5,
    json: Annotated[Path | None, typer.Option(help="Write every figure there.")] = None,
    data: Annotated[Path, typer.Option(help="Where both keep their data.")] = Path("/var/tmp"),
) -> None:
    """Measure Entrepot side by side with docker-registry, by turns, on this machine."""
    console = Console()
    _refuse_unknown(only)
    _refuse_unable(data)
    if quick:
        seconds, rounds = 1, 2
    chosen = set(only or _USUAL)
    workloads = [workload for workload in WORKLOADS if workload.name in chosen]
    report = Report()
    with (
        sources() as contents,
        tempfile.TemporaryDirectory(prefix="entrepot-bench-", dir=data) as folder,
        Progress(console=console, transient=True) as progress,
    ):
        run = Run(contents, Path(folder), progress, report)
        try:
            if workloads:
                run.compare(workloads, seconds, rounds)
            if REPLICATION in chosen:
                run.replicate(IMAGES // 5 if quick else IMAGES)
            if LISTS in chosen:
                run.list_pages(lists.SIZES[:2] if quick else lists.SIZES, seconds)
            if SIZES in chosen:
                run.weigh(sizes.COUNT // 10 if quick else sizes.COUNT)
            if WAN in chosen:
                run.go_far(quick=quick)
        except (UnexpectedAnswerError, OSError) as err:
            console.print(f"{type(err).__name__}: {err}", style="red", markup=False)
            raise typer.Exit(1) from err
    for table in report.tables():
        console.print(table)
    if json is not None:
        report.write(json)


def _refuse_unknown(only: list[str] | None) -> None:
    unknown = sorted(set(only or ()) - set(_NAMES))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(_NAMES)}")


def _refuse_unable(data: Path) -> None:
    for program in ("wrk", PEER, "setpriv", "etcd"):
        if shutil.which(program) is None:
            raise typer.BadParameter(f"{program} is not installed: run `make programs`")
    free = shutil.disk_usage(data).free
    if free < FREE_BYTES:
        raise typer.BadParameter(f"{data} has {free >> 30} GiB free and {FREE_BYTES >> 30} needed")


if __name__ == "__main__":
    typer.run(main)
