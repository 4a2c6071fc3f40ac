"""Waiting for a condition with a deadline: the only place of the tests that sleeps."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar, overload

T = TypeVar("T")

POLL_S: Final = 0.02


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], deadline_s: float, what: str, *, each_s: float = ...
) -> T: ...


@overload
async def eventually(
    condition: Callable[[], T], deadline_s: float, what: str, *, each_s: float = ...
) -> T: ...


async def eventually(
    condition: Callable[[], Any], deadline_s: float, what: str, *, each_s: float = POLL_S
) -> Any:
    """Poll until the condition answers something true; its AssertionError means "not yet"."""
    seen: object = "nothing, it never answered"
    deadline = asyncio.timeout(deadline_s)
    try:
        async with deadline:
            while True:
                try:
                    value = condition()
                    answer = await value if inspect.isawaitable(value) else value
                except AssertionError as error:
                    seen = error
                else:
                    if answer:
                        return answer
                    seen = answer
                await asyncio.sleep(each_s)
    except TimeoutError:
        if not deadline.expired():
            raise
        raise AssertionError(f"{what}: not within {deadline_s} s; last seen: {seen!r}") from None


@overload
def eventually_sync(condition: Callable[[], Awaitable[T]], deadline_s: float, what: str) -> T: ...


@overload
def eventually_sync(condition: Callable[[], T], deadline_s: float, what: str) -> T: ...


def eventually_sync(condition: Callable[[], Any], deadline_s: float, what: str) -> Any:
    """Do the same for synchronous code, on a loop and a thread apart from those of the test."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(asyncio.run, eventually(condition, deadline_s, what)).result()
