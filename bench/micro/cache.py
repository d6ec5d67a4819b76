"""What a message costs the reference server's session cache, without a wire and a disk."""

from __future__ import annotations

import asyncio
from time import thread_time
from typing import TYPE_CHECKING

from backend.cache.hierarchical import HierarchicalCache
from backend.session import NEW, Message, Version
from backend.store.base import Extended
from backend.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 5_000
"""Messages in one measurement, over as many chats as L1 holds. What write-back held is let go between two."""
_CHATS = [f"chat-{number:03}" for number in range(5)]
_WARM_UP = 100
"""Messages of each chat before: its session then holds all it may."""


class _Sink(MemoryStore):
    """Takes what write-back writes, and keeps only how much it was."""

    def __init__(self) -> None:
        super().__init__()
        self._versions: dict[str, Version] = {}

    async def extend(self, chat_id: str, messages: Sequence[Message], *, whole: bool = False) -> Extended:
        """Counts the messages."""
        del whole
        before = self._versions.get(chat_id, NEW)
        after = self._versions[chat_id] = Version(1, before.length + len(messages))
        return Extended(before, after)


def add_in_memory(loops: int) -> float:
    """Seconds of CPU time for `loops` x `BATCH` messages that are acknowledged from memory (write-back). The messages
    are there before: each is new, with an id of its own.
    """
    return asyncio.run(_measure(HierarchicalCache(store=_Sink(), unwritten_limit=2 * BATCH, clock=_no_clock), loops))


def add_through(loops: int) -> float:
    """The same with write-through to a store in memory: the cache's share of a durable message."""
    return asyncio.run(_measure(HierarchicalCache(store=MemoryStore(), clock=_no_clock), loops))


def _no_clock() -> float:
    return 0.0


async def _measure(cache: HierarchicalCache, loops: int) -> float:
    for number in range(_WARM_UP):
        for chat in _CHATS:
            await cache.add_message(chat, Message("hello", message_id=f"warm-up {number}"))
    seconds = 0.0
    for loop in range(loops):
        await cache.write_out()
        messages = [
            (_CHATS[number % len(_CHATS)], Message("How are you today?", "ann", 1_700_000_000, f"{loop}-{number}"))
            for number in range(BATCH)
        ]
        start = thread_time()
        for chat, message in messages:
            await cache.add_message(chat, message)
        seconds += thread_time() - start
    found = cache.statistics()
    assert found.l1_hits == found.requests - len(_CHATS)
    return seconds
