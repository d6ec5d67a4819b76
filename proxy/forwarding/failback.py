"""What becomes of a chat that was moved, when its owner is back.

A chat that another server has served has its session there: sending it home at once may cost more than leaving it.
So a displaced chat may stay where it is, until it has been idle for a time (its session has gone cold anyway), or for
good. Each proxy remembers only what went through itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from proxy.cluster.endpoint import Endpoint


class FailbackSettings(BaseModel):
    """`[failback]`: what a displaced chat does when its owner returns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["immediate", "idle", "never"] = "idle"
    """`immediate`: it goes home with its next call. `idle`: it stays until it has had no call for `idle_time`.
    `never`: it stays as long as the server that has it is available."""
    idle_time: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds."""
    max_chats: int = Field(default=100_000, ge=1, le=10_000_000)
    """Displaced chats remembered, at about 250 bytes each; beyond it, the longest idle ones go home."""


class DisplacedChats:
    """Key -> the server that has the chat instead of its owner. Empty unless something failed."""

    __slots__ = ("_idle_time", "_immediate", "_max", "chats")

    def __init__(self, settings: FailbackSettings) -> None:
        self.chats: OrderedDict[bytes, tuple[Endpoint, float]] = OrderedDict()
        """With the time of its last call. The hot path looks whether it is empty, and asks only then."""
        self.configure(settings)

    def configure(self, settings: FailbackSettings) -> None:
        """From now on by these settings."""
        self._immediate = settings.mode == "immediate"
        self._idle_time = settings.idle_time if settings.mode == "idle" else float("inf")
        self._max = settings.max_chats
        while self.chats and (self._immediate or len(self.chats) > self._max):
            self.chats.popitem(last=False)

    def find(self, key: bytes, now: float) -> Endpoint | None:
        """The server that `key` shall go to instead of its owner; None: home. Counts as a use."""
        entry = self.chats.get(key)
        if entry is None:
            return None
        endpoint, used = entry
        if now - used >= self._idle_time or not endpoint.available:
            del self.chats[key]
            return None
        self.chats[key] = (endpoint, now)
        self.chats.move_to_end(key)
        return endpoint

    def peek(self, key: bytes, now: float) -> tuple[Endpoint | None, float]:
        """What `find` would give, and the seconds since the last use; does not count as one."""
        entry = self.chats.get(key)
        if entry is None or now - entry[1] >= self._idle_time or not entry[0].available:
            return None, 0.0
        return entry[0], now - entry[1]

    def served(self, key: bytes, endpoint: Endpoint, now: float) -> None:
        """`endpoint`, which does not own `key`, has begun to answer a call for it."""
        if self._immediate:
            return
        self.chats[key] = (endpoint, now)
        self.chats.move_to_end(key)
        if len(self.chats) > self._max:
            self.chats.popitem(last=False)

    def came_home(self, key: bytes) -> None:
        """The owner of `key` serves it."""
        self.chats.pop(key, None)
