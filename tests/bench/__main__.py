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

from tests.bench import replication
from tests.bench.compare import compare
from tests.bench.connection import UnexpectedAnswerError
from tests.bench.report import Report
from tests.bench.servers import PEER, docker_registry, entrepot
from tests.bench.workloads import WORKLOADS, Bed, Sources, Workload, sources

CLIENTS: Final = (1, 8, 32)
FREE_BYTES: Final = 20 << 30
REPLICATION: Final = "replication"
IMAGES: Final = 100
AT_A_TIME: Final = (1, 8)

_NAMES: Final = (*(workload.name for workload in WORKLOADS), REPLICATION)
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
                    self.contents,
                    clients=clients,
                    images=images,
                    advance=partial(self.progress.advance, task),
                )
                self.progress.remove_task(task)
                self.report.delays.append(delays)


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
    chosen = [workload for workload in WORKLOADS if only is None or workload.name in only]
    report = Report()
    with (
        sources() as contents,
        tempfile.TemporaryDirectory(prefix="entrepot-bench-", dir=data) as folder,
        Progress(console=console, transient=True) as progress,
    ):
        run = Run(contents, Path(folder), progress, report)
        try:
            if chosen:
                run.compare(chosen, seconds, rounds)
            if only is None or REPLICATION in only:
                run.replicate(IMAGES // 5 if quick else IMAGES)
        except (UnexpectedAnswerError, OSError) as err:
            console.print(f"{type(err).__name__}: {err}", style="red", markup=False)
            raise typer.Exit(1) from err
    if report.rows:
        console.print(report.comparison())
    if report.delays:
        console.print(report.replication())
    if json is not None:
        report.write(json)


def _refuse_unknown(only: list[str] | None) -> None:
    unknown = sorted(set(only or ()) - set(_NAMES))
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: not one of {', '.join(_NAMES)}")


def _refuse_unable(data: Path) -> None:
    for program in ("wrk", PEER, "setpriv"):
        if shutil.which(program) is None:
            raise typer.BadParameter(f"{program} is not installed: run `make programs`")
    free = shutil.disk_usage(data).free
    if free < FREE_BYTES:
        raise typer.BadParameter(f"{data} has {free >> 30} GiB free and {FREE_BYTES >> 30} needed")


if __name__ == "__main__":
    typer.run(main)
