"""Network namespaces: programs run in them, and the tests' own sockets reach into them.

A namespace lives as long as a process that holds it, and the kernel ends that one with the test's
process: links, addresses and rules go with it, whatever happens, and no name is ever taken.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import socket
import subprocess
from asyncio import to_thread
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest
from aiohttp import AddrInfoType

from tests.sites import Place

T = TypeVar("T")

PROGRAMS: Final = ("ip", "nft", "nsenter", "setpriv", "unshare")
STOP_S: Final = 60.0

_CLONE_NEWNET: Final = 0x40000000  # sched.h
_libc: Final = ctypes.CDLL(None, use_errno=True)


def require(*programs: str) -> None:
    """Skip the test if it can have no namespaces or misses a program; fail it under CI=true."""
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    wanted = (*PROGRAMS, *programs)
    missing = [f"no program {name}" for name in wanted if shutil.which(name, path=path) is None]
    if not missing and os.geteuid() != 0:
        missing.append("no right to make a network namespace (run as root)")
    if not missing:
        return
    reason = f"the lab cannot run here: {', '.join(missing)}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass(frozen=True, slots=True)
class Namespace(Place):
    """A network namespace that a process holds."""

    pid: int

    @property
    def prefix(self) -> tuple[str, ...]:
        """What makes a command run in it."""
        return ("nsenter", f"--net=/proc/{self.pid}/ns/net", "--")

    def run(self, *command: str, stdin: str = "") -> str:
        """Run a program in it that has to succeed, and return what it wrote."""
        done = subprocess.run(
            (*self.prefix, *command), input=stdin, capture_output=True, text=True, timeout=STOP_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command} {stdin}: {done.stderr}"
        return done.stdout

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in it, with this thread only: sockets that are made meanwhile stay in it for good."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/proc/{self.pid}/ns/net", os.O_RDONLY)
            try:
                _enter(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter(here)
        finally:
            os.close(here)

    def socket(self, address: AddrInfoType) -> socket.socket:
        """A socket in it, for aiohttp's connector."""
        family, kind, protocol, _, _ = address
        with self.entered():
            return socket.socket(family, kind, protocol)

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that blocks, with its sockets in the namespace."""

        def inside() -> T:
            with self.entered():
                return function(*args)

        return await to_thread(inside)


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """So many new namespaces, each with its loopback up; gone at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(_namespace()) for _ in range(count)]


@contextmanager
def _namespace() -> Iterator[Namespace]:
    holder = subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", "--", "unshare", "--net", "--",
         "sh", "-c", "ip link set lo up && echo up && exec sleep infinity"),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"up\n", "no network namespace"
        yield Namespace(holder.pid)
    finally:
        holder.kill()
        holder.communicate(timeout=STOP_S)
