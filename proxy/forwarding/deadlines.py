"""Deadlines of many calls under one timer.

A timer per call would cost more than the call's routing: nearly all are cancelled unused. Calls are put into buckets
of `GRANULARITY` instead, and the shell arms one timer for the earliest bucket.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, Protocol

GRANULARITY: Final = 0.01
"""Seconds that a deadline may be noticed late. The client watches the same deadline itself; ours frees the server."""


class Timed(Protocol):
    """What can have a deadline."""

    def deadline_exceeded(self) -> None:
        """The time is over."""


class DeadlineWheel:
    """`arm(at)` is called when the shell's timer must fire at `at` (seconds, the clock of `add`), earlier than asked
    before; the shell then calls `expire`.
    """

    __slots__ = ("_arm", "_buckets", "_ticks")

    def __init__(self, arm: Callable[[float], None]) -> None:
        self._arm = arm
        self._buckets: dict[int, set[Timed]] = {}
        self._ticks: list[int] = []

    def add(self, timed: Timed, deadline: float) -> set[Timed]:
        """Watch `timed`. Returns its bucket; to stop watching, discard it there."""
        tick = int(deadline / GRANULARITY) + 1
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heappush(self._ticks, tick)
            if self._ticks[0] == tick:
                self._arm(tick * GRANULARITY)
        bucket.add(timed)
        return bucket

    def expire(self, now: float) -> None:
        """Tell every call whose deadline is at or before `now`, and arm the timer for the next bucket if any."""
        ticks = self._ticks
        while ticks and ticks[0] * GRANULARITY <= now:
            bucket = self._buckets.pop(heappop(ticks))
            while bucket:
                bucket.pop().deadline_exceeded()
        if ticks:
            self._arm(ticks[0] * GRANULARITY)

    def __len__(self) -> int:
        """Calls being watched."""
        return sum(map(len, self._buckets.values()))
