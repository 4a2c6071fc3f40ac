"""The command `entrepot`: its exit status, its lines, and the sites that it runs."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from node import cli, demo
from node.config import Config, load
from node.serve import Site, serve
from node.supervisor import Child
from tests.ports import free_port, free_ports
from tests.waiting import eventually

Outcome = tuple[int, str, str]
Entrepot = Callable[..., Outcome]

SITE: Final = {
    "site": "fra",
    "incarnation": "i",
    "version": "0.1.0",
    "revision": 123,
    "health": ["127.0.0.1:5002"],
}
PEER: Final = {
    "site": "nyc",
    "state": "following",
    **dict.fromkeys(("lag_keys", "parked", "behind", "bytes_to_go"), 0),
    "lag_s": 0.0,
    "last_error": None,
    "cursor": 12,
    "acked": 34,
    "in_sync": False,
    **dict.fromkeys(("compared", "progress", "seconds_left")),
}


@pytest.fixture
def entrepot(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Entrepot:
    """Run the command in this process: status, stdout and stderr."""
    for name in [name for name in os.environ if name.startswith("ENTREPOT_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["entrepot", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        output, errors = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return left.value.code, output, errors

    return run


@contextmanager
def site_that_says(answers: dict[str, object]) -> Iterator[str]:
    """A server that answers these paths with JSON, and 404 to all else; its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answers.get(self.path)
            body = json.dumps(found).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- config check


def test_a_configuration_that_is_fine(entrepot: Entrepot, tmp_path: Path) -> None:
    """Status 0, and what an operator should know anyway."""
    file = tmp_path / "entrepot.yaml"
    file.write_text("site: fra\n")
    status, output, errors = entrepot("config", "check", str(file))
    assert (status, errors) == (0, "")
    assert f"{file}: fine" in output


def test_a_configuration_that_is_wrong(entrepot: Entrepot, tmp_path: Path) -> None:
    """Status 2, and one line for each problem on stderr."""
    file = tmp_path / "entrepot.yaml"
    file.write_text("site: FRA\nwebhooks: []\n")
    status, output, errors = entrepot("config", "check", str(file))
    assert (status, output) == (2, "")
    assert len(errors.splitlines()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["serve", "--nonsense"],
        ["serve", "--workers", "0"],
        ["demo", "--base-port", "0"],
        ["config", "check"],
    ],
)
def test_what_is_no_command_is_a_usage_problem(entrepot: Entrepot, arguments: list[str]) -> None:
    """Status 2, for whatever the command line does not know."""
    assert entrepot(*arguments)[0] == 2


# --- status


def test_a_site_that_follows_its_peers(entrepot: Entrepot) -> None:
    """Status 0, and a line for each peer."""
    with site_that_says({"/api/v1/site": SITE, "/api/v1/peers": {"peers": [PEER]}}) as url:
        status, output, _ = entrepot("status", "--url", url)
    assert status == 0
    assert "Site fra" in output
    assert "nyc" in output


def test_a_store_that_is_not_well_is_status_1(entrepot: Entrepot) -> None:
    """What is wrong with the site's store is shown, and a script sees that something is."""
    site = SITE | {"store": {"problems": ["leaderless: no leader [2 of 3]"]}}
    with site_that_says({"/api/v1/site": site, "/api/v1/peers": {"peers": [PEER]}}) as url:
        status, output, _ = entrepot("status", "--url", url)
    assert status == 1
    assert "leaderless: no leader [2 of 3]" in output


@pytest.mark.parametrize("state", ["scanning", "parked", "unreachable", "refused", "starting"])
def test_a_peer_that_is_not_followed_is_status_1(entrepot: Entrepot, state: str) -> None:
    """A script sees by the status that a peer is not followed, and the reason is shown."""
    peer = PEER | {"state": state, "last_error": "because [of] this"}
    with site_that_says({"/api/v1/site": SITE, "/api/v1/peers": {"peers": [peer]}}) as url:
        status, output, _ = entrepot("status", "--url", f"{url}/")
    assert status == 1
    assert state in output
    assert "because [of] this" in output


def test_a_peer_that_is_not_to_be_followed_is_well(entrepot: Entrepot) -> None:
    """`follow: false` is what was configured, so nothing is wrong."""
    peer = PEER | {"state": "off"}
    with site_that_says({"/api/v1/site": SITE, "/api/v1/peers": {"peers": [peer]}}) as url:
        assert entrepot("status", "--url", url)[0] == 0


def test_what_a_site_cannot_know_yet_is_no_error(entrepot: Entrepot) -> None:
    """Before the first contact there is neither a cursor nor a lag."""
    unknown = dict.fromkeys(("lag_keys", "lag_s", "cursor", "acked"))
    peer = PEER | {"state": "starting"} | unknown
    with site_that_says({"/api/v1/site": SITE, "/api/v1/peers": {"peers": [peer]}}) as url:
        status, output, _ = entrepot("status", "--url", url)
    assert status == 1
    assert "–" in output


