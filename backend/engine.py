"""What answers a message. The reference server has no language model: its own engine tells what it sees of the session,
and `backend.openai_engine` asks a real one elsewhere.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from backend.session import Message, Session

_QUOTE_LIMIT = 200
"""Characters of the previous message in a reply, so that a reply fits gRPC's 4 MiB whatever was sent before."""


class ReplyEngine(Protocol):
    """Makes the reply to one message."""

    @property
    def keeps_replies(self) -> bool:
        """Whether replies belong to the session: they are stored with their messages, and a message that comes again
        gets the stored one. False for an engine that makes the same reply from the same session anyway.
        """
        ...

    def reply(self, session: Session, message: Message) -> AsyncIterator[str]:
        """The reply to `message`, in tokens; joined without separators they are the whole reply.

        `session` is as of that message: `message` is its last one. Called once the message is stored, without a lock:
        replies to several messages of one chat may run at the same time. A repeated message without a stored reply is
        replied to again, from the same session. Closed or cancelled when nobody wants the rest. Raises EngineError when
        there can be no reply.
        """
        ...

    async def close(self) -> None:
        """Lets go of everything. No reply runs then."""
        ...


class EchoEngine:
    """Says how many messages the session has and what came before this one, so that a lost session shows.

    `token_delay` is the time in seconds before each token; 0 replies at once.
    """

    keeps_replies = False

    def __init__(self, token_delay: float = 0.0) -> None:
        self._token_delay = token_delay

    async def reply(self, session: Session, message: Message) -> AsyncIterator[str]:
        """See `ReplyEngine.reply`. A token is a word with the space before it."""
        del message  # the last one of the session
        for token in re.findall(r"\s*\S+", self._text(session)):
            if self._token_delay:
                await asyncio.sleep(self._token_delay)
            yield token

    async def close(self) -> None:
        """See `ReplyEngine.close`."""

    @staticmethod
    def _text(session: Session) -> str:
        if session.length <= 1:
            return "This is message 1, the first of our chat."
        if len(session.recent) < 2:
            return f"This is message {session.length} of our chat."
        previous = session.recent[-2].text
        if len(previous) > _QUOTE_LIMIT:
            previous = previous[:_QUOTE_LIMIT] + "..."
        return f'This is message {session.length} of our chat. Before it came: "{previous}"'
