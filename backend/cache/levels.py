"""The two levels in memory, without the store: pure, and O(1) in every operation.

Each level is a dict from chat id to resident in order of use, least recent first. A session is in one level at most:

    enter ──> L1 ──demotion──> L2 ──eviction──> out of memory
               ^                │
               └───promotion────┘

A level of capacity 0 is not there: sessions pass it by, and a move counts where it ends (from L1 straight out of
memory is an eviction, no demotion). A session larger than all of a level passes it by as well; that is counted and
told, as it can never be a hit there.

With limits in bytes one session that grows may push out several. Each was pushed in once, so it stays O(1) per message
over time.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from backend.session import Message, Session

if TYPE_CHECKING:
    from collections.abc import Callable


_new: Final = tuple.__new__
_size: Final = attrgetter("size")


class CacheLevel(enum.IntEnum):
    """Where a session was found."""

    L1 = 0
    L2 = 1
    DISK = 2
    MISS = 3
    """Nowhere: a new session."""


class Resident:
    """A session in memory, and what the cache knows of it besides. The session is exchanged as messages come."""

    __slots__ = ("_log", "chat_id", "level", "positions", "session", "size", "used")

    def __init__(self, session: Session, used: float = 0.0) -> None:
        self.chat_id = session.chat_id
        self.session = session
        """As of its last message. Exchanged by `append` and `replace` alone."""
        self._log: list[Message] | None = None
        """That of the session, if it is ours to add to."""
        self.size = session.size
        """Bytes of the session."""
        self.used = used
        """When it was last asked for, on the cache's clock; kept if sessions have a time to live."""
        self.positions: dict[str, int] | None = None
        """Message id -> position of the messages in `session.recent`, where the cache answers for duplicates itself."""
        self.level: Level | None = None
        """Where it is; None: not in memory any more."""

    def replace(self, session: Session) -> None:
        """The same session with other contents. Its level may be overfull then, until something enters it."""
        self.session = session
        self._log = None
        by = session.size - self.size
        self.size += by
        if self.level is not None:
            self.level.bytes += by

    def append(self, message: Message, epoch: int, keep: int) -> Session:
        """Goes on by a message, to the session that is returned. `keep`: the most recent messages to hold, at least 1;
        as many older ones may still be in memory. Its level may be overfull then, until it enters again.
        """
        chat_id, length, _, messages, start, end = self.session
        by = message.size
        if end - start >= keep:
            if self.positions is not None:
                self.positions.pop(messages[start].message_id, None)
            start += 1
        log = self._log
        if log is None or start >= keep:
            # Rare: the session is new here, or has as many messages behind it as it holds.
            by -= sum(map(_size, messages[:start]))
            log = self._log = list(messages[start:end])
            start, end = 0, len(log)
        log.append(message)
        # Past the named tuple's own constructor: a third of its time.
        session = self.session = _new(Session, (chat_id, length + 1, epoch, log, start, end + 1))
        self.size += by
        if self.level is not None:
            self.level.bytes += by
        return session


class Level:
    """One level: its limits, what is in it, and what happened to it so far."""

    __slots__ = ("bytes", "capacity", "departures", "max_bytes", "name", "residents", "too_large")

    def __init__(self, name: CacheLevel, capacity: int, max_bytes: int | None) -> None:
        self.name = name
        self.capacity = capacity
        """The most sessions."""
        self.max_bytes = max_bytes
        """The most bytes of sessions; None: any."""
        self.residents: OrderedDict[str, Resident] = OrderedDict()
        """The least recent first."""
        self.bytes = 0
        """Of the sessions in it."""
        self.departures = 0
        """Sessions that had to go down for want of room."""
        self.too_large = 0
        """Times that a session larger than all of the level passed it by."""

    def holds(self, size: int) -> bool:
        """Whether a session of so many bytes has room here at all, were it empty."""
        return self.capacity > 0 and (self.max_bytes is None or size <= self.max_bytes)

    def chats(self) -> list[str]:
        """The chat ids, most recent first."""
        return list(reversed(self.residents))

    def put(self, resident: Resident) -> None:
        """In as the most recent. It must be nowhere."""
        self.residents[resident.chat_id] = resident
        self.bytes += resident.size
        resident.level = self

    def take(self, resident: Resident) -> None:
        """Out. It must be here."""
        del self.residents[resident.chat_id]
        self.bytes -= resident.size
        resident.level = None

    def overfull(self) -> bool:
        """Whether the least recent one has to go."""
        return len(self.residents) > self.capacity or (self.max_bytes is not None and self.bytes > self.max_bytes)


