"""Long work on the data path's event loop, in slices short enough for nobody to notice.

A thread would not help: it would hold the interpreter's lock for 5 ms at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from time import perf_counter
from typing import Final, TypeVar

T = TypeVar("T")

SLICE: Final = 0.0005
"""Seconds of work between two passes of the loop: about what thirty calls take."""
CHECK_EVERY: Final = 8


async def sliced(items: Iterable[T], *, check_every: int = CHECK_EVERY) -> AsyncIterator[T]:
    """The items, with a pass of the event loop after each slice of the time that they and their consumer took.

    `check_every`: items between two looks at the clock; together they should take less than a slice.
    """
    until = perf_counter() + SLICE
    for number, item in enumerate(items, 1):
        yield item
        if number % check_every == 0 and perf_counter() >= until:
            await asyncio.sleep(0)
            until = perf_counter() + SLICE
