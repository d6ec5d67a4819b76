"""When the signs of a server's health make a difference: the counter behind the active health checks.

The rules, from which all else follows:

- A server is taken for healthy until the first sign; the first sign decides alone, whatever the thresholds say.
- Silence (`FAILED`) may be an accident of the network, so it has to happen `unhealthy_threshold` times in a row. A
  server's own word that it does not serve (`REFUSED`) cannot be, so it counts at once.
- Who was silent must pass `healthy_threshold` checks in a row. Who only said no is believed when it says yes: one is
  enough. So it is for a server that never was healthy yet, or every new server would wait for its calls.
"""

from __future__ import annotations

from enum import Enum


class Sign(Enum):
    """What one check found."""

    PASSED = "passed"
    """The server answers, and says that it serves if it was asked."""
    REFUSED = "refused"
    """The server answers that it does not serve."""
    FAILED = "failed"
    """No answer, or none that makes sense."""


class HealthState:
    """Whether one server is healthy, by the signs so far."""

    __slots__ = ("_failed", "_healthy_threshold", "_needed", "_passed", "_proven", "_unhealthy_threshold", "healthy")

    def __init__(self, unhealthy_threshold: int, healthy_threshold: int) -> None:
        """Both at least 1."""
        self.healthy = True
        self._unhealthy_threshold = unhealthy_threshold
        self._healthy_threshold = healthy_threshold
        self._proven = False
        """It has passed a check, ever."""
        self._failed = 0
        """Failures in a row, while healthy."""
        self._passed = 0
        """Passes in a row, while unhealthy."""
        self._needed = 1
        """Passes in a row that make it healthy."""

    def observe(self, sign: Sign) -> bool:
        """Take one sign into account. Returns whether `healthy` has changed."""
        before = self.healthy
        if sign is Sign.PASSED:
            self._failed = 0
            self._passed += 1
            self._proven = True
            self.healthy = before or self._passed >= self._needed
        else:
            self._passed = 0
            self._failed += 1
            enough = sign is Sign.REFUSED or self._failed >= self._unhealthy_threshold or not self._proven
            self.healthy = before and not enough
            self._needed = self._healthy_threshold if self._proven and sign is Sign.FAILED else 1
        return self.healthy != before

    @property
    def calm(self) -> bool:
        """Healthy, and the last sign says so too: nothing to look into."""
        return self.healthy and not self._failed
