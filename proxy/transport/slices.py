"""Long work between the passes of an event loop (see `proxy.slices`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Generator

    from proxy.slices import Result

SLICES_PER_PASS: Final = 8
"""About half a millisecond: what a call may be held up by at most."""


async def in_passes(work: Generator[None, None, Result]) -> Result:
    """Do the work, a little in each pass of the loop."""
    while True:
        try:
            for _ in range(SLICES_PER_PASS):
                next(work)
        except StopIteration as done:
            result: Result = done.value
            return result
        await asyncio.sleep(0)
