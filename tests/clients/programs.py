"""The programs of container clients, each with all of its state in a temporary folder of its own.

Every program runs in a private mount namespace in which the system's state folders are replaced by
empty ones: nothing it writes or mounts reaches the machine, whichever folders it has built in. The
kernel ends a program whose test process has gone.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from asyncio import create_subprocess_exec, timeout
from asyncio.subprocess import Process
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pytest

from tests.waiting import eventually_sync

COMMAND_S: Final = 180.0
START_S: Final = 120.0
STOP_S: Final = 30.0

_TAIL: Final = 4000

# What the programs have built in: sockets of plug-ins, the cache of known blobs, short names,
# podman's locks, Docker's identity key. A client sees no test data below these folders.
_MASKED: Final = ("/run", "/var/lib", "/var/cache", "/dev/shm", "/etc/docker")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended."""

    command: str
    exit_code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        """Show the command, its exit code and its last output."""
        output = f"{self.stdout[-_TAIL:]}\n{self.stderr[-_TAIL:]}".strip()
        return f"{self.command}\nended with {self.exit_code}:\n{output}"


@dataclass(frozen=True, slots=True)
class Client:
    """A container tool with its global options and its private surroundings."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    isolated: bool = True

    async def run(
        self, *args: str | Path, stdin: str | None = None, timeout_s: float = COMMAND_S
    ) -> str:
        """Run a command that has to succeed, and return its standard output."""
        outcome = await self.attempt(*args, stdin=stdin, timeout_s=timeout_s)
        if outcome.exit_code != 0:
            raise AssertionError(str(outcome))
        return outcome.stdout

    async def attempt(
        self, *args: str | Path, stdin: str | None = None, timeout_s: float = COMMAND_S
    ) -> Outcome:
        """Run a command that may fail, and return how it ended; it has to end in time, though."""
        command = (*self.command, *map(str, args))
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write((stdin or "").encode())
            given.seek(0)
            process = await create_subprocess_exec(
                *_contained(self.folder, command, isolated=self.isolated),
                stdin=given,
                stdout=out,
                stderr=err,
                env=self.environment,
                cwd=self.folder,
                start_new_session=True,
            )
            late = ""
            try:
                async with timeout(timeout_s):
                    await process.wait()
            except TimeoutError:
                late = f"still running after {timeout_s} s, then "
            finally:
                code = await _end(process)
            texts = [_text(file.fileno()) for file in (out, err)]
            outcome = Outcome(shlex.join(command), code, *texts)
            if late:
                raise AssertionError(f"{late}{outcome}")
            return outcome

    def with_credentials(self, folder: Path) -> "Client":
        """Return the same client with its logins in another folder: none, if that is empty."""
        return replace(self, environment={**self.environment, **_credentials(folder)})


def require(*programs: str, root: bool = True, files: Iterable[Path] = ()) -> None:
    """Skip the test if something it needs is missing, and fail it in continuous integration."""
    path = _search_path()
    needed = (*programs, "setpriv", "unshare")
    missing = [f"no program {name}" for name in needed if shutil.which(name, path=path) is None]
    missing += [f"no {file} (make programs)" for file in files if not file.exists()]
    if root and not missing and not _may_isolate():
        missing.append("no right to make a mount namespace (run as root)")
    if not missing:
        return
    reason = f"this client cannot run here: {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _may_isolate() -> bool:
    """Tell whether this process may make a mount namespace."""
    probe = ("unshare", "--mount", "--propagation", "private", "true")
    return subprocess.run(probe, capture_output=True, timeout=STOP_S, check=False).returncode == 0


@contextmanager
def private_folder() -> Iterator[Path]:
    """Lend a folder with a short path (sockets need that), and remove it with all that it holds."""
    folder = Path(tempfile.mkdtemp(prefix="entrepot-", dir="/tmp"))
    try:
        for name in ("home/.config/containers", "run", "tmp"):
            (folder / name).mkdir(parents=True)
        for path in _MASKED:
            mask(folder, path).mkdir(parents=True)
        _write_container_settings(folder)
        yield folder
    finally:
        _unmount_below(folder)
        shutil.rmtree(folder)


def _write_container_settings(folder: Path) -> None:
    """Write the settings that podman, buildah and skopeo share."""
    policy = {"default": [{"type": "insecureAcceptAnything"}]}
    (folder / "home/.config/containers/policy.json").write_text(json.dumps(policy))
    (folder / "registries.conf").write_text('short-name-mode = "disabled"\n')
    (folder / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}/store"\nrunroot = "{folder}/run/store"\n'
    )
    (folder / "containers.conf").write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
        f'static_dir = "{folder}/libpod"\ntmp_dir = "{folder}/run/libpod"\n'
        f'volume_path = "{folder}/volumes"\n'
        f'[network]\nnetwork_config_dir = "{folder}/networks"\n'
    )


def client(folder: Path, *command: str) -> Client:
    """Return a client whose surroundings are in the folder."""
    return Client(command, _environment(folder), folder)


def _environment(folder: Path) -> dict[str, str]:
    """Return the whole environment of a program: nothing comes from the machine, nor a proxy."""
    return {
        "PATH": _search_path(),
        "LANG": "C.UTF-8",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "CONTAINERD_SNAPSHOTTER": "native",
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"),
        **_credentials(folder / "credentials"),
    }


def _credentials(folder: Path) -> dict[str, str]:
    """Return the environment that makes the clients keep their logins in a folder."""
    logins = folder / "auth.json"
    if not logins.exists():
        folder.mkdir(parents=True, exist_ok=True)
        logins.write_text("{}")  # podman and buildah refuse to start without the file
    return {"DOCKER_CONFIG": str(folder), "REGISTRY_AUTH_FILE": str(logins)}


def _search_path() -> str:
    """Return where programs are sought; daemons are where a plain user's path does not lead."""
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"


