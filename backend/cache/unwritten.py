"""Messages that were acknowledged and are not in the store yet: what `write_back` holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backend.session import Message


class Unwritten:
    """By chat, in the order they were acknowledged. `limit`: the most messages of all chats. The cache adds to it by
    itself (`HierarchicalCache._apply`), as that is done with every message.
    """

    __slots__ = ("chats", "count", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self.chats: dict[str, list[Message]] = {}

    def of(self, chat_id: str) -> list[Message]:
        """The chat's, oldest first."""
        return self.chats.get(chat_id, [])

    def forget(self, chat_id: str, number: int | None = None) -> int:
        """The oldest `number` (None: all) of a chat are written, or not wanted any more. Returns how many those are."""
        messages = self.chats.pop(chat_id, [])
        if number is not None and number < len(messages):
            self.chats[chat_id] = messages[number:]
        else:
            number = len(messages)
        self.count -= number
        return number

    def set_reply(self, chat_id: str, message: Message, reply: str) -> bool:
        """Completes a message. False: it is not here (any more)."""
        messages = self.of(chat_id)
        for index in range(len(messages) - 1, -1, -1):
            if messages[index] is message:
                messages[index] = message.with_reply(reply)
                return True
        return False
