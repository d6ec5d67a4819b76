"""What the admin API needs of a proxy, be it one process or several.

`proxy.admin.local` fulfils it in the process of the data path.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from proxy.admin import schema
from proxy.admin.events import EventBus
from proxy.balancing.ring import RingSnapshot
from proxy.errors import DistriChatError
from proxy.forwarding.stats import StatsSnapshot


class ReloadRefusedError(DistriChatError):
    """The new configuration cannot be used; nothing has changed. `problems`: a line each, with its key."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class LastServerError(DistriChatError):
    """Draining this server would leave none available."""


class AdminPort(Protocol):
    """A proxy as its operator sees it. Methods that are `async` may have to ask other processes; none takes long, and
    all may be called at the same time. An unknown endpoint id is a `KeyError`.
    """

    @property
    def events(self) -> EventBus:
        """What happens."""

    def not_ready(self) -> str:
        """Why no client should be sent here now; empty: all is well."""

    def config(self) -> dict[str, Any]:
        """The settings that hold, as JSON, secrets masked."""

    def snapshot(self) -> schema.Snapshot:
        """Which state of the cluster holds."""

    def ring(self) -> RingSnapshot:
        """The ring of that state."""

    def virtual_nodes(self) -> int:
        """Points on the ring for each 1.0 of weight."""

    async def endpoints(self) -> schema.Endpoints:
        """Every server and its state."""

    async def statistics(self) -> StatsSnapshot:
        """All numbers there are, of all processes together; each has a row in `proxy.admin.metrics`."""

    async def explain(self, key: bytes, limit: int) -> schema.Explanation:
        """What a call with `key` (not empty) would meet now, with at least `limit` candidates if there are so many."""

    async def decisions(self, limit: int, key: bytes | None = None) -> schema.Decisions:
        """A sample of the latest calls, at most so many. `key`: only those of this chat."""

    async def recent_keys(self) -> Collection[bytes]:
        """Keys of chats seen recently, as far as they are remembered."""

    async def drain(self, endpoint_id: str, reason: str, *, force: bool) -> schema.Drained:
        """New calls walk past the server. Raises LastServerError unless `force`, with nothing changed."""

    async def undrain(self, endpoint_id: str) -> schema.Drained:
        """The operator has nothing against the server any more."""

    async def reload(self) -> schema.Reloaded:
        """Read the configuration again and apply it. Raises ReloadRefusedError, with nothing changed."""
