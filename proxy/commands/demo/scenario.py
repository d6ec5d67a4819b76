"""What the simulation plays. Pure: the rest of the package asks here what to start and what to send."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
VICTIM = "Server-B"
L1_SESSIONS = 5
L2_SESSIONS = 20
DRAIN_GRACE = 5.0  # seconds; less than the demo gives its processes to end


class Server(NamedTuple):
    """A reference server of the simulation."""

    id: str
    weight: float
    """100 virtual nodes for each 1.0."""


SERVERS = (Server("Server-A", 1.0), Server(VICTIM, 1.5), Server("Server-C", 1.0))


@dataclass(frozen=True, slots=True)
class Scenario:
    """How long the simulation is. The defaults are the original's."""

    messages: int = 50
    chats: int = 25
    kill_after: int = 10
    """The victim is killed after this message; 0, or more than there are messages: never."""

    def chat_ids(self) -> list[str]:
        """Every chat, in the order in which they take turns."""
        return [f"chat-{index:03d}" for index in range(self.chats)]

    def chat_of(self, number: int) -> str:
        """The chat of message `number`, counted from 1."""
        return f"chat-{(number - 1) % self.chats:03d}"

    def kills(self) -> bool:
        """Whether the victim dies at all."""
        return 1 <= self.kill_after <= self.messages


def proxy_config(listen: str, addresses: Mapping[str, str]) -> str:
    """The proxy's configuration, as TOML: the smallest there is, plus where to listen and when to give up clients."""
    lines = ["[listener]", f"address = {json.dumps(listen)}", f"drain_grace = {DRAIN_GRACE}"]
    for server in SERVERS:
        lines += [
            "",
            "[[endpoints]]",
            f"id = {json.dumps(server.id)}",
            f"address = {json.dumps(addresses[server.id])}",
            f"weight = {server.weight}",
        ]
    return "\n".join(lines) + "\n"
