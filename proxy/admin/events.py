"""What happens to the cluster, told to whoever listens.

A listener that does not keep up loses the oldest of what waits for it, and sees that by a gap in the ids: nobody who
watches may make the proxy's memory grow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from proxy.admin.schema import Event

KEPT: Final = 256
"""Events that a listener who was away can still have."""
MAX_WAITING: Final = 256
"""Events that wait for one listener."""


class Subscription:
    """One listener's queue."""

    def __init__(self, earlier: list[Event]) -> None:
        self._waiting = deque(earlier, maxlen=MAX_WAITING)
        self._something = asyncio.Event()
        self._closed = False
        if earlier:
            self._something.set()

    def put(self, event: Event) -> None:
        """One more; the oldest that waits is dropped if there are too many."""
        self._waiting.append(event)
        self._something.set()

    def close(self) -> None:
        """There will be no more."""
        self._closed = True
        self._something.set()

    async def next(self) -> list[Event] | None:
        """Everything that has happened since, once there is something; None: there will be nothing more."""
        await self._something.wait()
        self._something.clear()
        events = list(self._waiting)
        self._waiting.clear()
        if not events and self._closed:
            return None
        if self._closed:
            self._something.set()
        return events


class EventBus:
    """Publishes events in order. Cheap while nobody listens."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=KEPT)
        self._subscriptions: set[Subscription] = set()
        self._closed = False
        self.last_id = 0

    def publish(self, kind: str, *, endpoint: str = "", cause: str = "", detail: str = "") -> Event:
        """Tell all listeners. `kind`: see `schema.Event.type`."""
        self.last_id += 1
        event = Event(id=self.last_id, at=datetime.now(UTC), type=kind, endpoint=endpoint, cause=cause, detail=detail)
        self._kept.append(event)
        for subscription in self._subscriptions:
            subscription.put(event)
        return event

    @property
    def listeners(self) -> int:
        """How many there are."""
        return len(self._subscriptions)

    @contextmanager
    def subscribe(self, after: int | None = None) -> Iterator[Subscription]:
        """Listen. `after`: begin with what followed the event with this id, as far as it is kept; None: with the next
        that happens.
        """
        # An id from before a restart is higher than any of ours: then all that is kept is news.
        missed = [] if after is None else [each for each in self._kept if each.id > after or after > self.last_id]
        subscription = Subscription(missed)
        if self._closed:
            subscription.close()
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    def close(self) -> None:
        """The end: listeners get what waits for them and are let go."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()
