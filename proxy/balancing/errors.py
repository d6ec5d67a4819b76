"""What a ring refuses. All are mistakes of the caller or of the configuration, never of a client."""

from __future__ import annotations

from proxy.errors import DistriChatError


class RingError(DistriChatError):
    """Base of the ring's errors."""


class DuplicateNodeError(RingError):
    """A node with this id is on the ring already. `node_id` names it; the ring is unchanged."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"node {node_id!r} is on the ring already")
        self.node_id = node_id


class UnknownNodeError(RingError):
    """No node with this id is on the ring. `node_id` is what was asked for; the ring is unchanged."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"node {node_id!r} is not on the ring")
        self.node_id = node_id


class InvalidCapacityError(RingError):
    """A node needs at least one virtual node. `capacity` is the refused number; the ring is unchanged."""

    def __init__(self, node_id: str, capacity: int) -> None:
        super().__init__(f"node {node_id!r}: capacity must be at least 1 virtual node, not {capacity}")
        self.node_id = node_id
        self.capacity = capacity


class EmptyRingError(RingError):
    """The ring has no node, so no key has an owner."""

    def __init__(self) -> None:
        super().__init__("the ring has no nodes")
