"""What all calls of one proxy share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Endpoint
from proxy.cluster.outlier import OutlierDetector
from proxy.forwarding.call_record import CallRecord, Watcher
from proxy.forwarding.deadlines import DeadlineWheel
from proxy.forwarding.failback import DisplacedChats
from proxy.forwarding.headers import RequestHeads
from proxy.forwarding.limits import LimitWatch
from proxy.forwarding.own_health import OwnHealth
from proxy.forwarding.retry import RetryBudget
from proxy.forwarding.settings import LimitSettings, RetrySettings

if TYPE_CHECKING:
    from proxy.forwarding.offered import OfferedCall


SMALL: Final = 4096
"""Bytes of a replay buffer that are not counted against the total: the limit of calls bounds those."""


class Pool(Protocol):
    """The connections to one endpoint, as a call sees them."""

    def submit(self, call: OfferedCall) -> None:
        """Attach the call to a connection now, or park it while one connects, or fail its attempt at once."""

    def forget(self, call: OfferedCall) -> None:
        """Drop a parked call. Nothing happens if it is not parked."""


class Handle(Protocol):
    """Something that will happen, and can be called off."""

    def cancel(self) -> object:
        """Call it off. Nothing happens if it is over."""


class Shell(Protocol):
    """What calls need of the world outside."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; it may stand still during one pass of the event loop."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Handle:
        """Run `callback` `delay` seconds from now."""


class Forwarder:
    """The context of every call. `request_ids` gives a new unique one each time."""

    __slots__ = (
        "active",
        "budget",
        "call_later",
        "calls_by_chat",
        "clock",
        "cluster",
        "counting",
        "deadlines",
        "detector",
        "displaced",
        "heads",
        "kept",
        "limits",
        "max_attempts",
        "max_calls",
        "max_first_message",
        "now",
        "own_health",
        "pools",
        "request_ids",
        "retry",
        "slow",
        "small_buffer",
        "stats",
        "unwatched",
        "watch",
        "watch_every",
        "watcher",
    )

    def __init__(
        self,
        shell: Shell,
        cluster: Cluster,
        pools: Mapping[Endpoint, Pool],
        heads: RequestHeads,
        deadlines: DeadlineWheel,
        detector: OutlierDetector,
        displaced: DisplacedChats,
        own_health: OwnHealth,
        watch: LimitWatch,
        *,
        retry: RetrySettings,
        limits: LimitSettings,
        max_first_message: int,
        request_ids: Iterator[bytes],
    ) -> None:
        self.now = shell.now
        self.call_later = shell.call_later
        self.cluster = cluster
        self.pools = pools
        self.deadlines = deadlines
        self.detector = detector
        self.displaced = displaced
        self.own_health = own_health
        self.watch = watch
        self.stats = heads.stats
        self.clock = heads.stats.clock
        self.counting = heads.stats.on
        self.request_ids = request_ids
        self.budget = RetryBudget(retry)
        self.active = 0
        """Calls under way."""
        self.calls_by_chat: dict[bytes, int] | None = None
        """Key -> calls under way, if that is limited."""
        self.kept = 0
        """Bytes in the larger replay buffers."""
        self.watcher: Watcher | None = None
        self.unwatched = -1
        """New calls until one is watched; below zero: none is."""
        self.watch_every = -1
        self.slow = float("inf")
        """Seconds that a call may take before the watcher is told."""
        self.configure(heads, retry, limits, max_first_message)

    def watch_calls(self, watcher: Watcher, every: int, slow: float) -> None:
        """Have `watcher` told of one call in `every` (0: of none but those that ask for it), and of those that take
        longer than `slow` seconds.
        """
        self.watcher = watcher
        self.unwatched = self.watch_every = every or -1
        self.slow = slow

    def report_slow(self, record: CallRecord) -> None:
        """A call took longer than it may."""
        if self.watcher is not None:
            self.watcher.slow(record)

    def configure(
        self, heads: RequestHeads, retry: RetrySettings, limits: LimitSettings, max_first_message: int
    ) -> None:
        """From now on by these rules. Calls under way keep the route and the snapshot that they have."""
        self.heads = heads
        self.retry = retry
        self.limits = limits
        self.max_first_message = max_first_message
        self.budget.configure(retry)
        if not limits.max_calls_per_chat:
            self.calls_by_chat = None
        elif self.calls_by_chat is None:
            self.calls_by_chat = {}
        # Copies of what every call asks for: an attribute less to look up.
        self.small_buffer = min(SMALL, retry.replay_buffer)
        self.max_attempts = retry.max_attempts
        self.max_calls = limits.max_calls
