"""What is known of one call, and the bytes of it that the proxy holds or owes: the ground that `Call` stands on.

Rules of this file:

1. All fields of a call are here, with one `__init__`: a constructor more in the chain costs every call another frame.
2. `buffer` is all of the request body so far, for a replay; None from when it cannot be sent again. What is longer than
   a small buffer counts, until it is dropped, against the totals of its connection and of all calls.
3. Bytes are owed to their sender (`request_unacked`, `response_unacked`) until the other side's engine has sent them;
   the connections settle that after each flush. Up to the sender's `slack` nobody watches them: the call pays at its
   end. A call that ends early pays at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.cluster.endpoint import Endpoint
from proxy.cluster.snapshot import ClusterSnapshot
from proxy.forwarding.deadlines import Timed
from proxy.forwarding.headers import RequestHead
from proxy.forwarding.peers import Downstream, Upstream
from proxy.forwarding.stats import CANCELLED
from proxy.forwarding.walk import Walk
from proxy.grpc_wire.message import FirstMessage

if TYPE_CHECKING:
    from proxy.forwarding.forwarder import Forwarder, Handle


class BufferedCall:
    """See the module. Nobody makes one: a call is a `Call`."""

    __slots__ = (
        "arrived",
        "bucket",
        "buffer",
        "buffered",
        "client_timeout",
        "deadline",
        "done",
        "down",
        "endpoint",
        "first_message",
        "forwarder",
        "head",
        "kept",
        "key",
        "pause",
        "reported",
        "request_ended",
        "request_id",
        "request_unacked",
        "response_started",
        "response_unacked",
        "routed",
        "sid",
        "snapshot",
        "started",
        "status",
        "sweeps",
        "try_timer",
        "up",
        "up_sid",
        "walk",
    )

    def __init__(
        self, forwarder: Forwarder, down: Downstream, sid: int, head: RequestHead, client_timeout: bytes | None
    ) -> None:
        # Comments, where docstrings would stand elsewhere: each of those is a bytecode (NOP) in every call.
        self.forwarder = forwarder
        self.down = down
        self.sid = sid
        self.head = head
        # `grpc-timeout` as the client sent it; None too if the route's own timeout is shorter.
        self.client_timeout = client_timeout
        # By the clock of the passes, as far as calls are counted.
        self.arrived = forwarder.clock.time
        self.started = 0.0
        self.deadline: float | None = None
        # Where the deadline wheel holds it.
        self.bucket: set[Timed] | None = None

        # The key is known, or known to be missing.
        self.routed = False
        self.key = b""
        self.snapshot: ClusterSnapshot | None = None
        self.first_message: FirstMessage | None = None
        self.up: Upstream | None = None
        self.up_sid = 0
        # The server that has been given the call, attached or parked.
        self.endpoint: Endpoint | None = None
        # The way along the ring, once the first choice has failed.
        self.walk: Walk | None = None
        # Ends the attempt that takes too long.
        self.try_timer: Handle | None = None
        # Ends the wait that a server asked for.
        self.pause: Handle | None = None
        # How often the call was seen without its first message.
        self.sweeps = 0
        self.request_id = b""

        # All of the request body so far; None once it cannot be sent again.
        self.buffer: list[bytes] | None = []
        self.buffered = 0
        # Bytes of it that count against the total of all calls.
        self.kept = 0
        self.request_ended = False
        self.response_started = False
        # `grpc-status` that the client gets; until there is one, the client has gone before.
        self.status = CANCELLED
        # Those who watch the servers know how it ended.
        self.reported = False
        self.done = False
        self.request_unacked = 0
        self.response_unacked = 0

    # The request, for a replay.

    def _keep(self, data: bytes) -> None:
        """Add to the replay buffer, or give it up when it gets too long."""
        self.buffered += len(data)
        if self.buffer is not None:
            self.buffer.append(data)
            if self.buffered > self.forwarder.small_buffer:
                self.trim_replay()

    def trim_replay(self) -> None:
        """The request has been written: keep it for a replay only as long as it is short enough, and there is room."""
        self._count()
        if self.buffered > self.forwarder.retry.replay_buffer or self._is_too_much():
            self.buffer = None
            self._uncount()

    def _is_too_much(self) -> bool:
        forwarder = self.forwarder
        return (
            forwarder.kept > forwarder.retry.replay_buffer_total
            or self.down.kept > forwarder.limits.max_buffered_per_connection
        )

    def _count(self) -> None:
        more = self.buffered - self.kept
        self.kept += more
        self.forwarder.kept += more
        self.down.kept += more

    def _uncount(self) -> None:
        self.forwarder.kept -= self.kept
        self.down.kept -= self.kept
        self.kept = 0

    # Credit.

    def pay_request(self, amount: int) -> None:
        """The client gets credit for `amount` bytes."""
        self.request_unacked -= amount
        down = self.down
        if not down.closed:
            down.engine.acknowledge_received_data(amount, self.sid)
            if not down.dirty and down.engine.want_write:
                down.mark_dirty()

    def pay_response(self, amount: int) -> None:
        """The server gets credit for `amount` bytes."""
        self.response_unacked -= amount
        up = self.up
        if up is not None and not up.closed:
            up.engine.acknowledge_received_data(amount, self.up_sid)
            if not up.dirty and up.engine.want_write:
                up.mark_dirty()
