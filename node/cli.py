"""The command `entrepot`: what a person types, and what a script reads.

Exit status: 0 done, 1 not so, 2 the command or the configuration is wrong (one line per problem on
stderr).  What is meant for people goes to stdout, logs go to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn, TypeVar

import typer
from rich.console import Console

from node import demo as two_sites
from node import image_client
from node.admin_client import NotDone, NotReachable, SiteUnknown
from node.config import Config, ConfigError, load, warnings
from node.config_models import Tls
from node.conflict_client import fetch_conflicts, render_conflicts, resolve
from node.digest import Digest
from node.errors import InvalidRequest
from node.lifecycle import refuse
from node.reconcile_client import holds_all, render_compared
from node.reconcile_client import reconcile as compare
from node.reference import parse_repository, parse_tag
from node.serve import Site, serve_gateways
from node.serve import serve as serve_sites
from node.status import fetch, render
from node.telemetry import VERSION, configure_logs
from node.tls import FileUnusable, calling
from node.workers import MOST, health_addresses

_app = typer.Typer(
    name="entrepot",
    help="A container registry for several sites: push at one, pull from all.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_config = typer.Typer(help="Look at a configuration.", no_args_is_help=True)
_app.add_typer(_config, name="config")
_conflicts = typer.Typer(invoke_without_command=True)
_app.add_typer(_conflicts, name="conflicts")

_URL: Final = "http://127.0.0.1:5000"
R = TypeVar("R")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", envvar="ENTREPOT_CONFIG", help="The configuration, a YAML file."),
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data",
        envvar="ENTREPOT_DATA",
        help="Where relative paths begin if there is no configuration file; with an etcd, also the"
        " node's own folder.",
    ),
]
UrlOption = Annotated[str, typer.Option("--url", help="Where the site answers.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For a script to read.")]
CaOption = Annotated[Path | None, typer.Option("--ca", help="The authority to trust, a PEM file.")]
CertificateOption = Annotated[
    Path | None,
    typer.Option("--certificate", help="The certificate to show, where one is asked for."),
]
KeyOption = Annotated[
    Path | None, typer.Option("--key", help="Its key, if that is in another file.")
]
ImageArgument = Annotated[str, typer.Argument(help="REPOSITORY:TAG or REPOSITORY@DIGEST.")]
SiteOption = Annotated[str, typer.Option("--site", help="The site that is to have it.")]
WorkersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        help="How many gateway processes share its ports, each on a core of its own.",
        min=1,
        max=MOST,
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
def serve(
    config: ConfigOption = None, data: DataOption = Path("data"), workers: WorkersOption = 1
) -> None:
    """Run a whole site on this machine: gateways and a replicator, over SQLite and a folder."""
    configure_logs("serve")
    site = Site(config, data, workers=workers)
    console = _console()

    def ready(_: Site, loaded: Config) -> None:
        registry = loaded.http.listen[0]
        console.print(
            f"[bold]Site {loaded.site} is ready at {loaded.http.scheme}://{registry}[/bold]\n"
            f"  try     docker tag IMAGE {registry}/hello && docker push {registry}/hello\n"
            f"  data    {loaded.folder}\n"
            f"  health  {', '.join(map(str, health_addresses(loaded, workers)))}"
        )
        for warning in warnings(loaded):
            console.print(f"  [yellow]note[/yellow]    {warning}")

    raise typer.Exit(asyncio.run(serve_sites([site], ready)))


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
def gateway(
    config: ConfigOption = None, data: DataOption = Path("data"), workers: WorkersOption = 1
) -> None:
    """Run a gateway: it answers clients and publishes the site's changes."""
    if workers == 1:
        _become("gateway", config, data)
    configure_logs("gateways")
    raise typer.Exit(asyncio.run(serve_gateways(Site(config, data, workers=workers))))


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
    url: UrlOption = _URL,
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Show a site and how it follows its peers; status 1 if one is not being followed."""
    found = _asked(fetch(url, _tls(ca, certificate, key)))
    if as_json:
        sys.stdout.write(json.dumps(found.raw, indent=2) + "\n")
    else:
        _console().print(render(found, time.time_ns() // 1_000_000))
    raise typer.Exit(0 if found.is_well else 1)


@_app.command()
def reconcile(
    peers: Annotated[list[str] | None, typer.Argument(help="Peers; all if none is named.")] = None,
    *,
    full: Annotated[
        bool, typer.Option("--full", help="Apply all anew that the peers have.")
    ] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds to wait.", min=0)] = 60.0,
    url: UrlOption = _URL,
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Compare a site with its peers and fetch what it lacks; status 1 if it still lacks some."""
    asked = compare(url, _tls(ca, certificate, key), peers or [], full=full, within_s=timeout)
    found = _asked(asked)
    if as_json:
        content = {"peers": [peer.model_dump() for peer in found]}
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
    else:
        _console().print(render_compared(found))
    raise typer.Exit(0 if holds_all(found) else 1)


