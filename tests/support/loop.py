"""An event loop of a single queue, whose passes the test makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


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
