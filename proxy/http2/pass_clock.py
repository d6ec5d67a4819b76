"""The time of a pass of the event loop, and how long passes take.

Everything that arrives in one pass is stamped with one reading of the clock, made when its first bytes come in, at a
cost that the calls of the pass share. How long the proxy keeps what passes through it is looked at only now and then
(`Outbox.time_next`): a pass may carry no more than a token of a stream, which would pay for all of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Final

PASS_BOUNDS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
"""Upper bounds, in seconds, of the buckets of passes."""


class PassClock:
    """`read` gives seconds on a clock that never goes back, with microseconds in it. None: it stands still."""

    __slots__ = ("buckets", "fresh", "read", "seconds", "time")

    def __init__(self, read: Callable[[], float] | None) -> None:
        self.read: Callable[[], float] = read or float  # float() is 0.0, and no call in Python
        self.time = 0.0
        """When this pass began, if it is `fresh`; else the last one that did something."""
        self.fresh = False
        """The first bytes of this pass have come and set `time`: hot callers do that themselves. The end of the pass
        takes it back, or whoever got bytes that had nothing to say."""
        self.buckets = [0] * (len(PASS_BOUNDS) + 1)
        """Connections written to in passes that were timed, by the time from first bytes to last write."""
        self.seconds = 0.0
        """All those times together."""

    def tick(self) -> None:
        """Something happens that no bytes have brought: a timer. `time` shall be right for it."""
        self.time = self.read()

    def observe(self, began: float, written: int) -> None:
        """A pass that bytes began then is over, and has written to so many connections."""
        seconds = self.read() - began
        self.buckets[bisect_left(PASS_BOUNDS, seconds)] += written
        self.seconds += seconds * written
