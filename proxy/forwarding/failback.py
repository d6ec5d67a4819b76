"""What becomes of a chat that was moved, when its owner is back, and who is told that it moved.

A chat that another server has served has its session there: sending it home at once may cost more than leaving it.
So a displaced chat may stay where it is, until it has been idle for a time (its session has gone cold anyway), or for
good. Each proxy remembers only what went through itself.

Wherever a chat goes, away from its owner, home again, or to a new owner because the ring has changed, its calls say who
had it before (`x-districhat-previous-owner`) until the new server has answered one: servers without a store in common
can then hand the session over. Two proxies may know different things; so a server must take it as a hint.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from proxy.cluster.endpoint import Endpoint
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.durations import Seconds


class FailbackSettings(BaseModel):
    """`[failback]`: what a displaced chat does when its owner returns."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["immediate", "idle", "never"] = "idle"
    """`immediate`: it goes home with its next call. `idle`: it stays until it has had no call for `idle_time`.
    `never`: it stays as long as the server that has it is available."""
    idle_time: Seconds = 60.0
    """Seconds."""
    max_chats: int = Field(default=100_000, ge=1, le=10_000_000)
    """Displaced chats remembered, at about 250 bytes each; beyond it, the longest idle ones go home."""
    announce_moves: bool = True
    """Tell a server that gets a chat which one had it before, in `x-districhat-previous-owner`, until it has answered
    a call: servers without a store in common can hand the session over."""


PREVIOUS_OWNER: Final = b"x-districhat-previous-owner"
ANNOUNCE_TIME: Final = 3600.0
"""Seconds after a change of the ring for which moves due to it are announced, and after its last call for which the
return of a chat is: every call pays a little while there is anything to announce."""


class DisplacedChats:
    """Key -> the server that has the chat instead of its owner. Empty unless something failed."""

    __slots__ = (
        "_announce",
        "_former",
        "_idle_time",
        "_immediate",
        "_max",
        "_settled",
        "_snapshot",
        "chats",
        "returned",
        "watching",
    )

    def __init__(self, settings: FailbackSettings, snapshot: ClusterSnapshot) -> None:
        self.returned = 0
        """Chats that went back to their owner."""
        self.chats: OrderedDict[bytes, tuple[Endpoint, float]] = OrderedDict()
        """With the time of its last call."""
        self.watching = False
        """Whether any chat may be elsewhere than with its owner. The hot path looks here, and asks only then."""
        self._snapshot = snapshot
        self._former: tuple[ClusterSnapshot, float] | None = None
        """The ring before its last change, and the time of that."""
        self._settled: set[bytes] = set()
        """Chats that their owner of now has served since."""
        self.configure(settings, snapshot, 0.0)

    def configure(self, settings: FailbackSettings, snapshot: ClusterSnapshot, now: float) -> None:
        """From now on by these settings, and with the owners of that snapshot."""
        self._announce = settings.announce_moves
        self._immediate = settings.mode == "immediate"
        self._idle_time = settings.idle_time if settings.mode == "idle" else float("inf")
        self._max = settings.max_chats
        while self.chats and (len(self.chats) > self._max or (self._immediate and not self._announce)):
            self.chats.popitem(last=False)
        if snapshot.ring.fingerprint != self._snapshot.ring.fingerprint:
            self._former = (self._snapshot, now)
            self._settled.clear()
        if not self._announce:
            self._former = None
            self._settled.clear()
        self._snapshot = snapshot
        self._watch()

    def find(self, key: bytes, now: float) -> Endpoint | None:
        """The server that `key` shall go to instead of its owner; None: home. Counts as a use."""
        entry = self.chats.get(key)
        if entry is None:
            self._forget_oldest(now)
            return None
        endpoint, used = entry
        if self._immediate or now - used >= self._idle_time or not endpoint.available:
            if not self._announce:
                self.came_home(key)
            return None
        self.chats[key] = (endpoint, now)
        self.chats.move_to_end(key)
        return endpoint

    def peek(self, key: bytes, now: float) -> tuple[Endpoint | None, float]:
        """What `find` would give, and the seconds since the last use; does not count as one."""
        entry = self.chats.get(key)
        if entry is None or self._immediate or now - entry[1] >= self._idle_time or not entry[0].available:
            return None, 0.0
        return entry[0], now - entry[1]

    def moved_from(self, key: bytes, owner: Endpoint, to: Endpoint, now: float) -> str:
        """The id of the server that had the chat of `key` before it goes `to` this one. Empty if that is the same, if
        it cannot be written into metadata, or if it shall not be announced.
        """
        if not self._announce:
            return ""
        entry = self.chats.get(key)
        if entry is not None:
            before = entry[0].id
        elif self._former is not None and key not in self._settled:
            before = self._former[0].owner(key).id
            if now - self._former[1] >= ANNOUNCE_TIME:
                self._forget_former()
        else:
            before = owner.id
        return before if before != to.id and before.isascii() and before.isprintable() else ""

    def served(self, key: bytes, endpoint: Endpoint, now: float) -> bool:
        """`endpoint`, which does not own `key`, has begun to answer a call for it. Returns whether the chat was, as far
        as it is remembered, elsewhere before.
        """
        if self._immediate and not self._announce:
            return True
        before = self.chats.get(key)
        self.chats[key] = (endpoint, now)
        self.chats.move_to_end(key)
        if len(self.chats) > self._max:
            self.chats.popitem(last=False)
        self._watch()
        return before is None or before[0] is not endpoint

    def came_home(self, key: bytes) -> None:
        """The owner of `key` serves it."""
        self.returned += self.chats.pop(key, None) is not None
        if self._former is not None:
            self._settled.add(key)
            if len(self._settled) > self._max:
                self._forget_former()
        self._watch()

    def _forget_oldest(self, now: float) -> None:
        """A chat that would go home, and had no call for very long: nothing of it is left to announce."""
        for key, (_, used) in self.chats.items():
            if (self._immediate or now - used >= self._idle_time) and now - used >= ANNOUNCE_TIME:
                del self.chats[key]
                self._watch()
            return

    def _forget_former(self) -> None:
        self._former = None
        self._settled.clear()
        self._watch()

    def _watch(self) -> None:
        self.watching = bool(self.chats) or self._former is not None