def test_status_for_scripts(entrepot: Entrepot) -> None:
    """--json gives the same facts as JSON."""
    with site_that_says({"/api/v1/site": SITE, "/api/v1/peers": {"peers": [PEER]}}) as url:
        status, output, _ = entrepot("status", "--json", "--url", url)
    assert status == 0
    site = SITE | {"store": {"problems": []}}
    assert json.loads(output) == {"url": url, "site": site, "peers": [PEER]}


@pytest.mark.parametrize(
    "answers", [{}, {"/api/v1/site": SITE}, {"/api/v1/site": {"site": 5}}, {"/api/v1/site": []}]
)
def test_what_is_no_site_is_status_1(entrepot: Entrepot, answers: dict[str, object]) -> None:
    """Something else listens there: one line, no traceback."""
    with site_that_says(answers) as url:
        status, output, errors = entrepot("status", "--url", url)
    assert (status, output) == (1, "")
    assert errors.startswith(f"{url}: ")
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "nonsense", "http://"])
def test_a_site_that_does_not_answer_is_status_1(entrepot: Entrepot, url: str) -> None:
    """Nobody listens there: one line, no traceback."""
    status, _, errors = entrepot("status", "--url", url.format(port=free_port()))
    assert status == 1
    assert len(errors.splitlines()) == 1


# --- processes


@pytest.mark.parametrize("name", ["gateway", "replicator"])
def test_single_processes_take_the_place_of_the_command(
    entrepot: Entrepot, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`entrepot gateway` becomes that process: its keeper's signals reach it."""
    became: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, argv: became.append(argv))
    entrepot(name, "--config", "a.yaml", "--data", "b")
    assert became[0][1:] == ["-P", "-m", name, "--data", "b", "--config", "a.yaml"]


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_data_that_is_a_file(entrepot: Entrepot, tmp_path: Path, command: str) -> None:
    """Status 2 and one line that names the option, whatever is to be kept there."""
    file = tmp_path / "file"
    file.write_text("")
    status, output, errors = entrepot(command, "--data", str(file))
    assert (status, output) == (2, "")
    assert errors == f"--data: {file} is a file, not a folder\n"


def test_serve_in_a_folder_that_cannot_be_written(entrepot: Entrepot, tmp_path: Path) -> None:
    """Status 2 and one line for each folder, before any process is started."""
    (tmp_path / "file").write_text("")
    status, _, errors = entrepot("serve", "--data", str(tmp_path / "file/data"))
    assert status == 2
    assert [line.partition(":")[0] for line in errors.splitlines()] == [
        "metadata.sqlite.path",
        "blobs.files.root",
    ]


def test_serve_on_addresses_that_are_taken(entrepot: Entrepot, tmp_path: Path) -> None:
    """Status 2, one line for each address, and no word of a site that is ready."""
    file = tmp_path / "entrepot.yaml"
    with site_that_says({"/readyz": {"ready": True}}) as url, site_that_says({}) as another:
        one, other = url.removeprefix("http://"), another.removeprefix("http://")
        file.write_text(
            f"http: {{listen: ['127.0.0.1:{free_port()}', '{other}']}}\n"
            f"grpc: {{listen: '127.0.0.1:{free_port()}'}}\n"
            f"metrics: {{listen: '{one}'}}\n"
            f"replicator: {{listen: '127.0.0.1:{free_port()}'}}\n"
        )
        status, output, errors = entrepot("serve", "--config", str(file))
    assert (status, output) == (2, "")
    assert errors.splitlines() == [
        f"http.listen[1]: {other} is in use",
        f"metrics.listen: {one} is in use",
    ]


