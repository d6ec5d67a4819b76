"""Deadlines of many calls under one timer.

A timer per call would cost more than the call's routing: nearly all are cancelled unused. Calls are put into buckets
instead, and the shell arms one timer for the earliest. The further off a deadline is, the coarser is its bucket, so
that there are a few thousand buckets at most, whatever deadlines clients think of.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final, Protocol

GRANULARITY: Final = 0.01
"""Seconds that a deadline may be noticed late. The client watches the same deadline itself; ours frees the server."""
NEAR: Final = 10.0
FAR: Final = 3600.0
"""Seconds off. A deadline beyond NEAR may be noticed a second late, one beyond FAR a minute."""
HORIZON: Final = 86_400.0
"""Seconds off beyond which a deadline is not watched here at all, but only passed on."""


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

    def add(self, timed: Timed, deadline: float, now: float) -> set[Timed]:
        """Watch `timed`. Returns its bucket; to stop watching, discard it there."""
        off = deadline - now
        tick = int(deadline / GRANULARITY) + 1
        if off > NEAR:
            if off > HORIZON:
                return set()
            coarse = int((60.0 if off > FAR else 1.0) / GRANULARITY)
            tick += -tick % coarse
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = set()
            heappush(self._ticks, tick)
            if self._ticks[0] == tick:
                self._arm(tick * GRANULARITY)
        bucket.add(timed)
        return bucket

    def expire(self, now: float) -> None:
        """Tell every call whose deadline is at or before `now`, and arm the timer for the next bucket if any.

        Raises what some of them raised, as one ExceptionGroup, after all were told.
        """
        ticks = self._ticks
        errors = []
        while ticks and ticks[0] * GRANULARITY <= now:
            bucket = self._buckets.pop(heappop(ticks))
            while bucket:
                try:
                    bucket.pop().deadline_exceeded()
                except Exception as error:
                    errors.append(error)
        if ticks:
            self._arm(ticks[0] * GRANULARITY)
        if errors:
            raise ExceptionGroup("bugs met deadlines", errors)

    def __len__(self) -> int:
        """Calls being watched."""
        return sum(map(len, self._buckets.values()))
