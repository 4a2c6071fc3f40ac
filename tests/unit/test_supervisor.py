"""The supervisor, with tiny programs as children."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from node.config import ConfigError
from node.supervisor import Child, Supervisor, sole
from tests.waiting import eventually

ROOT: Final = Path(__file__).parents[2]

# Each writes its process id once it can take a signal.
_HEAD: Final = """
import os, signal, sys
def here(): open(sys.argv[1], "a").write(f"{os.getpid()}\\n")
"""
# Ends with status 0 when it is told to, or when its stdin ends.
OBEDIENT: Final = f"""{_HEAD}
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
here(); sys.stdin.read(); os._exit(0)
"""
DEAF: Final = f"""{_HEAD}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
here()
while True: signal.pause()
"""


class Program:
    """A program to be kept running, and the process ids that it had."""

    def __init__(self, name: str, source: str, folder: Path) -> None:
        self.file = folder / name
        argv = (sys.executable, "-S", "-E", "-c", source, str(self.file))
        self.child = Child(name, argv)

    def pids(self) -> list[int]:
        return [int(line) for line in self.file.read_text().split()] if self.file.exists() else []

    async def started(self, times: int = 1) -> int:
        """Wait until it was started so often; the last process id."""
        await eventually(lambda: len(self.pids()) >= times, 20, f"{times} starts of {self.file}")
        return self.pids()[-1]


Start = Callable[[str, str], Program]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    return lambda name, source: Program(name, source, tmp_path)


@asynccontextmanager
async def running(
    *programs: Program, drain_s: float = 20.0
) -> AsyncIterator[tuple[Supervisor, asyncio.Task[int]]]:
    """Run a supervisor, and leave nothing of it behind."""
    supervisor = Supervisor([program.child for program in programs], drain_s=drain_s)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        run = tasks.create_task(supervisor.run())
        try:
            yield supervisor, run
        finally:
            supervisor.kill()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_that_dies_is_started_again_and_the_other_goes_on(start: Start) -> None:
    """One process's death costs nothing of the other."""
    one, other = start("one", OBEDIENT), start("other", OBEDIENT)
    async with running(one, other) as (supervisor, run):
        await other.started()
        os.kill(await one.started(), signal.SIGKILL)
        os.kill(await one.started(2), signal.SIGKILL)
        await one.started(3)
        assert len(other.pids()) == 1
        supervisor.stop()
        assert await run == 0
    assert not any(is_alive(pid) for pid in one.pids() + other.pids())


@pytest.mark.parametrize(
    ("given", "level"), [({}, "ERROR"), ({"GRPC_VERBOSITY": "DEBUG"}, "DEBUG")]
)
async def test_children_know_whose_they_are(
    given: dict[str, str], level: str, tmp_path: Path
) -> None:
    """They find their supervisor's nonce, and a quiet grpc unless somebody asked for another."""
    said = tmp_path / "said"
    source = """
import os, sys
said = [os.environ[name] for name in ("ENTREPOT_SUPERVISOR", "GRPC_VERBOSITY")]
open(sys.argv[1], "w").write(" ".join(said))
sys.exit(2)
"""
    child = Child("one", (sys.executable, "-S", "-E", "-c", source, str(said)))
    supervisor = Supervisor([child], environ=given)
    async with asyncio.timeout(60):
        assert await supervisor.run() == 2
    assert said.read_text().split() == [supervisor.nonce, level]


async def test_a_child_that_cannot_start_ends_all(start: Start) -> None:
    """A wrong configuration stays wrong: status 2 ends everything with status 2."""
    one, other = start("one", f"{_HEAD}\nhere(); sys.exit(2)"), start("other", OBEDIENT)
    async with running(one, other) as (_, run):
        assert await run == 2
    assert len(one.pids()) == 1
    assert not any(is_alive(pid) for pid in other.pids())


async def test_a_child_that_does_not_drain_is_killed(start: Start) -> None:
    """What hangs does not keep the site from ending, and is told by status 1."""
    deaf = start("deaf", DEAF)
    async with running(deaf, drain_s=0.1) as (supervisor, run):
        pid = await deaf.started()
        supervisor.stop()
        assert await run == 1
    assert not is_alive(pid)


async def test_kill_waits_for_nothing(start: Start) -> None:
    """The second Ctrl-C ends children that have not drained yet."""
    deaf = start("deaf", DEAF)
    async with running(deaf) as (supervisor, run):
        await deaf.started()
        supervisor.stop()
        supervisor.kill()
        assert await run == 1


async def test_kill_takes_what_a_child_has_started(start: Start, tmp_path: Path) -> None:
    """A child's own children are in its group, and go with it."""
    inner = f"{DEAF}"
    source = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}, sys.argv[1]])"
    )
    parent = start("parent", source)
    async with running(parent) as (supervisor, run):
        grandchild = await parent.started()
        supervisor.kill()
        assert await run == 1
        await eventually(lambda: not is_running(grandchild), 60, "the grandchild is gone")


def is_running(pid: int) -> bool:
    """Whether a process still works: one that waits for its parent to read its end does not."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def test_a_child_that_is_stopped_while_starting_counts_as_drained(start: Start) -> None:
    """Before its handlers stand a child dies of SIGTERM, and has nothing to lose."""
    one = start("one", "import signal; signal.pause()")
    async with running(one) as (supervisor, run):
        await eventually(lambda: bool(supervisor._running), 60, "the child runs")
        supervisor.stop()
        assert await run == 0


async def test_children_are_in_sessions_of_their_own(start: Start) -> None:
    """Ctrl-C in a terminal reaches the supervisor, and the supervisor decides."""
    one = start("one", OBEDIENT)
    async with running(one):
        pid = await one.started()
        assert os.getsid(pid) == pid != os.getsid(0)


def test_children_end_with_their_supervisor(tmp_path: Path) -> None:
    """The supervisor is killed: its children drain by themselves, and leave their ports."""
    program = Program("one", OBEDIENT, tmp_path)
    source = f"""
import asyncio
from node.supervisor import Child, Supervisor
asyncio.run(Supervisor([Child("one", {program.child.argv!r})]).run())
"""
    with subprocess.Popen(
        [sys.executable, "-c", source], cwd=ROOT, stderr=subprocess.DEVNULL
    ) as top:

        async def scene() -> None:
            child = await program.started()
            top.kill()
            await eventually(lambda: not is_running(child), 60, "the child has drained")

        asyncio.run(scene())


# --- the folder


async def test_a_folder_has_one_supervisor(tmp_path: Path) -> None:
    """A second site in the same folder would not see what the first one does."""
    async with sole({"--data": tmp_path}):
        with pytest.raises(ConfigError) as caught:
            async with sole({"--data": tmp_path}):
                pass
    assert len(caught.value.problems) == 1
    async with sole({"--data": tmp_path}):
        pass


async def test_children_of_a_killed_supervisor_are_waited_for(tmp_path: Path) -> None:
    """The next one starts when they have let go of the folder, and of the ports."""
    async with sole({"--data": tmp_path}) as shared:
        left = await asyncio.create_subprocess_exec("sleep", "60", pass_fds=shared)
    try:
        with pytest.raises(ConfigError):
            async with sole({"--data": tmp_path}, wait_s=0.2):
                pass
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            entered = asyncio.Event()

            async def enter() -> None:
                async with sole({"--data": tmp_path}):
                    entered.set()

            tasks.create_task(enter())
            left.kill()
            await entered.wait()
    finally:
        if left.returncode is None:
            left.kill()
        await left.wait()
