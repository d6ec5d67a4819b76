"""What the cache asks of a store. The store is the truth about a chat; a server's memory is a guess.

Exactness. A writer says which version of the chat it goes on from (optimistic concurrency), and a store refuses to
append to any other: two servers that both believe they own a chat can neither interleave nor overwrite. A message id
that is among the last `dedupe_window` messages of its chat is not applied again, whatever version was expected; one
that is older counts as new. That holds alike in every store.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from backend.session import Message, Session, Version


@dataclass(frozen=True, slots=True)
class Appended:
    """The message is safe, as the last one of its chat."""

    position: int
    """Its number in the chat, from 1."""
    epoch: int


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Nothing was written: the chat has a message with this id."""

    position: int
    """The number of that message, from 1."""
    epoch: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing was written: the chat is in another version than the writer believed."""

    version: Version


AppendResult = Appended | Duplicate | Conflict


@dataclass(frozen=True, slots=True)
class Extended:
    """The messages are safe, at the end of their chat, but for those it had."""

    before: Version
    after: Version


def wall_clock() -> float:
    """Unix seconds. May go back; stores use it for the idle time of sessions alone."""
    return datetime.now(UTC).timestamp()


def new_epoch() -> int:
    """A number for a chat that begins. Positive, and fits a signed 64-bit column."""
    return secrets.randbits(62) | 1


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """What holds for a store whatever it is made of."""

    dedupe_window: int = 1024
    """Messages of a chat, from the last one back, whose ids are known again. At least 1."""
    session_ttl: float | None = None
    """Seconds without a new message after which a chat ends by itself; None: never."""
    clock: Callable[[], float] = wall_clock


class SessionStore(Protocol):
    """Keeps the messages of chats.

    A chat id is any text, compared code point by code point. Operations take effect in the order they were called.
    A cancelled call, or one that failed for the way to the store, may have taken effect. Every method raises StoreError
    when the store is out of order, out of reach, full or closed.
    """

    async def append(self, chat_id: str, message: Message, *, expected: Version) -> AppendResult:
        """Appends, if the chat is in the `expected` version (`NEW`: there is no such chat).

        A message id the chat has is told before the version is looked at.
        """
        ...

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        """Appends those of the messages whose ids the chat does not have, in one step, whatever its version. `whole`:
        the ids are looked for in all of the chat, not only in the dedupe window.
        """
        ...

    async def load(self, chat_id: str, *, recent: int, until: int | None = None) -> Session | None:
        """The chat after its message number `until` (None: the last one) with at most `recent` messages; None if
        there is no such chat, or not yet that message.
        """
        ...

    async def set_reply(self, chat_id: str, epoch: int, position: int, reply: str) -> str | None:
        """Keeps the reply to a message, unless it has one. Returns the one it has now; None: there is no such message
        in that epoch of the chat.
        """
        ...

    async def end(self, chat_id: str) -> int:
        """Forgets the chat. Returns how many messages it had, 0 if there was none."""
        ...

    async def sweep(self) -> int:
        """Frees what chats take up whose time to live is over. Returns how many; they are gone for all other methods
        before that.
        """
        ...

    async def close(self) -> None:
        """Finishes what was called before, then lets go of everything. A second call does nothing."""
        ...
