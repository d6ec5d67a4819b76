"""One server behind the proxy."""

from __future__ import annotations

from proxy.cluster.address import Address


class Endpoint:
    """Who a server is, and whether it may be given calls now.

    Identity never changes. `available` and `reason` are flipped in place by whoever watches the server (the pool, when
    it cannot connect): the ring is not rebuilt for that, a pick walks past.
    """

    __slots__ = ("active", "address", "available", "id", "reason", "weight")

    def __init__(self, endpoint_id: str, address: Address, weight: float = 1.0) -> None:
        self.id = endpoint_id
        self.address = address
        self.weight = weight
        self.available = True
        self.reason = ""
        """Why it is not available, for people; empty while it is."""
        self.active = 0
        """Calls it has been given and not finished."""

    def mark_down(self, reason: str) -> None:
        """Calls walk past from now on. Called twice, the newer reason stands."""
        self.available = False
        self.reason = reason

    def mark_up(self) -> None:
        """Calls are given to it again. Nothing changes if it was available."""
        self.available = True
        self.reason = ""

    def __repr__(self) -> str:
        return f"Endpoint({self.id!r}, {str(self.address)!r})"
