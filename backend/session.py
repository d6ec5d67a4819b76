"""A session: what a server knows of one chat.

Immutable. A message makes a new session, so a reply may still stream from the session as it was while the next message
of the chat is already applied; nothing needs to be locked or copied for that.

A session keeps its recent messages only, and the length of all of them: what a server holds in memory, and what it
reads back from disk, stays bounded however long a chat grows.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message as a client sent it. Nothing in it is interpreted but `message_id`."""

    text: str
    sender_id: str = ""
    timestamp: int = 0
    """Unix seconds, by the client's clock."""
    message_id: str = ""
    """The client's idempotency key: unique within its chat. Empty: none, the message is always new."""


@dataclass(frozen=True, slots=True)
class Session:
    """One chat after its first `length` messages."""

    chat_id: str
    length: int = 0
    """All messages of the chat, also those no longer in `recent`."""
    recent: tuple[Message, ...] = ()
    """The last messages, oldest first; at most `length`."""

    def appended(self, message: Message, *, keep: int) -> Session:
        """The session after `message`, which is its last one. `keep`: the most messages to hold, at least 1."""
        return Session(self.chat_id, self.length + 1, (*self.recent, message)[-keep:])
