"""A store that is only there as long as its process: for trying out, and for tests."""

from __future__ import annotations

from collections import defaultdict

from backend.errors import StoreError
from backend.session import Message, Session
from backend.store.base import Appended, AppendResult, Conflict, Duplicate


class MemoryStore:
    """See `SessionStore`. Keeps every message, so it grows for as long as the server runs."""

    def __init__(self) -> None:
        self._chats: defaultdict[str, list[Message]] = defaultdict(list)
        self._positions: dict[tuple[str, str], int] = {}
        self._closed = False

    async def append(self, chat_id: str, message: Message, *, expected_length: int) -> AppendResult:
        """See `SessionStore.append`."""
        self._check_open()
        known = self._positions.get((chat_id, message.message_id))
        if known is not None:
            return Duplicate(known)
        length = len(self._chats.get(chat_id, ()))
        if length != expected_length:
            return Conflict(length)
        self._chats[chat_id].append(message)
        if message.message_id:
            self._positions[chat_id, message.message_id] = length + 1
        return Appended(length + 1)

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """See `SessionStore.load`."""
        self._check_open()
        messages = self._chats.get(chat_id, [])
        length = len(messages) if until is None else until
        if not 1 <= length <= len(messages):
            return None
        return Session(chat_id, length, tuple(messages[max(0, length - recent) : length]))

    async def close(self) -> None:
        """See `SessionStore.close`."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError("the store is closed")
