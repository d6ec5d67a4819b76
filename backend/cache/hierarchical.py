"""The session cache over the store.

Write-through, the default: a message is in the store before it is acknowledged, so a session that leaves memory leaves
nothing to write, and a server that is killed loses nothing it answered for. Write-back: a message is acknowledged from
memory and written when its session leaves memory, at a drain, and at least every so often; a server that is killed
loses what it had not written.

Several servers may share one store, and a chat may come back after another server served it. So what memory says is a
guess. With write-through the store is asked on every message: each append says which version of the session it goes on
from, and the store refuses it when that is not the last. Then the session is read again and the message applied to
that. With write-back the same is found out when the messages are written: they go to the end of what the other server
wrote, each once.

Recency is the order in which messages were acknowledged: `CacheLevels` moves once per message.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from backend.cache.levels import CacheLevel, CacheLevels, Level, Resident
from backend.cache.locks import ChatLocks
from backend.cache.unwritten import Unwritten
from backend.errors import ContentionError
from backend.session import NEW, Message, Session, Version
from backend.store.base import Appended, Duplicate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backend.store.base import SessionStore

_log = logging.getLogger(__name__)

_APPEND_ATTEMPTS = 8
"""One conflict is what failback makes. More need two servers writing to one chat at the same moment: rare
outside of a split cluster, and each is one cheap round trip. Losing eight times in a row ends the call."""
_WRITES_AT_ONCE = 256
"""Chats whose messages are written at the same time: they share the store's commits."""
_BATCH: Final = 1024
"""Messages of a chat written in one step, at most: others wait meanwhile."""

L1: Final = CacheLevel.L1
DISK: Final = CacheLevel.DISK