class CacheLevels:
    """L1 and L2. Capacities are in sessions, 0 or more; limits in bytes 1 or more, None for none.

    `evicted` is told of each session that leaves memory for want of room, `too_large` of each that passes a level by
    because it is larger than all of it.
    """

    def __init__(
        self,
        l1_capacity: int,
        l2_capacity: int,
        *,
        l1_bytes: int | None = None,
        l2_bytes: int | None = None,
        evicted: Callable[[Resident], None] | None = None,
        too_large: Callable[[Resident, Level], None] | None = None,
    ) -> None:
        if l1_capacity < 0 or l2_capacity < 0:
            raise ValueError(f"capacities must be 0 or more, not {l1_capacity} and {l2_capacity}")
        self.l1 = Level(CacheLevel.L1, l1_capacity, l1_bytes)
        self.l2 = Level(CacheLevel.L2, l2_capacity, l2_bytes)
        self._evicted = evicted
        self._too_large = too_large
        self.demotions = 0
        """Sessions that went from L1 to L2, so far."""
        self.promotions = 0
        """Sessions that went from L2 to L1, so far."""
        self.evictions = 0
        """Sessions that went out of memory for want of room, so far."""

    def find(self, chat_id: str) -> Resident | None:
        """The session, in whichever level it is. Looking is no use: nothing moves."""
        return self.l1.residents.get(chat_id) or self.l2.residents.get(chat_id)

    def enter(self, resident: Resident) -> None:
        """Makes the session, wherever it is, the most recent of the highest level that can hold it.

        What is too much in L1 goes to L2, and what is too much there goes out of memory. A session of the same chat
        that is another resident must have been discarded.
        """
        before = resident.level
        if before is not None:
            before.take(resident)
        l1, l2 = self.l1, self.l2
        if self._fits(resident, l1):
            self.promotions += before is l2
            l1.put(resident)
            while l1.overfull():
                oldest = next(iter(l1.residents.values()))
                l1.take(oldest)
                self._go_down(oldest, l1)
        else:
            self._go_down(resident, before)

    def used(self, resident: Resident) -> None:
        """The session has grown or shrunk, and is the most recent: `enter`, in a third of its time for nearly all."""
        l1 = self.l1
        if resident.level is l1 and (l1.max_bytes is None or l1.bytes <= l1.max_bytes):
            l1.residents.move_to_end(resident.chat_id)
        else:
            self.enter(resident)

    def _go_down(self, resident: Resident, before: Level | None) -> None:
        """Into L2, or out of memory. `before`: where it was."""
        l2 = self.l2
        if not self._fits(resident, l2):
            self._leave(resident, before)
            return
        if before is self.l1:
            self.demotions += 1
            before.departures += 1
        l2.put(resident)
        while l2.overfull():
            oldest = next(iter(l2.residents.values()))
            l2.take(oldest)
            self._leave(oldest, l2)

    def _fits(self, resident: Resident, level: Level) -> bool:
        if level.holds(resident.size):
            return True
        if level.capacity:
            level.too_large += 1
            if self._too_large is not None:
                self._too_large(resident, level)
        return False

    def _leave(self, resident: Resident, before: Level | None) -> None:
        if before is not None:
            before.departures += 1
        self.evictions += 1
        if self._evicted is not None:
            self._evicted(resident)

    def discard(self, chat_id: str) -> None:
        """Forgets a session that can no longer be trusted, or is over. Not an eviction; nothing happens if it is not
        there.
        """
        resident = self.find(chat_id)
        if resident is not None and resident.level is not None:
            resident.level.take(resident)

    def idle_since(self, before: float) -> list[str]:
        """The least recent chats of each level, as far as they were last used before that time."""
        found = []
        for level in (self.l1, self.l2):
            for chat_id, resident in level.residents.items():
                if resident.used >= before:
                    break
                found.append(chat_id)
        return found
