"""The two levels in memory, without the store: pure, and O(1) in every operation.

Each level is a dict from chat id to session in order of use, least recent first. A session is in one level at most:

    enter ──> L1 ──demotion──> L2 ──eviction──> out of memory
               ^                │
               └───promotion────┘

A level of capacity 0 is not there: sessions pass it by, and a move counts where it ends (from L1 straight out of
memory is an eviction, no demotion).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.session import Session


class CacheLevel(enum.Enum):
    """Where a session was found."""

    L1 = "L1"
    L2 = "L2"
    DISK = "disk"
    MISS = "miss"
    """Nowhere: a new session."""


class CacheLevels:
    """L1 and L2. Capacities are in sessions, 0 or more."""

    def __init__(self, l1_capacity: int, l2_capacity: int) -> None:
        if l1_capacity < 0 or l2_capacity < 0:
            raise ValueError(f"capacities must be 0 or more, not {l1_capacity} and {l2_capacity}")
        self.l1_capacity = l1_capacity
        self.l2_capacity = l2_capacity
        self._l1: OrderedDict[str, Session] = OrderedDict()
        self._l2: OrderedDict[str, Session] = OrderedDict()
        self.demotions = 0
        """Sessions that went from L1 to L2, so far."""
        self.promotions = 0
        """Sessions that went from L2 to L1, so far."""
        self.evictions = 0
        """Sessions that went out of memory for want of room, so far."""

    def find(self, chat_id: str) -> tuple[Session, CacheLevel] | None:
        """The session and its level, or None. Looking is no use: nothing moves."""
        session = self._l1.get(chat_id)
        if session is not None:
            return session, CacheLevel.L1
        session = self._l2.get(chat_id)
        if session is not None:
            return session, CacheLevel.L2
        return None

    def enter(self, session: Session) -> None:
        """Makes the session the most recent of L1 (without an L1: of L2), in place of an earlier state of it.

        What is too much in L1 goes to L2, and what is too much there goes out of memory.
        """
        chat_id = session.chat_id
        if not self.l1_capacity:
            self._enter_l2(session)
            return
        if chat_id not in self._l1:
            if self._l2.pop(chat_id, None) is not None:
                self.promotions += 1
            if len(self._l1) >= self.l1_capacity:
                _, oldest = self._l1.popitem(last=False)
                self.demotions += bool(self.l2_capacity)
                self._enter_l2(oldest)
        self._l1[chat_id] = session
        self._l1.move_to_end(chat_id)

    def _enter_l2(self, session: Session) -> None:
        chat_id = session.chat_id
        if chat_id not in self._l2 and len(self._l2) >= self.l2_capacity:
            self.evictions += 1
            if not self.l2_capacity:
                return
            self._l2.popitem(last=False)
        self._l2[chat_id] = session
        self._l2.move_to_end(chat_id)

    def discard(self, chat_id: str) -> None:
        """Forgets a session that can no longer be trusted. Not an eviction; nothing happens if it is not there."""
        self._l1.pop(chat_id, None)
        self._l2.pop(chat_id, None)

    def l1_chats(self) -> list[str]:
        """The chat ids of L1, most recent first."""
        return list(reversed(self._l1))

    def l2_chats(self) -> list[str]:
        """The chat ids of L2, most recent first."""
        return list(reversed(self._l2))
