"""Collects the connections that have something to say and flushes each once per event-loop pass.

This is where a busy proxy saves its system calls: all calls that arrived in one pass and go to the same server leave
in one write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy.http2.limits import Backlog


class Flushable(Protocol):
    """A connection as the outbox sees it."""

    def flush(self) -> None:
        """Write out what the engine has to say."""

    def fail(self, error: Exception) -> None:
        """Give up this connection, and only this one, because of a bug of ours."""


class Outbox:
    """The dirty list.

    `call_soon(callback)` runs a callback in the next pass of the event loop.
    """

    __slots__ = ("_call_soon", "_pending", "backlog")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object], backlog: Backlog) -> None:
        self._call_soon = call_soon
        self.backlog = backlog
        """What cannot go out."""
        self._pending: list[Flushable] = []

    def add(self, connection: Flushable) -> None:
        """Flush `connection` in the next pass. The caller sees to it that it is not added twice."""
        if not self._pending:
            self._call_soon(self._flush)
        self._pending.append(connection)

    def _flush(self) -> None:
        pending = self._pending
        try:
            # The list grows while it is walked: a flush that returns credit makes the other side's connection dirty.
            for connection in pending:
                try:
                    connection.flush()
                except Exception as error:
                    connection.fail(error)
        finally:
            # Whatever happened: with anything left in it, nothing would ever be scheduled again.
            pending.clear()
