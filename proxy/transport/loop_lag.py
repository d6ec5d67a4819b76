"""How late the event loop is: what every call waits for, whatever it wants."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

from proxy.forwarding.stats import StatsSnapshot
from proxy.transport.reactor import Handle, Reactor

LAG_BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Upper bounds, in seconds, of the buckets of lateness."""
EVERY: Final = 0.1
"""Seconds between two looks."""


class LoopLag:
    """Sets a timer again and again, and notes how late it fires. Timers have a millisecond: less is not seen."""

    def __init__(self, reactor: Reactor, look: Callable[[], None]) -> None:
        """`look`: is called each time, for what else is looked at now and then."""
        self._reactor = reactor
        self._look = look
        self._buckets = [0] * (len(LAG_BOUNDS) + 1)
        self._seconds = 0.0
        self._due = 0.0
        self._timer: Handle | None = None

    def start(self) -> None:
        """Begin. Nothing happens if it has begun."""
        if self._timer is None:
            self._set()

    def stop(self) -> None:
        """End. Nothing happens if it has not begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def tell(self, told: StatsSnapshot) -> None:
        """Add what was noted."""
        told.observe("districhat_loop_lag_seconds", self._buckets, self._seconds)

    def _set(self) -> None:
        self._due = self._reactor.clock() + EVERY
        self._timer = self._reactor.call_later(EVERY, self._fired)

    def _fired(self) -> None:
        late = max(0.0, self._reactor.clock() - self._due)
        self._buckets[bisect_left(LAG_BOUNDS, late)] += 1
        self._seconds += late
        self._look()
        self._set()
