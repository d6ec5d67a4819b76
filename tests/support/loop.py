"""An event loop of a single queue, whose passes the test makes; and who counts those of the real one."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Loop:
    """Keeps what it is asked to call."""

    def __init__(self) -> None:
        self.scheduled: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.scheduled.append(callback)

    def run(self) -> None:
        """One pass: what was asked for before it."""
        scheduled, self.scheduled = self.scheduled, []
        for callback in scheduled:
            callback()


class Passes:
    """How many there were so far."""

    def __init__(self) -> None:
        self.count = 0

    async def go_on(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)


@contextmanager
def counted_passes() -> Iterator[Passes]:
    """Counts the passes that the running loop makes meanwhile, as far as nobody holds it up."""
    passes = Passes()
    counting = asyncio.get_running_loop().create_task(passes.go_on())
    try:
        yield passes
    finally:
        counting.cancel()