def mask(folder: Path, path: str) -> Path:
    """Return the folder that stands in for a folder of the system."""
    return folder / "masks" / path.strip("/").replace("/", "-")


def _contained(folder: Path, command: tuple[str, ...], *, isolated: bool) -> tuple[str, ...]:
    """Wrap a command: it ends with its parent, and sees its own state folders."""
    bound_to_parent = ("setpriv", "--pdeathsig", "TERM", "--")
    if not isolated:
        return (*bound_to_parent, *command)
    mounts = [
        f"mount --no-mtab --bind {shlex.quote(str(mask(folder, path)))} {path}"
        for path in _MASKED
        if Path(path).is_dir()
    ]
    script = " && ".join([*mounts, 'exec "$@"'])
    namespace = ("unshare", "--mount", "--propagation", "private", "--")
    return (*bound_to_parent, *namespace, "sh", "-c", script, "sh", *command)


@contextmanager
def daemon(folder: Path, command: tuple[str, ...], answers: Callable[[], object]) -> Iterator[None]:
    """Run a daemon from its first answer on until the end of the block."""
    log = folder / f"{command[0]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _contained(folder, command, isolated=True),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(folder),
            cwd=folder,
            start_new_session=True,
        )

    def ready() -> object:
        """Ask the daemon, unless it has ended."""
        if process.poll() is not None:
            raise ChildProcessError(f"{command[0]} ended with {process.returncode}")
        return answers()

    try:
        try:
            eventually_sync(ready, START_S, f"{command[0]} answers")
        except (AssertionError, ChildProcessError) as error:
            tail = log.read_text(errors="replace")[-_TAIL:]
            raise AssertionError(f"{shlex.join(command)}\n{error}\n{tail}") from error
        yield
    finally:
        _stop(process)


def _pong(address: Path) -> bool:
    """Tell whether a Docker engine answers on a socket."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_S)
        try:
            connection.connect(str(address))
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
            answer = connection.recv(64)
        except OSError as error:
            raise AssertionError(f"{address}: {error}") from error
    assert b" 200 " in answer, answer
    return True


@contextmanager
def docker_engine(containerd: Path, **settings: object) -> Iterator[Client]:
    """Run a Docker engine with some settings of daemon.json, which stores images but runs none."""
    with private_folder() as folder:
        address = folder / "docker.sock"
        config = folder / "daemon.json"
        config.write_text(json.dumps(settings))
        command = (
            "dockerd",
            f"--config-file={config}",
            f"--host=unix://{address}",
            f"--containerd={containerd}",
            f"--data-root={folder / 'data'}",
            f"--exec-root={folder / 'exec'}",
            f"--pidfile={folder / 'docker.pid'}",
            "--storage-driver=vfs",
            "--bridge=none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
        )
        with daemon(folder, command, lambda: _pong(address)):
            yield client(folder, "docker", "--host", f"unix://{address}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a daemon of ours: kindly, then by force."""
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_S)


async def _end(process: Process) -> int:
    """End a command of ours with its children, kindly, then by force, and return its exit code."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        try:
            async with timeout(STOP_S):
                return await process.wait()
        except TimeoutError:
            continue
    raise AssertionError(f"process {process.pid} outlives SIGKILL")


def _text(descriptor: int) -> str:
    """Return what a program wrote to a file it shares with us."""
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode(errors="replace")


def _unmount_below(folder: Path) -> None:
    """Unmount whatever a program left mounted below a folder, the deepest first."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].encode().decode("unicode_escape") for line in lines]
    for point in sorted((p for p in points if Path(p).is_relative_to(folder)), reverse=True):
        subprocess.run(("umount", "--lazy", point), timeout=STOP_S, check=True)
