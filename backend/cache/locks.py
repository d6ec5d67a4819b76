"""One lock per chat, for as long as somebody wants it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class ChatLocks:
    """Holders of one chat go one after another, in the order they asked; different chats do not wait for each other.

    Holds memory for the chats in use only.
    """

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self.held = self._locks.keys()
        """Chats that somebody holds or waits for. Whoever does not await holds any other in effect."""
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def holding(self, chat_id: str) -> AsyncIterator[None]:
        """Waits for the chat's lock and holds it for the block."""
        lock = self._locks.setdefault(chat_id, asyncio.Lock())
        self._users[chat_id] = self._users.get(chat_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._users[chat_id] -= 1
            if not self._users[chat_id]:
                del self._users[chat_id], self._locks[chat_id]

    def __len__(self) -> int:
        """How many chats are held or waited for."""
        return len(self._locks)
