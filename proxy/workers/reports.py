"""What a worker reports of its calls: collected for a moment, kept while the parent is behind, and bounded.

No sum depends on it: the numbers of calls are told as totals, so that the next answer makes good for one that was lost.
What reports are for forgets by itself: failures in a row count for one interval of outlier detection, and of a chat
that is away from home and in use the worker tells again. Only `districhat_quarantines_total`, the parent's own count,
misses a quarantine whose failures were lost, and the other workers then learn of it when they see it themselves.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from proxy.workers.messages import EXCHANGE, Ended, ManyMoved, Moved

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.transport.reactor import Handle
    from proxy.workers.channel import Channel

log = logging.getLogger(__name__)

SOON: Final = 0.01
"""Seconds that reports wait for more of them."""
MAX_REPORTS: Final = 10_000
"""Ends of calls that wait, and moved chats; what goes beyond is lost."""


class Reports:
    """Told in bundles, until `stop`."""

    def __init__(self, channel: Channel, call_later: Callable[[float, Callable[[], None]], Handle]) -> None:
        self.lost = 0
        """Since the start."""
        self._channel = channel
        self._call_later = call_later
        self._telling: Handle | None = None
        self._ended: list[tuple[str, str, bytes, float]] = []
        self._moved: dict[bytes, Moved] = {}
        """The latest of each chat."""
        self._lost_before = 0
        """When the parent caught up last."""

    def ended(self, call: tuple[str, str, bytes, float]) -> None:
        """How a call ended, see `Ended`."""
        if len(self._ended) < MAX_REPORTS:
            self._ended.append(call)
            self._tell_soon()
        else:
            self._lose()

    def moved(self, moved: Moved) -> None:
        """Where a chat has gone."""
        if len(self._moved) < MAX_REPORTS or moved.key in self._moved:
            self._moved[moved.key] = moved
            self._tell_soon()
        else:
            self._lose()

    def stop(self) -> None:
        """Tell no more. May be called twice."""
        if self._telling is not None:
            self._telling.cancel()

    def _lose(self) -> None:
        if self.lost == self._lost_before:
            log.warning("the parent does not keep up: reports of calls are lost")
        self.lost += 1

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = self._call_later(SOON, self._tell)

    def _tell(self) -> None:
        if self._channel.slow:
            self._telling = self._call_later(EXCHANGE, self._tell)
            return
        self._telling = None
        if self._ended:
            self._channel.send(Ended(tuple(self._ended)))
            self._ended.clear()
        if self._moved:
            self._channel.send(ManyMoved(tuple(self._moved.values())), must=True)  # the first may have filled it
            self._moved.clear()
        if self.lost > self._lost_before:
            log.warning("the parent keeps up again: %d reports of calls were lost", self.lost - self._lost_before)
            self._lost_before = self.lost
