"""The data plane: what carries calls, on one event loop.

It decides nothing about servers but whether it can connect to them. Who is sick, drained or removed is the control
plane's business (`proxy.control_plane`), which speaks through the endpoints' availability and the methods below; how
calls end, the data plane tells the `detector` it was given. Neither imports the other: a process that only carries
calls has the one without the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from proxy.admin.call_records import CallRecords, Kept
from proxy.forwarding.failback import DisplacedChats
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.headers import RequestHeads
from proxy.forwarding.limits import LimitWatch
from proxy.forwarding.own_health import OwnHealth
from proxy.forwarding.request_ids import request_ids
from proxy.forwarding.routes import RouteTable
from proxy.forwarding.stats import Stats, StatsSnapshot
from proxy.http2 import Backlog, Limits, Outbox, PassClock, Turns
from proxy.transport.deadline_timer import DeadlineTimer
from proxy.transport.gauges import gathered
from proxy.transport.listener import Listener
from proxy.transport.loop_lag import LoopLag
from proxy.transport.pool import UpstreamPool
from proxy.transport.reactor import CLOSE_NOTIFY_TIMEOUT
from proxy.transport.slices import in_passes
from proxy.transport.tls import Tls

if TYPE_CHECKING:
    import socket

    from proxy.admin.tracing import OtlpTracer
    from proxy.admin.tracing_settings import TracingSettings
    from proxy.cluster.address import Address
    from proxy.cluster.cluster import Cluster
    from proxy.cluster.endpoint import Cause, Endpoint
    from proxy.cluster.outlier import OutlierDetector
    from proxy.settings import Settings
    from proxy.transport.reactor import Handle, Reactor
    from proxy.transport.settings import UpstreamSettings

log = logging.getLogger(__name__)

MAX_STREAMS: Final = 8_192
"""Streams per connection to a server that the connection's window has room for; the server sets the real limit."""
CERTIFICATES: Final = "districhat_certificate_expiration_timestamp_seconds"
REAP_EVERY: Final = 1.0
"""Seconds between two looks at the pools of removed endpoints."""


