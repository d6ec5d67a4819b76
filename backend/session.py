"""A session: what a server knows of one chat.

Immutable. A message makes a new session, so a reply may still stream from the session as it was while the next message
of the chat is already applied; nothing needs to be locked or copied for that. Named tuples, not frozen dataclasses: one
is made per message, in 0.1 us instead of 0.9.

A session keeps its recent messages only, and the length of all of them: what a server holds in memory, and what it
reads back from a store, stays bounded however long a chat grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Self

_MESSAGE_BYTES: Final = 256
"""A message's own tuple, timestamp, the heads of its texts and its place in `recent`; the texts come on top."""
_SESSION_BYTES: Final = 512
"""What a session without messages takes, with its entries in the tables of the cache."""


class _Message(NamedTuple):
    text: str
    sender_id: str
    timestamp: int
    """Unix seconds, by the client's clock."""
    message_id: str
    """The idempotency key: unique within its chat. Empty: none, the message is always new."""
    reply: str | None
    """What the engine answered, if it is one whose replies belong to the session, and it has."""
    size: int
    """Bytes of memory it takes, nearly: counted once, as the cache asks when the message comes and when it goes."""


class Message(_Message):
    """One message as a client sent it. Nothing in it is interpreted but `message_id`."""

    __slots__ = ()

    def __new__(
        cls, text: str, sender_id: str = "", timestamp: int = 0, message_id: str = "", reply: str | None = None
    ) -> Self:
        """See the fields of `_Message`; `size` is computed."""
        size = _MESSAGE_BYTES + _bytes(text) + _bytes(message_id)
        if reply is not None:
            size += _bytes(reply)
        return tuple.__new__(cls, (text, sender_id, timestamp, message_id, reply, size))

    def with_reply(self, reply: str) -> Message:
        """The same message, answered."""
        return Message(self.text, self.sender_id, self.timestamp, self.message_id, reply)


def _bytes(text: str) -> int:
    """Of its UTF-8. Not `sys.getsizeof`: that changes when somebody encodes the text."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class Version(NamedTuple):
    """Which state of which chat. Two states with the same version are the same."""

    epoch: int
    """A number the store gave the chat when it began; one that was ended and begun again has another. 0: none yet."""
    length: int
    """All messages of the chat."""


NEW: Final = Version(0, 0)
"""The version of a chat that has no message yet."""


class _Session(NamedTuple):
    chat_id: str
    length: int
    """All messages of the chat, also those no longer in `recent`."""
    epoch: int
    """See `Version.epoch`."""
    log: Sequence[Message]
    """Holds `recent`, from `start` to `end`. Shared by the states of a session, and only ever added to at its end: a
    message makes a new state without a copy of the messages."""
    start: int
    end: int


class Session(_Session):
    """One chat after its first `length` messages. Equal to another if chat, epoch, length and recent messages are."""

    __slots__ = ()

    def __new__(cls, chat_id: str, length: int = 0, recent: Sequence[Message] = (), epoch: int = 0) -> Self:
        """`recent`: the last messages, oldest first; at most `length`."""
        return tuple.__new__(cls, (chat_id, length, epoch, recent, 0, len(recent)))

    @property
    def recent(self) -> tuple[Message, ...]:
        """The last messages, oldest first; at most `length`. A copy."""
        return tuple(self.log[self.start : self.end])

    @property
    def last(self) -> Message:
        """The last message. IndexError if there is none."""
        return self.log[self.end - 1]

    @property
    def version(self) -> Version:
        """What a store is told to expect when the session goes on."""
        return Version(self.epoch, self.length)

    @property
    def size(self) -> int:
        """Bytes of memory it takes, counted message by message."""
        return _SESSION_BYTES + sum(message.size for message in self.log[: self.end])

    def as_of(self, position: int) -> Session | None:
        """The session after its message number `position`, with that message; None if it is not among the recent."""
        end = self.end - (self.length - position)
        return self._replace(length=position, end=end) if self.start < end <= self.end else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Session):
            return NotImplemented
        return self[:3] == other[:3] and self.recent == other.recent

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:3])
