"""What keeps one peer from costing the others: buckets, the backlog of bytes, and the error that ends a connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ngh2 import ErrorCode

from proxy.errors import DistriChatError


class LimitExceeded(DistriChatError):  # noqa: N818 - a verdict about the peer, not a fault of this program
    """The peer went beyond a limit and loses its connection. Handlers of events raise it.

    `limit` is the name of the counter (`LimitCounters`), `code` goes out with GOAWAY, `detail` is for people.
    """

    def __init__(self, limit: str, detail: str, code: ErrorCode = ErrorCode.ENHANCE_YOUR_CALM) -> None:
        super().__init__(detail)
        self.limit = limit
        self.code = code
        self.detail = detail


class TokenBucket:
    """`burst` events at once, `rate` a second in the long run. Starts full."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, burst: int, rate: float) -> None:
        self._burst = burst
        self._rate = rate
        self._tokens = float(burst)
        self._at = 0.0

    def take(self, now: float) -> bool:
        """Whether there was a token for one event at `now` (seconds, never going back)."""
        self._tokens = min(float(self._burst), self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


class Holder(Protocol):
    """A connection, as the backlog sees it."""

    waiting: int
    """Bytes of it that the backlog counts."""

    def excess(self, limit: int) -> int:
        """By how many bytes one peer holds more than `limit` here; zero or less: it does not."""

    def shed(self, amount: int) -> int:
        """Give up calls that hold `amount` bytes or more, of the peer that holds most, those that hold most first.
        Returns how many bytes they hold: they are about to be gone.
        """


class Backlog:
    """Bytes that wait in all connections together because their receivers do not take them.

    Flow control bounds what one call can hold; a peer with a thousand calls needs this bound besides. A connection is
    counted only while something waits in it, so that one which keeps up costs nothing here.
    """

    __slots__ = ("_exceeded", "_holders", "max_per_connection", "max_total", "total")

    def __init__(self, max_per_connection: int, max_total: int, exceeded: Callable[[str, str], None]) -> None:
        """`exceeded(limit, detail)` is told when somebody is about to lose calls."""
        self._exceeded = exceeded
        self._holders: set[Holder] = set()
        self.total = 0
        self.configure(max_per_connection, max_total)

    def configure(self, max_per_connection: int, max_total: int) -> None:
        """Go by these limits from the next byte on."""
        self.max_per_connection = max_per_connection
        self.max_total = max_total

    def put(self, holder: Holder, waiting: int) -> None:
        """`holder` now has `waiting` bytes; 0 when it is gone. What is too much is shed down to three quarters of the
        limit, so that a peer at the limit does not cost a search with every byte.
        """
        self._count(holder, waiting)
        if waiting > self.max_per_connection and (excess := holder.excess(self.max_per_connection)) > 0:
            self._exceeded("buffered_per_connection", f"{waiting} bytes wait for one peer that does not take them")
            self._shed(holder, excess + self.max_per_connection // 4)
        elif self.total > self.max_total and waiting:
            largest = max(self._holders, key=lambda each: each.waiting)
            self._exceeded("buffered", f"{self.total} bytes wait for peers that do not take them")
            self._shed(largest, self.total - self.max_total * 3 // 4)

    def _shed(self, holder: Holder, amount: int) -> None:
        before = holder.waiting
        gone = holder.shed(amount)
        if holder.waiting == before:
            # It is weighed again when it is flushed. Until then others would find the same bytes too many once more.
            self._count(holder, max(0, before - gone))

    def _count(self, holder: Holder, waiting: int) -> None:
        self.total += waiting - holder.waiting
        holder.waiting = waiting
        if waiting:
            self._holders.add(holder)
        else:
            self._holders.discard(holder)
