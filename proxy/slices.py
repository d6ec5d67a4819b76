"""Long work in slices: a generator that yields after each fraction of a millisecond, and returns its result.

So it stays pure: an event loop runs it between other things (`proxy.transport.slices`), all others at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator

Result = TypeVar("Result")


def at_once(work: Generator[None, None, Result]) -> Result:
    """Do all of it now."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            result: Result = done.value
            return result
