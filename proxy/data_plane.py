"""The data plane: what carries calls, on one event loop.

It decides nothing about servers but whether it can connect to them. Who is sick, drained or removed is the control
plane's business (`proxy.control_plane`), which speaks through the endpoints' availability and the methods below; how
calls end, the data plane tells the `detector` it was given. Neither imports the other: a process that only carries
calls has the one without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from proxy.forwarding.failback import DisplacedChats
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.headers import RequestHeads
from proxy.forwarding.own_health import OwnHealth
from proxy.forwarding.request_ids import request_ids
from proxy.forwarding.routes import RouteTable
from proxy.http2 import Limits, Outbox
from proxy.transport.deadline_timer import DeadlineTimer
from proxy.transport.listener import Listener
from proxy.transport.pool import UpstreamPool

if TYPE_CHECKING:
    import socket

    from proxy.cluster.address import Address
    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Endpoint
    from proxy.cluster.outlier import OutlierDetector
    from proxy.settings import Settings
    from proxy.transport.reactor import Reactor
    from proxy.transport.settings import ListenerSettings, UpstreamSettings

MAX_STREAMS: Final = 8_192
"""Streams per connection to a server that the connection's window has room for; the server sets the real limit."""


class DataPlane:
    """Listener, calls, pools: `open`, `start`, `serve`; then `drain` and `close`."""

    def __init__(self, settings: Settings, cluster: Cluster, detector: OutlierDetector, reactor: Reactor) -> None:
        """`detector`: is told how calls end, and asked which keys are quarantined."""
        self._settings = settings
        self.cluster = cluster
        self.detector = detector
        self.outbox = Outbox(reactor.call_soon)
        snapshot = cluster.snapshot
        from_server = limits_of_servers(settings.upstream)
        self.pools = {
            endpoint: UpstreamPool(endpoint, settings.upstream, from_server, reactor, self.outbox)
            for endpoint in snapshot
        }
        self._deadlines = DeadlineTimer(reactor)
        self.own_health = OwnHealth(lambda: any(endpoint.available for endpoint in cluster.snapshot))
        for endpoint in snapshot:
            endpoint.notify = self._availability_changed
        listener = settings.listener
        self.forwarder = Forwarder(
            reactor,
            cluster,
            self.pools,
            RequestHeads(RouteTable(settings.routes), own_health=listener.health == "own"),
            self._deadlines.wheel,
            detector,
            DisplacedChats(settings.failback),
            self.own_health,
            retry=settings.retry,
            limits=settings.limits,
            max_first_message=listener.max_first_message,
            request_ids=request_ids(reactor.random),
        )
        self.listener = Listener(
            self.forwarder,
            limits_of_clients(listener),
            reactor,
            self.outbox,
            first_message_timeout=listener.first_message_timeout,
        )

    async def open(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Take the port, without accepting anybody yet. See `Listener.open`."""
        return await self.listener.open(address, inherited)

    def start(self) -> None:
        """Connect to the endpoints."""
        for pool in self.pools.values():
            pool.start()

    async def serve(self) -> None:
        """Accept clients. Raises OSError if somebody else took the port meanwhile."""
        await self.listener.serve()

    def answers(self, endpoint: Endpoint) -> None:
        """`endpoint` has just been seen to answer: do not wait with connecting to it."""
        self.pools[endpoint].try_now()

    async def drain(self) -> int:
        """Finish the running calls within the grace, and take no new ones. Returns how many were cut off."""
        self.own_health.drain()
        return await self.listener.drain(self._settings.listener.drain_grace)

    def close(self) -> None:
        """Close the connections to the endpoints at once."""
        self._deadlines.cancel()
        for pool in self.pools.values():
            pool.close()

    def _availability_changed(self, _endpoint: Endpoint) -> None:
        self.own_health.update()


def limits_of_clients(settings: ListenerSettings) -> Limits:
    """What a client's connection may ask of us."""
    return Limits(
        settings.max_concurrent_streams,
        settings.stream_window,
        settings.max_header_list_size,
        settings.max_header_count,
    )


def limits_of_servers(settings: UpstreamSettings) -> Limits:
    """What a server's connection may ask of us."""
    return Limits(MAX_STREAMS, settings.stream_window, settings.max_header_list_size, settings.max_header_count)
