"""Collects the connections that have something to say and flushes each once per event-loop pass.

This is where a busy proxy saves its system calls: all calls that arrived in one pass and go to the same server leave
in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.http2.limits import Backlog
from proxy.http2.pass_clock import PassClock
from proxy.http2.turns import Turns


class Flushable(Protocol):
    """A connection as the outbox sees it."""

    def flush(self) -> None:
        """Write out what the engine has to say."""

    def fail(self, error: Exception) -> None:
        """Give up this connection, and only this one, because of a bug of ours."""


class Outbox:
    """The dirty list.

    `call_soon(callback)` runs a callback in the next pass of the event loop. `clock`: of the passes.
    """

    __slots__ = ("_call_soon", "_flusher", "backlog", "clock", "pending", "turns")

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        backlog: Backlog,
        clock: PassClock,
        turns: Turns,
    ) -> None:
        self._call_soon = call_soon
        self.backlog = backlog
        """What cannot go out."""
        self.clock = clock
        self.turns = turns
        """Of those who have much to say to us."""
        self._flusher = self._flush
        self.pending: list[Flushable] = []
        """Those who have something to say in this pass."""

    def add(self, connection: Flushable) -> None:
        """Flush `connection` in the next pass. The caller sees to it that it is not added twice."""
        if not self.pending:
            self.schedule()
        self.pending.append(connection)

    def schedule(self) -> None:
        """The first of a pass is about to be put into `pending`."""
        self._call_soon(self._flusher)

    def _flush(self) -> None:
        pending = self.pending
        worse: list[Exception] = []
        try:
            # The list grows while it is walked: a flush that returns credit makes the other side's connection dirty.
            for connection in pending:
                try:
                    connection.flush()
                except Exception as error:
                    self._give_up(connection, error, worse)
        finally:
            self.clock.fresh = False
            # Whatever happened: with anything left in it, nothing would ever be scheduled again.
            pending.clear()
        if worse:
            raise worse[0]  # for the event loop to report

    @staticmethod
    def _give_up(connection: Flushable, error: Exception, worse: list[Exception]) -> None:
        try:
            connection.fail(error)
        except Exception as another:
            # The rest of the pass comes first: a connection that is marked dirty and left out never speaks again.
            worse.append(another)

    def time_next(self) -> None:
        """Have the clock observe the next pass, if bytes begin it."""
        self._flusher = self._flush_timed

    def _flush_timed(self) -> None:
        self._flusher = self._flush
        clock = self.clock
        fresh, began, written = clock.fresh, clock.time, len(self.pending)
        self._flush()
        if fresh:
            clock.observe(began, written)