class DataPlane:
    """Listener, calls, pools: `open`, `start`, `serve`; then `drain` and `close`."""

    def __init__(
        self,
        settings: Settings,
        cluster: Cluster,
        detector: OutlierDetector,
        reactor: Reactor,
        displaced: DisplacedChats | None = None,
    ) -> None:
        """`detector`: is told how calls end, and asked which keys are quarantined. `displaced`: remembers which chats
        are away from home; None: a memory of its own. Raises ConfigError for certificates and keys
        that are no good.
        """
        self._settings = settings
        self._reactor = reactor
        self.cluster = cluster
        self.detector = detector
        self.watch = LimitWatch(reactor.now, log.warning)
        limits = settings.limits
        self.backlog = Backlog(limits.max_buffered_per_connection, limits.max_buffered, self.watch.exceeded)
        counting = settings.metrics.enabled
        # Records of calls have times too.
        timed = counting or settings.decisions.kept or settings.log.access_sample or settings.tracing.endpoint
        clock = PassClock(reactor.clock if timed else None)
        self.stats = Stats(clock, on=counting)
        self.outbox = Outbox(reactor.call_soon, self.backlog, clock, Turns(reactor.call_soon, reactor.clock))
        self.tls = Tls(settings.listener.tls, settings.upstream.tls)
        self.pools: dict[Endpoint, UpstreamPool] = {}
        """Also those of removed endpoints, until the last of their calls is over."""
        self._reaper: Handle | None = None
        self._deadlines = DeadlineTimer(reactor)
        self._lag = LoopLag(reactor, self.outbox.time_next)
        self.own_health = OwnHealth(lambda: any(endpoint.available for endpoint in cluster.snapshot))
        self.displaced = displaced or DisplacedChats(settings.failback, cluster.snapshot)
        listener = settings.listener
        self.forwarder = Forwarder(
            reactor,
            cluster,
            self.pools,
            request_heads(settings, self.stats),
            self._deadlines.wheel,
            detector,
            self.displaced,
            self.own_health,
            self.watch,
            retry=settings.retry,
            limits=limits,
            max_first_message=listener.max_first_message,
            request_ids=request_ids(reactor.random),
        )
        self._tracer = _tracer(settings.tracing)
        self.records = CallRecords(settings.decisions, settings.log, self._tracer)
        self.forwarder.watch_calls(self.records, self.records.every, settings.log.slow_after)
        self.listener = Listener(self.forwarder, listener, reactor, self.outbox, self.tls.downstream)
        self._add_pools(cluster.snapshot, settings)

    async def open(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Take the port, without accepting anybody yet. See `Listener.open`."""
        return await self.listener.open(address, inherited)

    def start(self) -> None:
        """Connect to the endpoints."""
        self.tls.watch(self._reactor)
        for pool in self.pools.values():
            pool.start()

    @property
    def sockets(self) -> list[int]:
        """The file descriptors that listen."""
        return self.listener.sockets

    @property
    def not_ready(self) -> str:
        """Why no client should be sent here now; empty: all is well."""
        return "" if self.own_health.serving else self.own_health.why_not

    async def serve(self) -> None:
        """Accept clients. Raises OSError if somebody else took the port meanwhile."""
        if self.stats.on:
            self._lag.start()
        await self.listener.serve()

    async def numbers(self) -> StatsSnapshot:
        """All numbers of this process."""
        told = await in_passes(gathered(self.forwarder, self.listener, self.pools))
        self._lag.tell(told)
        for section, at in self.tls.expirations().items():
            told.add(CERTIFICATES, at, section)
        told.add("districhat_workers", 1)
        told.add("districhat_workers_replaced_total", 0)
        told.add("districhat_worker_reports_lost_total", 0)
        return told

    async def recent_keys(self) -> Collection[bytes]:
        """Keys of chats seen recently, as far as they are remembered."""
        return self.cluster.snapshot.recent_keys

    async def decisions(self, limit: int, key: bytes | None) -> Sequence[Kept]:
        """The latest records of calls, newest first, at most so many. `key`: only those of this chat."""
        return self.records.latest(limit, key)

    def answers(self, endpoint: Endpoint) -> None:
        """`endpoint` has just been seen to answer: do not wait with connecting to it."""
        self.pools[endpoint].try_now()

    def said(self, endpoint: Endpoint, cause: Cause) -> None:
        """`cause` speaks against `endpoint` now, or no more: it is our endpoint, so we know."""

    # A new configuration.

    def prepare(self, settings: Settings, added: Iterable[Endpoint]) -> None:
        """Connect to endpoints that are about to be published."""
        for pool in self._add_pools(added, settings):
            pool.start()

    def apply(self, settings: Settings) -> None:
        """Go on by these settings and by the cluster's snapshot, which has been published. Calls under way keep their
        route and their snapshot; connections keep their windows and header limits.
        """
        self._settings = settings
        listener = settings.listener
        self.forwarder.configure(
            request_heads(settings, self.stats), settings.retry, settings.limits, listener.max_first_message
        )
        self.displaced.configure(settings.failback, self.cluster.snapshot, self._reactor.now())
        self.listener.configure(listener)
        self.backlog.configure(settings.limits.max_buffered_per_connection, settings.limits.max_buffered)
        present = set(self.cluster.snapshot)
        limits = limits_of_servers(settings.upstream)
        for endpoint, pool in self.pools.items():
            pool.configure(settings.upstream, limits)
            endpoint.max_calls = settings.limits.max_calls_per_endpoint
            if endpoint not in present:
                pool.drain()
        self._reap()
        self.own_health.update()

    async def applied(self) -> None:
        """Returns when calls are carried by what was applied: at once."""

    def _add_pools(self, endpoints: Iterable[Endpoint], settings: Settings) -> list[UpstreamPool]:
        limits = limits_of_servers(settings.upstream)
        added = []
        for endpoint in endpoints:
            endpoint.notify = self._availability_changed
            endpoint.max_calls = settings.limits.max_calls_per_endpoint
            pool = UpstreamPool(endpoint, settings.upstream, limits, self._reactor, self.outbox, self.tls.upstream)
            self.pools[endpoint] = pool
            added.append(pool)
        return added

    def _reap(self) -> None:
        """Forget the pools of removed endpoints whose calls are over."""
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        present = set(self.cluster.snapshot)
        removed = [endpoint for endpoint in self.pools if endpoint not in present]
        for endpoint in removed:
            if self.pools[endpoint].drained:
                gone = self.pools.pop(endpoint)
                successor = self.cluster.snapshot.by_id.get(endpoint.id)  # under another address
                self.stats.forget(endpoint, successor)
                if successor is not None:
                    self.pools[successor].made += gone.made
                log.info("%s (%s) has finished its calls and is gone", endpoint.id, endpoint.address)
            elif self._reaper is None:
                self._reaper = self._reactor.call_later(REAP_EVERY, self._reap)

    # The end.

    async def drain(self) -> int:
        """Finish the running calls within the grace, and take no new ones. Returns how many were cut off."""
        self.own_health.drain()
        return await self.listener.drain(self._settings.listener.drain_grace)

    def close(self) -> None:
        """Stop listening, and close the connections to the endpoints at once."""
        self.listener.stop_accepting()
        self._deadlines.cancel()
        self._lag.stop()
        if self._tracer is not None:
            self._tracer.close()
        self.tls.stop()
        if self._reaper is not None:
            self._reaper.cancel()
        for pool in self.pools.values():
            pool.close()

    async def closed(self) -> None:
        """Returns after `close` when the last of these connections is gone, or should be."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_NOTIFY_TIMEOUT):
                for pool in self.pools.values():
                    await pool.closed()

    def _availability_changed(self, _endpoint: Endpoint) -> None:
        self.own_health.update()


def request_heads(settings: Settings, stats: Stats) -> RequestHeads:
    """The rules by which request headers are read."""
    listener = settings.listener
    return RequestHeads(
        RouteTable(settings.routes),
        stats,
        own_health=listener.health == "own",
        max_size=listener.max_header_list_size,
        max_count=listener.max_header_count,
        explain=settings.decisions.trailers,
        trace=bool(settings.tracing.endpoint),
    )


def _tracer(settings: TracingSettings) -> OtlpTracer | None:
    if not settings.endpoint:
        return None
    from proxy.admin.tracing import OtlpTracer  # noqa: PLC0415 - needs the extra otel

    return OtlpTracer(settings)


def limits_of_servers(settings: UpstreamSettings) -> Limits:
    """What a server's connection may ask of us."""
    return Limits(MAX_STREAMS, settings.stream_window, settings.max_header_list_size, settings.max_header_count)
