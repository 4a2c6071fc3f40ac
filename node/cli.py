"""The command `entrepot`: what a person types, and what a script reads.

Exit status: 0 done, 1 not so, 2 the command or the configuration is wrong (one line per problem on
stderr).  What is meant for people goes to stdout, logs go to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from node import demo as two_sites
from node.config import Config, ConfigError, load, warnings
from node.lifecycle import refuse
from node.serve import Site
from node.serve import serve as serve_sites
from node.status import NotReachable, fetch, render
from node.telemetry import VERSION, configure_logs

_app = typer.Typer(
    name="entrepot",
    help="A container registry for several sites: push at one, pull from all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_config = typer.Typer(help="Look at a configuration.", no_args_is_help=True)
_app.add_typer(_config, name="config")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="ENTREPOT_CONFIG", help="The configuration, a YAML file."),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="ENTREPOT_DATA",
        help="Where relative paths begin if there is no configuration file.",
    ),
]


def main() -> NoReturn:
    """Do what the command line asks for, and leave with its status."""
    try:
        _app()
    except ConfigError as err:
        sys.exit(refuse(err))
    sys.exit(0)


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


@_app.command()
def serve(config: ConfigOption = None, data: DataOption = Path("data")) -> None:
    """Run a whole site on this machine: a gateway and a replicator, over SQLite and a folder."""
    configure_logs("serve")
    console = _console()

    def ready(_: Site, loaded: Config) -> None:
        registry = loaded.http.listen[0]
        console.print(
            f"[bold]Site {loaded.site} is ready at http://{registry}[/bold]\n"
            f"  try     docker tag IMAGE {registry}/hello && docker push {registry}/hello\n"
            f"  data    {loaded.metadata.sqlite.path.parent}"
        )
        for warning in warnings(loaded):
            console.print(f"  [yellow]note[/yellow]    {warning}")

    raise typer.Exit(asyncio.run(serve_sites([Site(config, data)], ready)))


@_app.command()
def demo(
    data: Annotated[Path, typer.Option("--data", help="The folder of both sites.")] = Path("demo"),
    base_port: Annotated[
        int,
        typer.Option(
            "--base-port",
            help="The first port: fra has 4 from here on, nyc 4 from 100 further.",
            min=1,
            max=65432,
        ),
    ] = two_sites.BASE_PORT,
) -> None:
    """Run two sites, fra and nyc, on this machine: push at one, pull from the other."""
    configure_logs("demo")
    console = _console()
    waiting = {"fra", "nyc"}

    def ready(_: Site, loaded: Config) -> None:
        waiting.discard(loaded.site)
        console.print(f"[bold]Site {loaded.site} is ready at http://{loaded.http.listen[0]}[/bold]")
        if not waiting:
            console.print(two_sites.hints(base_port))

    raise typer.Exit(asyncio.run(serve_sites(two_sites.sites(data, base_port), ready)))


@_app.command()
def gateway(config: ConfigOption = None, data: DataOption = Path("data")) -> None:
    """Run a gateway: it answers clients and publishes the site's changes."""
    _become("gateway", config, data)


@_app.command()
def replicator(config: ConfigOption = None, data: DataOption = Path("data")) -> None:
    """Run a replicator: it fetches what the peers have."""
    _become("replicator", config, data)


def _become(module: str, config: Path | None, data: Path) -> NoReturn:
    """Be that process from now on: the same id, so signals and keepers find it."""
    argv = [sys.executable, "-P", "-m", module, "--data", str(data)]
    argv += ["--config", str(config)] if config else []
    os.execv(sys.executable, argv)  # noqa: S606 - a list of arguments, no shell


@_app.command()
def status(
    url: Annotated[str, typer.Option("--url", help="Where the site answers.")] = (
        "http://127.0.0.1:5000"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="For a script to read.")] = False,
) -> None:
    """Show a site and how it follows its peers; status 1 if one is not being followed."""
    try:
        found = asyncio.run(fetch(url))
    except NotReachable as err:
        sys.stderr.write(f"{err}\n")
        raise typer.Exit(1) from err
    if as_json:
        sys.stdout.write(json.dumps(found.raw, indent=2) + "\n")
    else:
        _console().print(render(found))
    raise typer.Exit(0 if found.is_well else 1)


@_config.command()
def check(
    file: Annotated[Path, typer.Argument(help="The configuration, a YAML file.")],
) -> None:
    """Say all that is wrong with a configuration file, one line each, or that it is fine."""
    loaded = load(file, file.parent)
    console = _console()
    console.print(f"{file}: fine")
    for warning in warnings(loaded):
        console.print(f"  [yellow]note[/yellow]  {warning}")


@_app.command()
def version() -> None:
    """Say which version this is."""
    sys.stdout.write(f"{VERSION}\n")
