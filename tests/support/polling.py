"""Waiting for a condition without guessing how long it takes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_T = TypeVar("_T")

PATIENCE = 30.0
"""Seconds until a condition that does not come fails the test: generous, as a passing test never waits for it."""
_INTERVAL = 0.01


async def eventually(condition: Callable[[], _T], what: str = "the condition", patience: float = PATIENCE) -> _T:
    """The condition's value as soon as it is true. Fails the test, naming `what`, if that does not happen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience
    while not (value := condition()):
        if loop.time() > deadline:
            raise AssertionError(f"{what} did not happen within {patience:g} s")
        await asyncio.sleep(_INTERVAL)
    return value


async def eventually_answers(ask: Callable[[], Awaitable[bool]], what: str = "the answer") -> None:
    """Asks until the answer is true. Fails the test, naming `what`, if that does not happen."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PATIENCE
    while not await ask():
        if loop.time() > deadline:
            raise AssertionError(f"{what} did not happen within {PATIENCE:g} s")
        await asyncio.sleep(_INTERVAL)


async def settled(value: Callable[[], int], what: str, *, calm: float = 0.5) -> int:
    """What `value` gives once it has not changed for `calm` seconds. Fails the test if it never comes to rest."""
    loop = asyncio.get_running_loop()
    last = value()
    since = loop.time()

    def at_rest() -> bool:
        nonlocal last, since
        now = loop.time()
        if (current := value()) != last:
            last, since = current, now
        return now - since >= calm

    await eventually(at_rest, f"{what} coming to rest")
    return last
