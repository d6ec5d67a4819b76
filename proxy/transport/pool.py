"""The connections to one endpoint.

Usually one: all calls to a server that arrive in one pass of the loop then leave in one write. More are opened only
when every one is at the server's stream limit. A lost connection is replaced at once, so that a call seldom waits for
one; while a server cannot be reached it is marked down, calls walk past, and it is tried again in the background.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from functools import partial

from proxy.backoff import doubled
from proxy.cluster.endpoint import Cause, Endpoint
from proxy.forwarding.offered import OfferedCall
from proxy.forwarding.retry import Outcome
from proxy.grpc_wire.status import Status
from proxy.http2 import MAX_STREAM_ID, ConnectionClosingError, Limits, NoAvailableStreamIDError, Outbox
from proxy.transport.containment import contained
from proxy.transport.reactor import Handle, Reactor, as_protocol
from proxy.transport.settings import UpstreamSettings
from proxy.transport.tls import ClientTls
from proxy.transport.upstream import UpstreamConnection

log = logging.getLogger(__name__)

YOUNG = 1.0
"""Seconds. A connection that ends younger than this without having carried a call counts as a failed connect, or a
server that accepts and hangs up would be connected to in a tight loop."""

NEVER = 3.2e9
"""Seconds; a hundred years."""
SATURATED = 1.0
"""Seconds after a call had to wait for a free stream during which a refusal is put down to the stream limit."""
REFUSED_PAUSE = 0.005
"""Seconds for the server to see that a stream has ended: first this, doubled each time that it still has not."""
MAX_REFUSALS = 7
"""Refusals of one call for which it waits again: the last offer is 0.6 s after the first. For the protocol one would do
(gRFC A6: transparent once). But of 4,025 calls that grpcio's server refused so, with 2 to 100 streams and more calls
waiting, 6 were refused twice or more, one of them for 0.1 s: they would have left the server of their chats."""


class UpstreamPool:
    """Connects eagerly from `start` on until `close`."""

    def __init__(
        self,
        endpoint: Endpoint,
        settings: UpstreamSettings,
        limits: Limits,
        reactor: Reactor,
        outbox: Outbox,
        tls: ClientTls | None = None,
    ) -> None:
        """`tls`: None: cleartext."""
        self.endpoint = endpoint
        self.tls = tls.of(endpoint) if tls is not None and endpoint.tls else None
        self.connections: list[UpstreamConnection] = []
        """Ready for calls."""
        self.made = 0
        """Connections since the start."""
        self.waiting: OrderedDict[OfferedCall, None] = OrderedDict()
        """Calls parked until there is a connection or a free stream, oldest first."""
        self.settings = settings
        self.limits = limits
        """Of the connections that are made from now on; `settings` are read whenever they are needed."""
        self.reactor = reactor
        self._outbox = outbox
        self._retired: set[UpstreamConnection] = set()
        self._wires: set[UpstreamConnection] = set()
        """Those with a transport, whatever they are good for."""
        self._gone = asyncio.Event()
        self._connecting: UpstreamConnection | None = None
        self._attempt: Handle | None = None
        self._timer: Handle | None = None
        self._failures = 0
        self._saturated_until = 0.0
        self._holding: Handle | None = None
        """The timer that ends a pause in handing out calls."""
        self._closed = False

    def start(self) -> None:
        """Begin to connect, if no call has asked for that already."""
        self._grow()

    def try_now(self) -> None:
        """The server is known to be there: do not wait for the end of the back-off. Else nothing happens."""
        if not self.connections and self._connecting is None and not self._closed:
            self._connect()

    def configure(self, settings: UpstreamSettings, limits: Limits) -> None:
        """Go on by these. Connections that stand keep their limits and their age; how they are kept alive changes."""
        changed = settings.keepalive_interval != self.settings.keepalive_interval
        self.settings = settings
        self.limits = limits
        if changed:
            for connection in (*self.connections, *self._retired):
                connection.keep_alive()

    # From calls.

    def submit(self, call: OfferedCall) -> None:
        """Attach the call to a connection now, or park it, or fail its attempt at once."""
        if not self.waiting:
            for connection in self.connections:
                if (
                    len(connection.calls) < connection.max_streams
                    and not connection.closed
                    and self._attach(call, connection)
                ):
                    return
        if self._closed or (not self.connections and self._connecting is None and self._timer is not None):
            call.attempt_failed(Outcome.CONNECT_FAILED, self.endpoint.reason or "not connected")
        elif len(self.waiting) >= self.settings.max_waiting:
            why = f"{len(self.waiting)} calls are waiting for it already"
            call.attempt_failed(Outcome.OVERLOADED, why, Status.RESOURCE_EXHAUSTED)
        else:
            if self.connections:
                self._saturated_until = self.reactor.now() + SATURATED
            self.waiting[call] = None
            self._grow()

    def take_back(self, call: OfferedCall, connection: UpstreamConnection) -> bool:
        """A call that was refused on `connection`: if that was for the stream limit, the call waits again, before all
        others. Else it is for the retry table to say what becomes of it.

        A server may count a stream a moment longer than the protocol does (C-core: until its program has let go of it),
        so that one opened in the place of another that has just ended is refused. That is no reason to leave it. Where
        none has ended, the refusal means something else: on a new connection to a server that refuses and hangs up.
        """
        # A pool that drains gets no free stream any more: the call would wait for ever.
        if self._closed or self.reactor.now() >= self._saturated_until or not connection.has_ended_streams:
            return False
        refusals = call.take_back(MAX_REFUSALS)
        if not refusals:
            return False
        self.waiting[call] = None
        self.waiting.move_to_end(call, last=False)
        if self._holding is None:
            self._holding = self.reactor.call_later(REFUSED_PAUSE * 2 ** (refusals - 1), self._resume)
        return True

    def _resume(self) -> None:
        self._holding = None
        self.dispatch()

    def forget(self, call: OfferedCall) -> None:
        """Drop a parked call. Nothing happens if it is not parked."""
        self.waiting.pop(call, None)

    def _attach(self, call: OfferedCall, connection: UpstreamConnection) -> bool:
        try:
            call.attach(connection)
        except (ConnectionClosingError, NoAvailableStreamIDError):
            self.retire(connection)
            return False
        if connection.last_sid > MAX_STREAM_ID // 2:
            self._rotate(connection)
        return True

    def _rotate(self, connection: UpstreamConnection) -> None:
        """Replace a connection that is old, or runs out of stream ids (RFC 9113, 5.1.1), by a fresh one."""
        if connection in self.connections and not connection.aged:
            connection.aged = True
            if self._connecting is None:
                self._connect()

    # From connections.

    def opened(self, connection: UpstreamConnection) -> None:
        """`connection` has a transport; `disconnected` must follow."""
        self._wires.add(connection)

    def disconnected(self, connection: UpstreamConnection) -> None:
        """The transport of `connection` is gone. Nothing happens if it was not `opened`."""
        self._wires.discard(connection)
        if self._closed and not self._wires:
            self._gone.set()

    def dispatch(self) -> None:
        """Attach parked calls in order, as far as there are free streams."""
        if self._holding is not None:
            return
        for connection in tuple(self.connections):
            while self.waiting and len(connection.calls) < connection.max_streams and not connection.closed:
                call = next(iter(self.waiting))
                attached = True
                with contained(call):  # or it would keep its place, and all others from theirs
                    attached = self._attach(call, connection)
                if not attached:
                    break
                self.waiting.pop(call, None)

    def connected(self, connection: UpstreamConnection) -> None:
        """`connection` has the server's SETTINGS."""
        self._stop_timer()
        self._connecting = self._attempt = None
        connection.opened_at = self.reactor.now()
        self.made += 1
        self.connections.append(connection)
        settings = self.settings
        # gRFC A9: 10 % of jitter, so that connections opened together do not end together.
        age = (settings.max_connection_age or NEVER) * (0.9 + self.reactor.random() / 5)
        connection.timers.append(self.reactor.call_later(age, partial(self._rotate, connection)))
        connection.keep_alive()
        for old in [each for each in self.connections if each.aged]:
            self.connections.remove(old)
            self._retired.add(old)
            old.finish()
        if self.endpoint.blocked_by(Cause.CONNECT):
            log.info("%s is reachable again", self.endpoint.id)
        self.endpoint.unblock(Cause.CONNECT)
        self.dispatch()
        if self.waiting:
            self._grow()

    def retire(self, connection: UpstreamConnection) -> None:
        """No new calls for `connection`; its running ones finish. May be called twice."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._retired.add(connection)
            self._replace(connection, "the server ends its connections at once")

    def lost(self, connection: UpstreamConnection, why: str) -> None:
        """`connection` is gone. Its calls are not the pool's business."""
        if connection is self._connecting:
            self._connect_failed(why)
        elif connection in self.connections:
            self.connections.remove(connection)
            self._replace(connection, why)
        else:
            self._retired.discard(connection)

    def _replace(self, connection: UpstreamConnection, why: str) -> None:
        useful = connection.last_sid > 0 or self.reactor.now() - connection.opened_at >= YOUNG
        if useful:
            self._failures = 0
        if self._closed or self.connections or self._connecting is not None:
            return
        if useful:
            self._connect()
        else:
            self._connect_failed(why)

    # Connecting.

    def _grow(self) -> None:
        """Open one connection more, if there may be more."""
        if self._connecting is None and len(self.connections) < self.settings.max_connections:
            self._connect()

    def _connect(self) -> None:
        self._stop_timer()
        connection = self._connecting = UpstreamConnection(self, self.limits, self._outbox)
        timeout = self.settings.connect_timeout
        self._timer = self.reactor.call_later(timeout, self._connect_timed_out)

        def failed(why: str) -> None:
            if connection is self._connecting:
                self._connect_failed(why)

        secured = self.tls.secured if self.tls is not None else None
        self._attempt = self.reactor.connect(self.endpoint.address, as_protocol(connection), failed, secured)

    def _connect_timed_out(self) -> None:
        self._connect_failed(f"no HTTP/2 connection within {self.settings.connect_timeout:g} s")

    def _connect_failed(self, why: str) -> None:
        """Mark the server down unless another connection to it stands, and try again after the back-off."""
        connection, self._connecting = self._connecting, None
        if connection is not None:
            connection.abort()
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None
        self._stop_timer()
        if self._closed or self.connections:
            # A full pool that cannot grow: the parked calls wait for a free stream. An old one that cannot be replaced
            # is tried again later.
            for old in [each for each in self.connections if each.aged]:
                old.aged = False
                delay = self.settings.max_connect_backoff
                old.timers.append(self.reactor.call_later(delay, partial(self._rotate, old)))
            return
        settings = self.settings
        ceiling = doubled(settings.connect_backoff, self._failures, settings.max_connect_backoff)
        # Half fixed, half jitter: full jitter may be zero, and the next call would pay for the connect again.
        delay = ceiling * (0.5 + self.reactor.random() / 2)
        self._failures += 1
        if not self.endpoint.blocked_by(Cause.CONNECT):
            log.warning("%s (%s) is down: %s", self.endpoint.id, self.endpoint.address, why)
        self.endpoint.block(Cause.CONNECT, f"cannot connect: {why}")
        self._timer = self.reactor.call_later(delay, self._connect)
        parked, self.waiting = self.waiting, OrderedDict()
        for call in parked:
            with contained(call):
                call.attempt_failed(Outcome.CONNECT_FAILED, self.endpoint.reason)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def drain(self) -> None:
        """Take no new calls and connect no more; connections close when their calls are done. The endpoint is blocked
        already: parked calls go elsewhere.
        """
        connecting, self._connecting = self._connecting, None
        self._stop()
        if connecting is not None:
            connecting.abort()
        for connection in self.connections:
            self._retired.add(connection)
            connection.finish()
        self.connections = []
        parked, self.waiting = self.waiting, OrderedDict()
        for call in parked:
            with contained(call):
                call.attempt_failed(Outcome.CONNECT_FAILED, self.endpoint.reason)

    @property
    def drained(self) -> bool:
        """Whether nothing is left that a call might use."""
        return not (self.endpoint.active or self.connections or self._retired)

    def close(self) -> None:
        """Stop connecting and close every connection, with whatever calls are left on it. May be called twice."""
        self._stop()
        everyone = [*self.connections, *self._retired]
        if self._connecting is not None:
            everyone.append(self._connecting)
        for connection in everyone:
            connection.close()
        if not self._wires:
            self._gone.set()

    async def closed(self) -> None:
        """Returns after `close` when the last transport is gone: over TLS, saying goodbye takes a moment."""
        await self._gone.wait()

    def _stop(self) -> None:
        self._closed = True
        self._stop_timer()
        for under_way in (self._attempt, self._holding):
            if under_way is not None:
                under_way.cancel()
        self._attempt = self._holding = None