@contextmanager
def shared_port(listening: bool) -> Iterator[int]:
    """A port that another program has, and would share with any process of this user."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port = free_port()
        holder.bind(("127.0.0.1", port))
        if listening:
            holder.listen()
        yield port


@pytest.mark.parametrize("command", ["serve", "gateway"])
@pytest.mark.parametrize("listening", [True, False], ids=["listening", "bound"])
def test_workers_share_with_nobody_else(
    entrepot: Entrepot, tmp_path: Path, command: str, listening: bool
) -> None:
    """Status 2 and a line, where a stranger has the port and the kernel would let both have it."""
    file = tmp_path / "entrepot.yaml"
    with shared_port(listening) as port:
        own = free_ports((0, 1, 2))
        file.write_text(
            f"http: {{listen: ['127.0.0.1:{port}']}}\n"
            f"grpc: {{listen: '127.0.0.1:{own}'}}\n"
            f"metrics: {{listen: '127.0.0.1:{own + 1}'}}\n"
            f"replicator: {{listen: '127.0.0.1:{own + 2}'}}\n"
        )
        status, output, errors = entrepot(command, "--config", str(file), "--workers", "2")
    assert (status, output) == (2, "")
    assert errors.splitlines() == [f"http.listen[0]: 127.0.0.1:{port} is in use"]


def test_every_worker_knows_which_one_it_is(tmp_path: Path) -> None:
    """The gateways differ in their numbers only, and there is one replicator."""
    *gateways, replicator = Site(None, tmp_path, workers=3).children
    assert [child.name for child in gateways] == ["gateway 0/3", "gateway 1/3", "gateway 2/3"]
    assert [child.argv[-2:] for child in gateways] == [("--worker", f"{n}/3") for n in range(3)]
    assert len({child.argv[:-1] for child in gateways}) == 1
    assert (replicator.name, replicator.argv[3]) == ("replicator", "replicator")


def addresses_of_its_own() -> dict[str, str]:
    """Variables of a site that meets no other."""
    port = free_ports((0, 1, 2, 3))
    return {
        "ENTREPOT_HTTP__LISTEN": f'["127.0.0.1:{port}"]',
        "ENTREPOT_GRPC__LISTEN": f"127.0.0.1:{port + 1}",
        "ENTREPOT_METRICS__LISTEN": f"127.0.0.1:{port + 2}",
        "ENTREPOT_REPLICATOR__LISTEN": f"127.0.0.1:{port + 3}",
    }


class SmallSite(Site):
    """A site of one process that answers as a gateway does when it is ready."""

    says = 'os.environ["ENTREPOT_SUPERVISOR"]'

    @property
    def children(self) -> tuple[Child, ...]:
        source = f"""
import http.server, json, os, signal, sys
asked = []
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"supervisor": {self.says}}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""
        port = str(self.load().metrics.listen.port)
        return (Child("gateway", (sys.executable, "-E", "-c", source, port)),)


async def test_serve_says_when_a_site_is_ready_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    """Each site is announced once, and Ctrl-C ends them all with status 0."""
    sites = [SmallSite(None, tmp_path / name, addresses_of_its_own()) for name in ("one", "other")]
    announced: list[tuple[Site, Config]] = []
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(serve(sites, lambda *ready: announced.append(ready)))
        await eventually(lambda: len(announced) == 2, 30, "both sites are ready")
        os.kill(os.getpid(), signal.SIGINT)
        assert await run == 0
    assert {site.data for site, _ in announced} == {tmp_path / "one", tmp_path / "other"}


class Stranger(SmallSite):
    """A site where something else answers, as if ready; its third answer is its last."""

    says = "asked.append(self.path) or (len(asked) > 3 and os._exit(2))"


async def test_serve_says_nothing_of_a_stranger(tmp_path: Path) -> None:
    """Who answers at the site's address without being of the site is not announced."""
    announced: list[Site] = []
    site = Stranger(None, tmp_path, addresses_of_its_own())
    async with asyncio.timeout(60):
        assert await serve([site], lambda one, _: announced.append(one)) == 2
    assert not announced


# --- demo


def test_the_sites_of_the_demo_are_each_others_peers(tmp_path: Path) -> None:
    """Two configurations are written, both load, and each names the other where it listens."""
    base = free_ports((0, 1, 2, 3, 100, 101, 102, 103))
    fra, nyc = (site.load() for site in demo.sites(tmp_path, base))
    assert (fra.site, nyc.site) == ("fra", "nyc")
    for one, other in ((fra, nyc), (nyc, fra)):
        (peer,) = one.peers
        assert peer.site == other.site
        assert peer.http == f"http://{other.http.listen[0]}"
        assert peer.grpc == other.grpc.listen
    assert fra.http.listen[0].port == base
    assert nyc.replicator.listen.port == base + 103
    assert fra.blobs.files.root == tmp_path / "fra/blobs"


def test_the_demo_writes_its_configurations_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one starts from is the two files, and no variable of the shell changes them."""
    monkeypatch.setenv("ENTREPOT_SITE", "ams")
    sites = demo.sites(tmp_path, 5000)
    written = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert written == [Path("fra/entrepot.yaml"), Path("nyc/entrepot.yaml")]
    assert [site.load().site for site in sites] == ["fra", "nyc"]
    assert load(sites[0].file, tmp_path, {}).site == "fra"


def test_the_demo_says_where_it_cannot_write(entrepot: Entrepot, tmp_path: Path) -> None:
    """Status 2 and one line."""
    (tmp_path / "file").write_text("")
    status, _, errors = entrepot("demo", "--data", str(tmp_path / "file/demo"))
    assert status == 2
    assert len(errors.splitlines()) == 1
