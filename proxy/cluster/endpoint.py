"""One server behind the proxy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

from proxy.cluster.address import Address


class Cause(Enum):
    """Who says that a server must not be given calls. Each speaks for itself; all must agree that it may."""

    CONNECT = "connect"
    """Its pool: it cannot be connected to."""
    HEALTH = "health"
    """The active health check: the server does not answer, or says itself that it does not serve."""
    EJECTED = "ejected"
    """Outlier detection."""
    OPERATOR = "operator"
    """The operator drains it: it finishes what it has. Only the operator can take that back; no passed check does."""
    REMOVED = "removed"
    """It is not in the configuration any more: it finishes what it has."""


_FINAL: Final = frozenset({Cause.CONNECT, Cause.OPERATOR, Cause.REMOVED})
"""What these say may not be overruled by anybody's need."""


class Endpoint:
    """Who a server is, and whether it may be given calls now.

    Identity never changes; the weight does with a new snapshot. Availability is flipped in place by those who watch the
    server: the ring is not rebuilt for that, a pick walks past. `notify` is called after every flip, `watch` whenever a
    cause begins or ceases to speak against the server.
    """

    __slots__ = (
        "_blocks",
        "active",
        "address",
        "available",
        "elsewhere",
        "id",
        "max_calls",
        "notify",
        "server_name",
        "tls",
        "watch",
        "weight",
    )

    def __init__(
        self,
        endpoint_id: str,
        address: Address,
        weight: float = 1.0,
        *,
        tls: bool = True,
        server_name: str | None = None,
    ) -> None:
        self.id = endpoint_id
        self.address = address
        self.weight = weight
        self.tls = tls
        """Connections to it are secured, where any are."""
        self.server_name = server_name
        """What its certificate calls it, if that is not what the settings call all, nor the host of its address."""
        self.available = True
        self.active = 0
        """Calls it has been given and not finished."""
        self.elsewhere = 0
        """Calls that other workers have given it, as far as is known."""
        self.max_calls = sys.maxsize
        """What `active` may be."""
        self.notify: Callable[[Endpoint], None] = _nobody
        self.watch: Callable[[Endpoint, Cause], None] = _nobody_either
        self._blocks: dict[Cause, str] = {}

    def block(self, cause: Cause, reason: str) -> bool:
        """Calls walk past from now on, for `reason` (a few words for people). A newer reason of a cause replaces the
        older. Returns whether it was available before.
        """
        begins = cause not in self._blocks
        self._blocks[cause] = reason
        flipped = self.available
        self.available = False
        if begins:
            self.watch(self, cause)
        if flipped:
            self.notify(self)
        return flipped

    def unblock(self, cause: Cause) -> bool:
        """`cause` has nothing against it any more; nothing changes if it had not. Returns whether this made it
        available.
        """
        ceases = self._blocks.pop(cause, None) is not None
        flipped = not self.available and not self._blocks
        if flipped:
            self.available = True
        if ceases:
            self.watch(self, cause)
        if flipped:
            self.notify(self)
        return flipped

    def blocked_by(self, cause: Cause) -> bool:
        """Whether `cause` is among those that say no."""
        return cause in self._blocks

    @property
    def blocks(self) -> Mapping[Cause, str]:
        """Who speaks against it now, and why, oldest first."""
        return self._blocks

    @property
    def reason(self) -> str:
        """Why it is not available, for people; empty while it is."""
        return ", ".join(self._blocks.values())

    @property
    def may_be_tried(self) -> bool:
        """Neither known to be unreachable, nor drained or removed by the operator: worth a try when nobody is
        available.
        """
        return self._blocks.keys().isdisjoint(_FINAL)

    def __repr__(self) -> str:
        return f"Endpoint({self.id!r}, {str(self.address)!r})"


def _nobody(_endpoint: Endpoint) -> None:
    """Nobody wants to know."""


def _nobody_either(_endpoint: Endpoint, _cause: Cause) -> None:
    """Nor to know the cause."""
