"""The session cache over the store.

Write-through: a message is in the store before it is acknowledged, so a session that leaves memory leaves nothing to
write, and a server that is killed loses nothing it answered for.

Several servers may share one store, and a chat may come back after another server served it. So what memory says is a
guess, and the store is asked on every message: each append says how long the session is believed to be, and the store
refuses it when it is longer. Then the session is read again and the message applied to that.

Recency is the order in which messages were acknowledged: `CacheLevels` moves once per message, when it is in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from backend.cache.levels import CacheLevel, CacheLevels
from backend.cache.locks import ChatLocks
from backend.errors import ContentionError
from backend.session import Session
from backend.store.base import Appended, Duplicate

if TYPE_CHECKING:
    from backend.session import Message
    from backend.store.base import SessionStore

_APPEND_ATTEMPTS = 8
"""One conflict is what failback makes. More need two servers writing to one chat at the same moment: rare
outside of a split cluster, and each is one cheap round trip. Losing eight times in a row ends the call."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Counts since the start. A request is a session asked for and given; failed ones are not counted."""

    l1_hits: int
    l2_hits: int
    disk_hits: int
    misses: int
    """Sessions found nowhere, so new."""
    demotions: int
    promotions: int
    evictions: int

    @property
    def hits(self) -> int:
        """Sessions found anywhere, also on disk."""
        return self.l1_hits + self.l2_hits + self.disk_hits

    @property
    def requests(self) -> int:
        """Hits and misses."""
        return self.hits + self.misses


class HierarchicalCache:
    """Sessions in L1, L2 and the store.

    `l1_capacity`, `l2_capacity`: in sessions; 0 means the level is not there, both 0 that every session is read from
    the store. `recent_messages`: the most messages of a session held in memory, at least 1. The store stays the
    caller's to close. Operations on one chat run one after another in the order they came, on different chats at the
    same time. A cancelled operation may or may not have written its message.
    """

    def __init__(
        self, l1_capacity: int = 5, l2_capacity: int = 20, *, store: SessionStore, recent_messages: int = 50
    ) -> None:
        self._levels = CacheLevels(l1_capacity, l2_capacity)
        self._store = store
        self._keep = recent_messages
        self._locks = ChatLocks()
        self._found = dict.fromkeys(CacheLevel, 0)

    @property
    def l1_capacity(self) -> int:
        """The most sessions in L1."""
        return self._levels.l1_capacity

    @property
    def l2_capacity(self) -> int:
        """The most sessions in L2."""
        return self._levels.l2_capacity

    async def get_or_create(self, chat_id: str) -> tuple[Session, CacheLevel]:
        """The session, now the most recent of L1, and where it was found. Raises StoreError.

        A new session is empty and in memory only: the store learns of it with its first message. A session found in
        memory may be behind the store if another server serves the chat too; `add_message` finds that out.
        """
        async with self._locks.holding(chat_id):
            session, level = await self._find(chat_id)
            self._enter(session, level)
            return session, level

    async def add_message(self, chat_id: str, message: Message) -> tuple[Session, CacheLevel]:
        """The session after the message, which is then safe in the store, and where the session was found before it.

        A message id the chat has had already adds nothing: the answer is the session as it was after that message the
        first time. Raises StoreError, and ContentionError when other servers write to the chat all the time.
        """
        async with self._locks.holding(chat_id):
            session, level = await self._find(chat_id)
            try:
                for _ in range(_APPEND_ATTEMPTS):
                    result = await self._store.append(chat_id, message, expected_length=session.length)
                    if isinstance(result, Appended):
                        session = session.appended(message, keep=self._keep)
                        self._enter(session, level)
                        return session, level
                    if isinstance(result, Duplicate):
                        return await self._repeated(session, level, result.position)
                    session, level = await self._read(chat_id)
            except BaseException:
                # Nobody knows whether the store has the message, so memory must not claim to.
                self._levels.discard(chat_id)
                raise
            self._levels.discard(chat_id)
            raise ContentionError("other servers keep writing to this chat")

    def statistics(self) -> CacheStatistics:
        """The counters now."""
        return CacheStatistics(
            l1_hits=self._found[CacheLevel.L1],
            l2_hits=self._found[CacheLevel.L2],
            disk_hits=self._found[CacheLevel.DISK],
            misses=self._found[CacheLevel.MISS],
            demotions=self._levels.demotions,
            promotions=self._levels.promotions,
            evictions=self._levels.evictions,
        )

    def l1_chats(self) -> list[str]:
        """The chat ids of L1, most recent first."""
        return self._levels.l1_chats()

    def l2_chats(self) -> list[str]:
        """The chat ids of L2, most recent first."""
        return self._levels.l2_chats()

    async def _find(self, chat_id: str) -> tuple[Session, CacheLevel]:
        return self._levels.find(chat_id) or await self._read(chat_id)

    async def _read(self, chat_id: str) -> tuple[Session, CacheLevel]:
        session = await self._store.load(chat_id, recent=self._keep)
        return (Session(chat_id), CacheLevel.MISS) if session is None else (session, CacheLevel.DISK)

    async def _repeated(self, session: Session, level: CacheLevel, position: int) -> tuple[Session, CacheLevel]:
        if session.length < position:
            session, level = await self._read(session.chat_id)
        self._enter(session, level)
        if session.length == position:
            return session, level
        then = await self._store.load(session.chat_id, recent=self._keep, until=position)
        return then or session, level

    def _enter(self, session: Session, level: CacheLevel) -> None:
        self._found[level] += 1
        self._levels.enter(session)
