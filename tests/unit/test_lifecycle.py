"""How a process starts, is watched and ends."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from structlog.testing import capture_logs

from node.config import Address, ConfigError
from node.life import LifeEnded
from node.lifecycle import Lifecycle, binding
from tests.ports import free_port
from tests.waiting import eventually

ROOT: Final = Path(__file__).parents[2]


async def for_ever() -> None:
    await asyncio.Event().wait()


async def test_what_was_started_last_is_stopped_first() -> None:
    """Nothing is closed before what stands on it."""
    order: list[str] = []
    lifecycle = Lifecycle()

    async def closed() -> None:
        order.append("store")

    async def listener_closed() -> None:
        order.append("listener")

    async def work() -> None:
        try:
            await for_ever()
        finally:
            order.append("work")

    lifecycle.on_stop("store", closed)
    lifecycle.spawn("work", work())
    lifecycle.on_stop("listener", listener_closed)
    await asyncio.sleep(0)
    await lifecycle.drain()
    assert order == ["listener", "work", "store"]
    assert not lifecycle.failed


async def test_work_that_fails_begins_the_drain() -> None:
    """No task dies unseen: the process ends, and its status tells."""
    lifecycle = Lifecycle()

    async def work() -> None:
        raise ValueError("broken")

    lifecycle.spawn("work", work())
    async with asyncio.timeout(10):
        await lifecycle.stopping.wait()
    assert lifecycle.failed


async def test_who_has_to_start_again_is_no_failure_to_be_traced() -> None:
    """The reason is a warning without a traceback; the status tells keepers to start it again."""
    lifecycle = Lifecycle()

    async def work() -> None:
        raise LifeEnded("the metadata went back")

    with capture_logs() as logs:
        lifecycle.spawn("life", work())
        async with asyncio.timeout(10):
            await lifecycle.stopping.wait()
    assert lifecycle.failed
    (told,) = [line for line in logs if line["log_level"] != "info"]
    assert (told["log_level"], told["reason"]) == ("warning", "the metadata went back")
    assert "exc_info" not in told


async def test_work_that_is_done_is_forgotten() -> None:
    """Work for a moment may be spawned for ever, and ends nothing."""
    lifecycle = Lifecycle()

    async def work() -> None:
        pass

    for _ in range(100):
        lifecycle.spawn("work", work())
    await eventually(lambda: not lifecycle._steps, 60, "all of it is forgotten")
    assert not lifecycle.stopping.is_set()


async def test_a_step_that_fails_leaves_the_others_their_turn() -> None:
    """The store is closed although the listener could not be."""
    lifecycle = Lifecycle()
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    async def broken() -> None:
        raise OSError("broken")

    lifecycle.on_stop("store", close)
    lifecycle.on_stop("listener", broken)
    await lifecycle.drain()
    assert closed.is_set()
    assert lifecycle.failed


async def test_a_step_that_hangs_is_left(tmp_path: Path) -> None:
    """The limit holds for all steps together; tasks left are cancelled all the same."""
    lifecycle = Lifecycle(limit_s=0.05)
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    lifecycle.spawn("work", work())
    lifecycle.on_stop("hangs", for_ever)
    lifecycle.on_stop("hangs too", for_ever)
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await lifecycle.drain()
        await cancelled.wait()
    assert lifecycle.failed


async def test_work_may_start_work_while_draining() -> None:
    """A step of the drain may still spawn, and that is ended too."""
    lifecycle = Lifecycle()
    ended: list[str] = []

    async def late() -> None:
        try:
            await for_ever()
        finally:
            ended.append("late")

    async def step() -> None:
        lifecycle.spawn("late", late())
        await asyncio.sleep(0)

    lifecycle.on_stop("step", step)
    await lifecycle.drain()
    assert ended == ["late"]


# --- listening


def test_an_address_in_use_is_a_problem_of_its_key() -> None:
    """A second process on the port is told which key to change."""
    port = free_port()
    address = Address("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(ConfigError) as caught, binding("http.listen", address):
            socket.create_server(("127.0.0.1", port))
        # grpc raises this, and says no more.
        with pytest.raises(ConfigError) as vague, binding("http.listen", address):
            raise RuntimeError("Failed to bind to address")
    assert caught.value.problems == (f"http.listen: 127.0.0.1:{port} is in use",)
    assert vague.value.problems == caught.value.problems


def test_an_address_of_another_machine_is_a_problem_of_its_key() -> None:
    """An address that this machine does not have can't be listened on."""
    address = Address("192.0.2.1", free_port())
    with pytest.raises(ConfigError) as caught, binding("grpc.listen", address):
        socket.create_server((address.host, address.port))
    assert caught.value.problems[0].startswith(f"grpc.listen: {address} can't be listened on: ")


