"""Real sites: gateways and a replicator each, as processes of their own on free ports.

A process writes its log to its site's folder, and the kernel ends it when the test's process has
gone.  Nothing here waits but by `eventually`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from asyncio import to_thread
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.ports import free_ports
from tests.waiting import eventually

T = TypeVar("T")

PROGRAMS: Final = ("gateway", "replicator")
START_S: Final = 180.0
STOP_S: Final = 60.0

_ROOT: Final = Path(__file__).parents[1]
_TAIL: Final = 6000


def site_ports(count: int = 4) -> int:
    """The first of so many free ports in a row."""
    return free_ports(tuple(range(count)))


class Place:
    """Where processes run and are called: this machine, as it is."""

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command run there."""
        return ()

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that blocks, with its sockets there."""
        return await to_thread(function, *args)


@dataclass(slots=True)
class Site:
    """A site in a folder; `settings` are sections of its configuration beside those made here.

    `programs` says which processes it has, the gateway first; `tls` is the section `http.tls`.  Of
    several `gateways`, the others are `gateway-1` and so on, on ports of their own.  It listens at
    `host` of its `place`; `launcher` are the arguments that make Python run a module.
    """

    name: str
    folder: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    programs: tuple[str, ...] = PROGRAMS
    tls: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=site_ports)
    gateways: int = 1
    host: str = "127.0.0.1"
    place: Place = field(default_factory=Place)
    launcher: tuple[str, ...] = ("-m",)
    _peers: list[dict[str, object]] = field(default_factory=list)
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _shown: dict[str, int] = field(default_factory=dict)
    _ports: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        """Give each further gateway its ports."""
        others = [f"gateway-{number}" for number in range(1, self.gateways)]
        self.programs += tuple(others)
        self._ports = {"gateway": self.port} | {name: site_ports(3) for name in others}

    @property
    def http(self) -> str:
        """Where the registry answers, as clients write it in an image's name."""
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The registry's URL."""
        return f"{'https' if self.tls else 'http'}://{self.http}"

    @property
    def urls(self) -> list[str]:
        """The registry's URL at each gateway."""
        return [self.url.replace(self.http, f"{self.host}:{at}") for at in self._ports.values()]

    @property
    def grpc(self) -> str:
        """Where the feed is."""
        return f"{self.host}:{self.port + 1}"

    @property
    def metadata(self) -> Path:
        """The file of the KV; to be opened by sqlite3 only."""
        return self.folder / "metadata.db"

    @property
    def blobs(self) -> Path:
        """The folder of the blob store."""
        return self.folder / "blobs"

    @property
    def config(self) -> Path:
        """The configuration, written when a process starts."""
        return self.folder / "entrepot.yaml"

    def follow(
        self,
        peer: Site,
        *,
        http: str | None = None,
        grpc: str | None = None,
        **settings: object,
    ) -> None:
        """Make another site a peer, to be reached at other addresses than its own if given."""
        address = {
            "http": peer.url.replace(peer.http, http or peer.http),
            "grpc": grpc or peer.grpc,
        }
        self._peers.append({"site": peer.name, **address, **settings})

    def leave(self, peer: Site) -> None:
        """Take a peer out of the configuration."""
        self._peers = [settings for settings in self._peers if settings["site"] != peer.name]

    def pid(self, program: str) -> int:
        """The process that runs as this program."""
        return self._running[program].pid

    def running(self, program: str) -> bool:
        """Whether the program was started and has not ended."""
        process = self._running.get(program)
        return process is not None and process.poll() is None

    async def start(self) -> None:
        """Start what does not run, and wait until all is ready."""
        for program in self.programs:
            if not self.running(program):
                self.spawn(program)
        for program in self.programs:
            await self.ready(program)

    def spawn(self, program: str) -> None:
        """Start one of the programs, and don't wait."""
        self.write_config()
        module = program.partition("-")[0]
        command = (sys.executable, "-P", *self.launcher, module, "--config", str(self.config))
        with self.log(program).open("ab") as log:
            self._running[program] = subprocess.Popen(
                (*self.place.prefix, "setpriv", "--pdeathsig", "KILL", "--", *command),
                cwd=_ROOT,
                env=self._environ(program),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _environ(self, program: str) -> dict[str, str]:
        found = {k: v for k, v in os.environ.items() if not k.startswith("ENTREPOT_")}
        if program.startswith("gateway-"):
            port = self._ports[program]
            found["ENTREPOT_HTTP__LISTEN"] = f"['{self.host}:{port}']"
            found["ENTREPOT_GRPC__LISTEN"] = f"{self.host}:{port + 1}"
            found["ENTREPOT_METRICS__LISTEN"] = f"{self.host}:{port + 2}"
        return found

    async def ready(self, program: str) -> None:
        """Wait until a program says that it is ready.

        Raises:
            AssertionError: It is not in time, or has ended; the end of its log is in the message.
        """

        async def answers() -> bool:
            if not self.running(program):
                raise ChildProcessError(f"ended with {self._running[program].returncode}")
            return await self.place.call(_is_ready, f"{self._health(program)}/readyz")

        try:
            await eventually(answers, START_S, f"{program} of {self.name} is ready")
        except (AssertionError, ChildProcessError) as err:
            raise AssertionError(f"{err}\n{self._tail(program)}") from err

    def _health(self, program: str) -> str:
        port = self.port + 3 if program == "replicator" else self._ports[program] + 2
        return f"http://{self.host}:{port}"

    def kill(self, program: str) -> None:
        """End a program by SIGKILL; on return it has gone."""
        process = self._running[program]
        process.kill()
        process.wait(STOP_S)

    def signal(self, program: str, number: signal.Signals) -> None:
        """Send a program a signal."""
        self._running[program].send_signal(number)

    async def stop(self, program: str) -> int:
        """Ask a program to drain, wait until it has ended, and return its exit status."""
        process = self._running[program]
        process.terminate()
        try:
            return await to_thread(process.wait, STOP_S)
        except subprocess.TimeoutExpired as err:
            raise AssertionError(f"{program} does not end\n{self._tail(program)}") from err

    async def stop_all(self) -> None:
        """Ask every program to drain, and see that each ends well."""
        for program in reversed(self.programs):
            if self.running(program):
                status = await self.stop(program)
                assert status == 0, f"{program} ended with {status}\n{self._tail(program)}"

    def end(self) -> None:
        """End every process at once, whatever state it is in."""
        for process in self._running.values():
            process.kill()
            process.wait(STOP_S)

    def unfollow(self) -> None:
        """Have no peers any more; those that are told from now on count from the next start."""
        self._peers.clear()

    async def peers(self) -> list[dict[str, Any]]:
        """What the site says of its peers under /api/v1/peers."""
        answer = await self.place.call(_get_json, f"{self.url}/api/v1/peers")
        return list(answer["peers"])

    async def peer(self, name: str) -> dict[str, Any]:
        """What the site says of one peer."""
        return next(peer for peer in await self.peers() if peer["site"] == name)

    async def metric(self, program: str, sample: str, **labels: str) -> float:
        """The sum of a metric of a program over all its labels that are not given."""
        url = f"{self._health(program)}/metrics"
        families = text_string_to_metric_families(await self.place.call(_get_text, url))
        samples = [one for family in families for one in family.samples]
        wanted = [one for one in samples if one.name == sample]
        return sum(one.value for one in wanted if labels.items() <= one.labels.items())

    def log(self, program: str) -> Path:
        """The file of a program's log."""
        return self.folder / f"{program}.log"

    def show_logs(self) -> None:
        """Write to stderr what was logged since the last call; pytest shows it of failed tests."""
        for program in self.programs:
            log = self.log(program)
            content = log.read_bytes() if log.exists() else b""
            new = content[self._shown.get(program, 0) :][-_TAIL:].decode(errors="replace")
            self._shown[program] = len(content)
            if new:
                sys.stderr.write(f"--- {program} of {self.name}\n{new}\n")

    def _tail(self, program: str) -> str:
        return self.log(program).read_text(errors="replace")[-_TAIL:]

    def write_config(self) -> None:
        """Write the configuration as it stands."""
        self.folder.mkdir(parents=True, exist_ok=True)
        listen = {
            "http": {"listen": [self.http], "tls": dict(self.tls)},
            "grpc": {"listen": self.grpc},
            "metrics": {"listen": f"{self.host}:{self.port + 2}"},
            "replicator": {"listen": f"{self.host}:{self.port + 3}"},
        }
        content = {"site": self.name, **listen, "peers": self._peers, **self.settings}
        self.config.write_text(yaml.safe_dump(content, sort_keys=False))


@contextmanager
def ended(*sites: Site) -> Iterator[None]:
    """See that no process of the sites is left, however the body ends."""
    try:
        yield
    finally:
        for site in sites:
            site.end()


@contextmanager
def running(*sites: Site) -> Iterator[None]:
    """Run all processes of these while no loop does, for a fixture; each has to end well."""

    async def each(work: Iterable[Awaitable[None]]) -> None:
        await asyncio.gather(*work)

    with ended(*sites):
        asyncio.run(each(site.start() for site in sites))
        yield
        asyncio.run(each(site.stop_all() for site in sites))


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as err:
        raise AssertionError(err.read().decode(errors="replace")) from err
    except OSError as err:
        raise AssertionError(str(err)) from err


def _get_json(url: str) -> Any:
    return json.loads(_get_text(url))


def _get_text(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")