@_app.command()
def wait(
    image: ImageArgument,
    site: SiteOption,
    *,
    timeout: Annotated[
        float, typer.Option("--timeout", help="Seconds; 0 looks once.", min=0)
    ] = 300.0,
    url: UrlOption = _URL,
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Wait until a site has an image; status 1 with the reason if it has not in time."""
    name = _image(image, url)
    found = _asked(image_client.wait(url, _tls(ca, certificate, key), name, site, timeout))
    if not found.there:
        lines = [f"{site} does not have {name} after {timeout:g} s", *image_client.render(found)]
        sys.stderr.writelines(f"{line}\n" for line in lines)
    if as_json:
        sys.stdout.write(json.dumps(found.raw, indent=2) + "\n")
    elif found.there:
        sys.stdout.write(f"{site} has {name}\n")
    raise typer.Exit(0 if found.there else 1)


@_app.command()
def why(
    image: ImageArgument,
    site: SiteOption,
    *,
    url: UrlOption = _URL,
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Say whether a site has an image, and if not, why; status 1 if not."""
    name = _image(image, url)
    found = _asked(image_client.why(url, _tls(ca, certificate, key), name, site))
    if as_json:
        sys.stdout.write(json.dumps(found.raw, indent=2) + "\n")
    else:
        sys.stdout.writelines(f"{line}\n" for line in image_client.render(found))
    raise typer.Exit(0 if found.there else 1)


def _image(text: str, url: str) -> image_client.ImageName:
    try:
        return image_client.parse_image(text, url)
    except InvalidRequest as err:
        raise typer.BadParameter(f"{err}: IMAGE is REPOSITORY:TAG or REPOSITORY@DIGEST") from err


@_conflicts.callback()
def conflicts(
    context: typer.Context,
    *,
    repository: Annotated[
        str | None, typer.Option("--repository", help="Those of one repository only.")
    ] = None,
    url: UrlOption = _URL,
    as_json: JsonOption = False,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """List tags that were pushed at several sites at once; status 1 if there are any."""
    if context.invoked_subcommand is not None:
        _refuse_options(context, context.invoked_subcommand)
        return
    found = _asked(fetch_conflicts(url, _tls(ca, certificate, key), repository))
    if as_json:
        content = [conflict.model_dump() for conflict in found]
        sys.stdout.write(json.dumps({"conflicts": content}, indent=2) + "\n")
    else:
        _console().print(render_conflicts(found))
    raise typer.Exit(1 if found else 0)


def _refuse_options(context: typer.Context, command: str) -> None:
    """What stands before a command is not that command's, and must not be passed over."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(f"options of {command} are written after it")


@_conflicts.command("resolve")
def resolve_conflict(
    image: Annotated[str, typer.Argument(help="The tag in conflict, REPOSITORY:TAG.")],
    digest: Annotated[str, typer.Argument(help="What it is to show: a manifest's digest.")],
    *,
    url: UrlOption = _URL,
    ca: CaOption = None,
    certificate: CertificateOption = None,
    key: KeyOption = None,
) -> None:
    """Let a tag show one of the images, at every site; status 1 if it was pushed meanwhile."""
    repository, _, tag = image.rpartition(":")
    try:
        parse_repository(repository), parse_tag(tag), Digest.parse(digest)
    except InvalidRequest as err:
        raise typer.BadParameter(f"{err}: REPOSITORY:TAG and a digest are asked for") from err
    _asked(resolve(url, _tls(ca, certificate, key), repository, tag, digest))
    _console().print(f"{image} shows {digest}")


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    try:
        return calling(ca, Tls(certificate=certificate, key=key or certificate))
    except FileUnusable as err:
        raise ConfigError(f"--{err}") from err


def _asked(work: Coroutine[Any, Any, R]) -> R:
    """What a site answered; if it did not, that is said, and the status is 1."""
    try:
        return asyncio.run(work)
    except SiteUnknown as err:
        raise typer.BadParameter(str(err)) from err
    except (NotReachable, NotDone) as err:
        sys.stderr.write(f"{err}\n")
        raise typer.Exit(1) from err


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