# --- whole processes

_SERVICE: Final = """
import asyncio, signal, sys, time
from node.config import ConfigError
from node.lifecycle import Lifecycle, run
from node.telemetry import configure_logs

configure_logs("test")

async def say(text: str) -> None:
    print(text, flush=True)

async def service(lifecycle: Lifecycle) -> None:
    lifecycle.on_stop("end", lambda: say("drained"))
    {body}
    print("ready", flush=True)

sys.exit(run(service, with_parent={with_parent}, limit_s={limit_s}))
"""


@contextmanager
def process(
    body: str = "pass", *, with_parent: bool = False, limit_s: float = 28.0
) -> Iterator[subprocess.Popen[str]]:
    source = _SERVICE.format(body=body, with_parent=with_parent, limit_s=limit_s)
    with subprocess.Popen(
        [sys.executable, "-c", source],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout
    return child.stdout.readline().strip()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains(number: signal.Signals) -> None:
    """SIGTERM and Ctrl-C end the process in order, with status 0."""
    with process() as child:
        assert line_of(child) == "ready"
        child.send_signal(number)
        assert line_of(child) == "drained"
        assert child.wait(20) == 0


@pytest.mark.slow
def test_the_end_of_the_supervisor_drains() -> None:
    """Whoever holds the other end of stdin is gone: so is the process."""
    with process(with_parent=True) as child:
        assert line_of(child) == "ready"
        assert child.stdin
        child.stdin.close()
        assert line_of(child) == "drained"
        assert child.wait(20) == 0


@pytest.mark.slow
def test_a_second_ctrl_c_waits_for_nothing() -> None:
    """Who is in a hurry is let go; every state survives that."""
    body = "lifecycle.on_stop('hang', lambda: asyncio.gather(say('draining'), asyncio.sleep(600)))"
    with process(body) as child:
        assert line_of(child) == "ready"
        child.send_signal(signal.SIGINT)
        assert line_of(child) == "draining"
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130


@pytest.mark.slow
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("lifecycle.on_stop('x', lambda: asyncio.sleep(600))", id="a step"),
        pytest.param("lifecycle.spawn('x', asyncio.to_thread(time.sleep, 600))", id="a thread"),
    ],
)
def test_whatever_hangs_the_process_ends(body: str) -> None:
    """Within the limit the process is gone, with status 1."""
    with process(body, limit_s=2.0) as child:
        assert line_of(child) == "ready"
        child.terminate()
        assert child.wait(20) == 1


@pytest.mark.slow
def test_a_failure_is_status_1_and_a_traceback() -> None:
    """Work that fails ends the process, after the drain, and says where."""
    with process("lifecycle.spawn('x', asyncio.sleep('no number'))") as child:
        output, errors = child.communicate(timeout=120)
    assert output.endswith("drained\n")
    assert "TypeError" in errors
    assert child.returncode == 1


@pytest.mark.slow
def test_a_configuration_problem_is_status_2_and_its_lines() -> None:
    """What keeps it from starting is one line each, and what was started is undone."""
    with process("raise ConfigError('a: b', 'c: d')") as child:
        output, errors = child.communicate(timeout=120)
    assert output.endswith("drained\n")
    assert errors.endswith("a: b\nc: d\n")
    assert child.returncode == 2


@pytest.mark.slow
def test_stdin_that_is_no_pipe_is_a_usage_problem() -> None:
    """--with-parent without a parent would never see its end."""
    source = _SERVICE.format(body="pass", with_parent=True, limit_s=28.0)
    child = subprocess.run(
        [sys.executable, "-c", source],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env={**os.environ},
        check=False,
    )
    assert child.returncode == 2
