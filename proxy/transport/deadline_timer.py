"""The clock behind the deadline wheel."""

from __future__ import annotations

from proxy.forwarding.deadlines import DeadlineWheel
from proxy.transport.reactor import Handle, Reactor


class DeadlineTimer:
    """One timer of the reactor for all deadlines: always armed for the earliest."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._handle: Handle | None = None
        self.wheel = DeadlineWheel(self._arm)

    def _arm(self, at: float) -> None:
        self.cancel()
        self._handle = self._reactor.call_later(at - self._reactor.now(), self._fire)

    def _fire(self) -> None:
        self.wheel.expire(self._reactor.now())

    def cancel(self) -> None:
        """Expire nothing more."""
        if self._handle is not None:
            self._handle.cancel()