Applied = tuple[Session, CacheLevel, bool]
"""A message is in its session: the session after it (it is the last one of `recent`), where that was found before it,
and whether the message was there already; the session is then as it was after it the first time."""


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
    duplicates: int
    """Messages that came again."""
    conflicts: int
    """Times that memory was behind the store."""
    expired: int
    """Sessions that memory gave up because their time to live was over."""
    ended: int
    """Sessions that a client ended."""
    unwritten: int
    """Messages acknowledged and not in the store yet (write-back)."""

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
    the store. `l1_bytes`, `l2_bytes`: in bytes besides, None for no limit. `recent_messages`: the most messages of a
    session held in memory, at least 1. `session_ttl`: seconds without a message after which a session in memory is not
    believed in any more; the store must have been told the same. `unwritten_limit`: messages that write-back may hold
    before it writes through, None for write-through. `dedupe_window`: that of the store, or less. The store stays the
    caller's to close. Operations on one chat run one after another in the order they came, on different chats at the
    same time. A cancelled operation may or may not have written its message.
    """

    def __init__(
        self,
        l1_capacity: int = 5,
        l2_capacity: int = 20,
        *,
        store: SessionStore,
        l1_bytes: int | None = None,
        l2_bytes: int | None = None,
        recent_messages: int = 50,
        session_ttl: float | None = None,
        unwritten_limit: int | None = None,
        dedupe_window: int = 1024,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.levels = CacheLevels(
            *(l1_capacity, l2_capacity),
            l1_bytes=l1_bytes,
            l2_bytes=l2_bytes,
            evicted=self._evicted,
            too_large=self._too_large,
        )
        self._store = store
        self._keep = recent_messages
        self._ttl = session_ttl
        self._unwritten = None if unwritten_limit is None else Unwritten(unwritten_limit)
        # What is written at once fits into the window: when its answer is lost, all of it is known the next time.
        self._batch = min(dedupe_window, _BATCH)
        self._clock = clock or asyncio.get_running_loop().time
        self._locks = ChatLocks()
        self._held = self._locks.held
        self._l1 = self.levels.l1
        self._in_l1 = self._l1.residents
        self._found = [0] * len(CacheLevel)
        self._told: set[CacheLevel] = set()
        self._duplicates = self._conflicts = self._expired = self._ended = 0
        self.eviction = asyncio.Event()
        """Set when a session left memory that has messages to write: somebody shall call `write_out`."""

    async def get_or_create(self, chat_id: str) -> tuple[Session, CacheLevel]:
        """The session, now the most recent of L1, and where it was found. Raises StoreError.

        A new session is empty and in memory only: the store learns of it with its first message. A session found in
        memory may be behind the store if another server serves the chat too; `add_message` finds that out.
        """
        async with self._locks.holding(chat_id):
            resident, level = await self._find(chat_id)
            self._found[level] += 1
            self.levels.enter(resident)
            return resident.session, level

    async def add_message(self, chat_id: str, message: Message) -> Applied:
        """Applies the message, once for its id: one that the chat has already adds nothing.

        With write-through it is then safe in the store. Raises StoreError, and ContentionError when other servers write
        to the chat all the time.
        """
        unwritten = self._unwritten
        if unwritten is not None:
            # The fast path, 1 us: nobody else is at this chat, and nothing here waits, so the lock need not be taken.
            resident = self._in_l1.get(chat_id)
            if resident is not None and chat_id not in self._held:
                applied = self._apply(resident, L1, message, unwritten)
                if applied is not None:
                    return applied
            return await self._write_back(chat_id, message, unwritten)
        async with self._locks.holding(chat_id):
            return await self._write_through(chat_id, message)

    async def set_reply(self, session: Session, reply: str) -> str:
        """Keeps the reply to the last message of `session` with that message. Returns it, or the one it has already.

        Nothing happens if the chat was ended meanwhile. Raises StoreError.
        """
        chat_id, message = session.chat_id, session.last
        async with self._locks.holding(chat_id):
            resident = self.levels.find(chat_id)
            if self._unwritten is not None and self._unwritten.set_reply(chat_id, message, reply):
                kept: str | None = reply
            else:
                epoch, position = session.version
                if self._unwritten is not None:
                    epoch, position = await self._written_at(chat_id, message)
                kept = await self._store.set_reply(chat_id, epoch, position, reply)
            if kept is not None and resident is not None:
                self._complete(resident, session.length, message, kept)
            return reply if kept is None else kept

    async def end(self, chat_id: str) -> int:
        """Frees the session in memory and in the store. Returns how many messages it had, 0 if there was none. Raises
        StoreError; then it is not known whether the store has it.
        """
        async with self._locks.holding(chat_id):
            unwritten = 0 if self._unwritten is None else self._unwritten.forget(chat_id)
            self.levels.discard(chat_id)
            length = await self._store.end(chat_id) + unwritten
            self._ended += length > 0
            return length

    async def written(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """The session as `SessionStore.load` gives it, once all its messages are in the store. Raises StoreError."""
        if self._unwritten is not None and self._unwritten.of(chat_id):
            async with self._locks.holding(chat_id):
                await self._write(chat_id, self._unwritten)
        return await self._store.load(chat_id, recent=recent, until=until)

    async def absorb(self, chat_id: str, messages: Sequence[Message], *, whole: bool) -> int:
        """Appends those of another server's messages that the session does not have. Returns how many. `whole`: as in
        `SessionStore.extend`. Raises StoreError.
        """
        async with self._locks.holding(chat_id):
            if self._unwritten is not None:
                await self._write(chat_id, self._unwritten)
            new = 0
            for start in range(0, len(messages), self._batch):
                result = await self._store.extend(chat_id, messages[start : start + self._batch], whole=whole)
                if result.after != result.before:
                    self.levels.discard(chat_id)
                new += result.after.length - result.before.length
            return new

    async def write_out(self, *, evicted_only: bool = False) -> None:
        """Writes what write-back holds; `evicted_only`: of the sessions that left memory. Raises StoreError if some
        could not be written, after trying all; those stay.
        """
        unwritten = self._unwritten
        if unwritten is None:
            return
        self.eviction.clear()
        chats = [chat for chat in unwritten.chats if not evicted_only or self.levels.find(chat) is None]
        failures: list[BaseException] = []
        for start in range(0, len(chats), _WRITES_AT_ONCE):
            some = chats[start : start + _WRITES_AT_ONCE]
            results = await asyncio.gather(
                *(self._write_locked(chat, unwritten) for chat in some), return_exceptions=True
            )
            failures += [result for result in results if result is not None]
        if failures:
            raise failures[0]

    def forget_idle(self) -> int:
        """Frees memory of sessions whose time to live is over. Returns how many."""
        if self._ttl is None:
            return 0
        idle = [chat for chat in self.levels.idle_since(self._clock() - self._ttl) if chat not in self._locks.held]
        for chat_id in idle:
            self._expire(chat_id)
        return len(idle)

    def statistics(self) -> CacheStatistics:
        """The counters now."""
        l1_hits, l2_hits, disk_hits, misses = self._found
        return CacheStatistics(
            l1_hits=l1_hits,
            l2_hits=l2_hits,
            disk_hits=disk_hits,
            misses=misses,
            demotions=self.levels.demotions,
            promotions=self.levels.promotions,
            evictions=self.levels.evictions,
            duplicates=self._duplicates,
            conflicts=self._conflicts,
            expired=self._expired,
            ended=self._ended,
            unwritten=0 if self._unwritten is None else self._unwritten.count,
        )

    # Finding.

    async def _find(self, chat_id: str) -> tuple[Resident, CacheLevel]:
        """The session and where it is. It is not moved, and one from the store not entered."""
        resident = self.levels.find(chat_id)
        if resident is None:
            if self._unwritten is not None:  # evicted a moment ago
                await self._write(chat_id, self._unwritten)
        elif self._ttl is not None and self._clock() - resident.used > self._ttl:
            self._expire(chat_id)
        else:
            assert resident.level is not None  # noqa: S101 - it was found in one
            return resident, resident.level.name
        return await self._read(chat_id)

    async def _read(self, chat_id: str) -> tuple[Resident, CacheLevel]:
        session = await self._store.load(chat_id, recent=self._keep)
        used = 0.0 if self._ttl is None else self._clock()
        return Resident(session or Session(chat_id), used), CacheLevel.MISS if session is None else DISK

    def _expire(self, chat_id: str) -> None:
        if self._unwritten is not None:
            self._unwritten.forget(chat_id)
        self.levels.discard(chat_id)
        self._expired += 1

    # Write-through.

    async def _write_through(self, chat_id: str, message: Message) -> Applied:
        resident, level = await self._find(chat_id)
        try:
            for _ in range(_APPEND_ATTEMPTS):
                result = await self._store.append(chat_id, message, expected=resident.session.version)
                if isinstance(result, Appended):
                    return self._advance(resident, level, message, result.epoch), level, False
                if isinstance(result, Duplicate):
                    return await self._repeated(resident, level, Version(result.epoch, result.position))
                self._conflicts += 1
                self.levels.discard(chat_id)
                resident, level = await self._read(chat_id)
        except BaseException:
            # Nobody knows whether the store has the message, so memory must not claim to.
            self.levels.discard(chat_id)
            raise
        self.levels.discard(chat_id)
        raise ContentionError("other servers keep writing to this chat")

    async def _repeated(self, resident: Resident, level: CacheLevel, version: Version) -> Applied:
        """The session as of a message that was applied before: in that version."""
        session = resident.session
        if session.epoch != version.epoch or session.length < version.length:
            self._conflicts += 1
            self.levels.discard(session.chat_id)
            resident, level = await self._read(session.chat_id)
            session = resident.session
        self._duplicates += 1
        self._found[level] += 1
        self.levels.enter(resident)
        if session.length != version.length:
            then = await self._store.load(session.chat_id, recent=self._keep, until=version.length)
            session = then or session
        return session, level, True

    def _advance(self, resident: Resident, level: CacheLevel, message: Message, epoch: int) -> Session:
        """The session in memory goes on by one message that is safe, and is now the most recent."""
        session = resident.append(message, epoch, self._keep)
        if resident.positions is not None and message.message_id:
            resident.positions[message.message_id] = session.length
        if self._ttl is not None:
            resident.used = self._clock()
        self._found[level] += 1
        self.levels.used(resident)
        return session

    # Write-back.

    async def _write_back(self, chat_id: str, message: Message, unwritten: Unwritten) -> Applied:
        async with self._locks.holding(chat_id):
            if unwritten.count < unwritten.limit:
                resident, level = await self._find(chat_id)
                if (applied := self._apply(resident, level, message, unwritten)) is not None:
                    return applied
            await self._write(chat_id, unwritten)
            return await self._write_through(chat_id, message)

    def _apply(self, resident: Resident, level: CacheLevel, message: Message, unwritten: Unwritten) -> Applied | None:
        """In memory. None, with nothing changed: there is no room to hold it, the session's time is over, or it is a
        repeated message that memory does not reach back to.
        """
        ttl = self._ttl
        if unwritten.count >= unwritten.limit or (ttl is not None and self._clock() - resident.used > ttl):
            return None
        session = resident.session
        message_id = message.message_id
        positions = resident.positions
        if positions is None:
            positions = resident.positions = _positions(session)
        if message_id:
            if message_id in positions:
                return self._repeated_in_memory(resident, level, positions[message_id])
            positions[message_id] = session.length + 1
        chat_id = resident.chat_id
        # From here on three calls less, as this is every message of write-back: 0.15 us of 1.1.
        waiting = unwritten.chats.get(chat_id)
        if waiting is None:
            unwritten.chats[chat_id] = [message]
        else:
            waiting.append(message)
        unwritten.count += 1
        # `_advance`:
        session = resident.append(message, session.epoch, self._keep)
        if ttl is not None:
            resident.used = self._clock()
        self._found[level] += 1
        l1 = self._l1
        if resident.level is l1 and l1.max_bytes is None:
            self._in_l1.move_to_end(chat_id)
        else:
            self.levels.used(resident)
        return session, level, False

    def _repeated_in_memory(self, resident: Resident, level: CacheLevel, position: int) -> Applied | None:
        then = resident.session.as_of(position)
        if then is None or then.end - then.start < min(2, position):
            return None
        self._duplicates += 1
        self._found[level] += 1
        self.levels.enter(resident)
        return then, level, True

    async def _written_at(self, chat_id: str, message: Message) -> Version:
        """The version that the chat had with a message that was written since it was acknowledged: another server may
        have written first, or the chat have ended. NEW if it is not among the recent messages.
        """
        there = await self._store.load(chat_id, recent=self._keep)
        position = None if there is None else _positions(there).get(message.message_id)
        return NEW if there is None or position is None else Version(there.epoch, position)

    async def _write_locked(self, chat_id: str, unwritten: Unwritten) -> None:
        async with self._locks.holding(chat_id):
            await self._write(chat_id, unwritten)

    async def _write(self, chat_id: str, unwritten: Unwritten) -> None:
        """Writes what the chat has to write. For holders of its lock."""
        while messages := unwritten.of(chat_id):
            waiting = len(messages)
            result = await self._store.extend(chat_id, messages[: self._batch])
            number = unwritten.forget(chat_id, self._batch)
            resident = self.levels.find(chat_id)
            if resident is None:
                continue
            session, before, after = resident.session, result.before, result.after
            if before == (session.epoch, session.length - waiting) and after.length == before.length + number:
                resident.replace(session._replace(epoch=after.epoch))
            else:  # another server wrote to the chat, or the store knew a message that memory did not
                self._conflicts += 1
                self.levels.discard(chat_id)

    def _complete(self, resident: Resident, position: int, message: Message, reply: str) -> None:
        """The resident session has the reply too, if it still holds the message."""
        session = resident.session
        index = session.end - 1 - (session.length - position)
        if session.start <= index < session.end and session.log[index][:4] == message[:4]:
            complete = message.with_reply(reply)
            log = list(session.log[: session.end])
            log[index] = complete
            resident.replace(session._replace(log=log))

    # From the levels.

    def _evicted(self, resident: Resident) -> None:
        if self._unwritten is not None and self._unwritten.of(resident.chat_id):
            self.eviction.set()

    def _too_large(self, resident: Resident, level: Level) -> None:
        if level.name not in self._told:
            self._told.add(level.name)
            _log.warning(
                "a session of %d bytes is larger than all of %s (%d bytes) and can never be in it; raise the limit, or"
                " lower cache.recent_messages (said once; GetCacheStats counts them)",
                *(resident.size, level.name.name, level.max_bytes or 0),
            )


def _positions(session: Session) -> dict[str, int]:
    """Message id -> position, of the recent messages."""
    recent = session.recent
    first = session.length - len(recent) + 1
    return {message.message_id: first + index for index, message in enumerate(recent) if message.message_id}
