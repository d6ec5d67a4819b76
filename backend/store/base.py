"""What the cache asks of a store. The store is the truth about a chat; a server's memory is a guess."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from backend.session import Message, Session


@dataclass(frozen=True, slots=True)
class Appended:
    """The message is safe, as the last one of its chat."""

    position: int
    """Its number in the chat, from 1."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing was written: the chat has a message with this id."""

    position: int
    """The number of that message, from 1."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was written: the chat is not as long as the writer believed."""

    length: int
    """How long it is."""


AppendResult = Appended | Duplicate | Conflict


class SessionStore(Protocol):
    """Keeps the messages of chats, one row each.

    A chat id is any text, compared code point by code point. Operations take effect in the order they were called.
    Every method raises StoreError when the store is out of order or closed.
    """

    async def append(self, chat_id: str, message: Message, *, expected_length: int) -> AppendResult:
        """Appends, if the chat has `expected_length` messages (0: also if there is no such chat).

        A message id the chat has already is told before the length is looked at. A cancelled or failed call may have
        written.
        """
        ...

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """The chat after its message number `until` (None: the last one) with at most `recent` messages; None if
        there is no such chat, or not yet that message.
        """
        ...

    async def close(self) -> None:
        """Finishes what was called before, then lets go of everything. A second call does nothing."""
        ...
