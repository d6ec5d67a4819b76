"""What all calls of one proxy share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Endpoint
from proxy.forwarding.deadlines import DeadlineWheel
from proxy.forwarding.headers import RequestHeads
from proxy.forwarding.retry import RetryBudget
from proxy.forwarding.settings import RetrySettings

if TYPE_CHECKING:
    from proxy.forwarding.call import Call


class Pool(Protocol):
    """The connections to one endpoint, as a call sees them."""

    def submit(self, call: Call) -> None:
        """Attach the call to a connection now, or park it while one connects, or fail its attempt at once."""

    def forget(self, call: Call) -> None:
        """Drop a parked call. Nothing happens if it is not parked."""


class Forwarder:
    """The context of every call: cluster, pools, memo of headers, deadlines, limits.

    `now()` is the shell's clock in seconds; it may stand still during one pass of the event loop. `call_later(delay,
    callback)` runs a callback `delay` seconds from now; `request_ids` gives a new unique one each time.
    """

    __slots__ = (
        "active",
        "budget",
        "call_later",
        "cluster",
        "deadlines",
        "heads",
        "max_attempts",
        "max_first_message",
        "now",
        "pools",
        "replay_buffer",
        "request_ids",
    )

    def __init__(
        self,
        *,
        now: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], object],
        cluster: Cluster,
        pools: Mapping[Endpoint, Pool],
        heads: RequestHeads,
        deadlines: DeadlineWheel,
        retry: RetrySettings,
        request_ids: Iterator[bytes],
        max_first_message: int,
    ) -> None:
        self.now = now
        self.call_later = call_later
        self.cluster = cluster
        self.pools = pools
        self.heads = heads
        self.deadlines = deadlines
        self.request_ids = request_ids
        self.budget = RetryBudget(retry)
        self.active = 0
        """Calls under way."""
        self.max_attempts = retry.max_attempts
        self.replay_buffer = retry.replay_buffer
        self.max_first_message = max_first_message
