"""A store that is only there as long as its process: for trying out, and for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backend.errors import StoreError
from backend.session import NEW, Message, Session, Version
from backend.store.base import (
    Appended,
    AppendResult,
    Conflict,
    Duplicate,
    Extended,
    StoreOptions,
    new_epoch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Chat:
    __slots__ = ("epoch", "messages", "positions", "used")

    def __init__(self) -> None:
        self.epoch = new_epoch()
        self.messages: list[Message] = []
        self.positions: dict[str, int] = {}
        self.used = 0.0

    @property
    def version(self) -> Version:
        return Version(self.epoch, len(self.messages))


class MemoryStore:
    """See `SessionStore`. Keeps every message, so it grows for as long as the server runs."""

    def __init__(self, options: StoreOptions | None = None) -> None:
        self._options = options or StoreOptions()
        self._chats: dict[str, _Chat] = {}
        self._closed = False

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        """See `SessionStore.append`."""
        chat = self._find(chat_id)
        if chat is not None and (known := self._known(chat, message.message_id)):
            return Duplicate(known, chat.epoch)
        version = NEW if chat is None else chat.version
        if version != expected:
            return Conflict(version)
        chat = self._add(chat_id, chat, message)
        return Appended(len(chat.messages), chat.epoch)

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        """See `SessionStore.extend`."""
        chat = self._find(chat_id)
        before = NEW if chat is None else chat.version
        ever = {message.message_id for message in chat.messages} - {""} if whole and chat is not None else set()
        for message in messages:
            if message.message_id not in ever and not (chat and self._known(chat, message.message_id)):
                chat = self._add(chat_id, chat, message)
        return Extended(before, NEW if chat is None else chat.version)

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """See `SessionStore.load`."""
        chat = self._find(chat_id)
        if chat is None:
            return None
        length = len(chat.messages) if until is None else until
        if not 1 <= length <= len(chat.messages):
            return None
        return Session(chat_id, length, tuple(chat.messages[max(0, length - recent) : length]), chat.epoch)

    async def set_reply(self, chat_id: str, epoch: int, position: int, reply: str) -> str | None:
        """See `SessionStore.set_reply`."""
        chat = self._find(chat_id)
        if chat is None or chat.epoch != epoch or not 1 <= position <= len(chat.messages):
            return None
        message = chat.messages[position - 1]
        if message.reply is not None:
            return message.reply
        chat.messages[position - 1] = message.with_reply(reply)
        return reply

    async def end(self, chat_id: str) -> int:
        """See `SessionStore.end`."""
        chat = self._find(chat_id)
        self._chats.pop(chat_id, None)
        return 0 if chat is None else len(chat.messages)

    async def sweep(self) -> int:
        """See `SessionStore.sweep`."""
        return sum(self._find(chat_id) is None for chat_id in list(self._chats))

    async def close(self) -> None:
        """See `SessionStore.close`."""
        self._closed = True

    def _find(self, chat_id: str) -> _Chat | None:
        if self._closed:
            raise StoreError("the store is closed")
        chat = self._chats.get(chat_id)
        ttl = self._options.session_ttl
        if chat is not None and ttl is not None and self._options.clock() - chat.used > ttl:
            del self._chats[chat_id]
            return None
        return chat

    def _known(self, chat: _Chat, message_id: str) -> int:
        position = chat.positions.get(message_id, 0)
        return position if position > len(chat.messages) - self._options.dedupe_window else 0

    def _add(self, chat_id: str, chat: _Chat | None, message: Message) -> _Chat:
        if chat is None:
            chat = self._chats[chat_id] = _Chat()
        chat.messages.append(message)
        chat.used = self._options.clock()
        if message.message_id:
            chat.positions[message.message_id] = len(chat.messages)
        leaving = len(chat.messages) - self._options.dedupe_window
        if leaving > 0:
            message_id = chat.messages[leaving - 1].message_id
            if chat.positions.get(message_id) == leaving:
                del chat.positions[message_id]
        return chat
