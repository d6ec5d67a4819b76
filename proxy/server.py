"""The composition root: builds the proxy from its settings, runs it, ends it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import signal
from collections.abc import Iterator

import uvloop

from proxy.cluster.address import Address
from proxy.cluster.cluster import Cluster
from proxy.cluster.endpoint import Endpoint
from proxy.cluster.outlier import OutlierDetector, OutlierSettings
from proxy.control.health import HealthChecker
from proxy.errors import ConfigError
from proxy.forwarding.deadlines import DeadlineWheel
from proxy.forwarding.failback import DisplacedChats
from proxy.forwarding.forwarder import Forwarder
from proxy.forwarding.headers import RequestHeads
from proxy.forwarding.own_health import OwnHealth
from proxy.forwarding.routes import RouteTable
from proxy.http2 import Limits, Outbox
from proxy.settings import Settings
from proxy.transport.listener import Listener
from proxy.transport.pool import UpstreamPool
from proxy.transport.reactor import AsyncioReactor, Handle, Reactor, reason
from proxy.transport.takeover import Handover, Takeover

log = logging.getLogger(__name__)


MAX_STREAMS = 8_192
"""Streams per connection to a server that the connection's window has room for; the server sets the real limit."""


class DeadlineTimer:
    """One timer of the reactor for all deadlines: always armed for the earliest."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._handle: Handle | None = None
        self.wheel = DeadlineWheel(self._arm)

    def _arm(self, at: float) -> None:
        self.cancel()
        self._handle = self._reactor.call_later(at - self._reactor.now(), self._fire)

    def _fire(self) -> None:
        self.wheel.expire(self._reactor.now())

    def cancel(self) -> None:
        """Expire nothing more."""
        if self._handle is not None:
            self._handle.cancel()


class OutlierSweeper:
    """Calls the detector's clockwork: ejections that are over, comparisons at the end of an interval."""

    EVERY = 1.0  # seconds

    def __init__(self, detector: OutlierDetector, settings: OutlierSettings, reactor: Reactor) -> None:
        self._detector = detector
        self._interval = settings.interval
        self._reactor = reactor
        self._compared = 0.0
        self._timer: Handle | None = None

    def start(self) -> None:
        """Begin."""
        self._compared = self._reactor.now()
        self._timer = self._reactor.call_later(self.EVERY, self._sweep)

    def _sweep(self) -> None:
        now = self._reactor.now()
        for endpoint in self._detector.sweep(now):
            log.info("%s: the time of its ejection is over", endpoint.id)
        if now - self._compared >= self._interval:
            self._compared = now
            self._detector.compare(now)
        self._timer = self._reactor.call_later(self.EVERY, self._sweep)

    def stop(self) -> None:
        """End. Nothing happens if it was not started."""
        if self._timer is not None:
            self._timer.cancel()


def request_ids(reactor: Reactor) -> Iterator[bytes]:
    """Unique ids: 64 bits of chance for this process, then a number."""
    prefix = b"%016x-" % int(reactor.random() * 2**64)
    return (prefix + b"%x" % number for number in itertools.count(1))


class Proxy:
    """A proxy on an event loop: `start`, then `stop`."""

    def __init__(self, settings: Settings, reactor: Reactor) -> None:
        self._settings = settings
        self.outbox = Outbox(reactor.call_soon)
        self.cluster = Cluster(settings.endpoints, settings.ring)
        upstream = settings.upstream
        from_server = Limits(
            MAX_STREAMS, upstream.stream_window, upstream.max_header_list_size, upstream.max_header_count
        )
        self.pools = {
            endpoint: UpstreamPool(endpoint, upstream, from_server, reactor, self.outbox)
            for endpoint in self.cluster.snapshot
        }
        self._deadlines = DeadlineTimer(reactor)
        listener = settings.listener
        snapshot = self.cluster.snapshot
        self.detector = OutlierDetector(settings.outlier, snapshot)
        self._sweeper = OutlierSweeper(self.detector, settings.outlier, reactor)
        self.own_health = OwnHealth(lambda: any(endpoint.available for endpoint in snapshot))
        for endpoint in snapshot:
            endpoint.notify = lambda _endpoint: self.own_health.update()
        self.forwarder = Forwarder(
            reactor,
            self.cluster,
            self.pools,
            RequestHeads(RouteTable(settings.routes), own_health=listener.health == "own"),
            self._deadlines.wheel,
            self.detector,
            DisplacedChats(settings.failback),
            self.own_health,
            retry=settings.retry,
            limits=settings.limits,
            max_first_message=listener.max_first_message,
            request_ids=request_ids(reactor),
        )
        from_client = Limits(
            listener.max_concurrent_streams,
            listener.stream_window,
            listener.max_header_list_size,
            listener.max_header_count,
        )
        self.listener = Listener(
            self.forwarder,
            from_client,
            reactor,
            self.outbox,
            first_message_timeout=listener.first_message_timeout,
        )
        self._checker = HealthChecker(
            snapshot,
            settings.health,
            addresses={each.id: Address.parse(each.check_address or each.address) for each in settings.endpoints},
            on_success=self._passed_a_check,
            chance=reactor.random,
        )

    async def start(self, *, take_over: bool = False) -> Address:
        """Listen and connect to the endpoints. Returns the address listened on. Raises ConfigError if it is taken.

        `take_over`: the port is asked of the proxy that has it, if there is one, which then ends.
        """
        address = Address.parse(self._settings.listener.address)
        takeover = await Takeover.begin(address) if take_over else None
        try:
            opened = await self.listener.open(address, takeover.sockets if takeover is not None else ())
            # Only then, so that a port in use is said at once; and before the first client, so that none meets a server
            # that nobody has looked at.
            self.start_watching()
            await self._checker.start()
            await self.listener.serve()
        except OSError as error:
            await self._checker.stop()
            self.close()
            if takeover is not None:
                takeover.close()
            raise ConfigError([f"listener.address: cannot listen on {address}: {reason(error)}"]) from error
        if takeover is not None:
            await takeover.confirm()
            log.info("took over %s", opened)
        return opened

    def start_watching(self) -> None:
        """Connect to the endpoints, and begin to watch them."""
        for pool in self.pools.values():
            pool.start()
        self._sweeper.start()

    def _passed_a_check(self, endpoint: Endpoint) -> None:
        if self.detector.checked_healthy(endpoint):
            log.info("%s is well again: its ejection ends before its time", endpoint.id)
        self.pools[endpoint].try_now()

    async def stop(self) -> int:
        """Finish the running calls within the grace and close everything. Returns how many calls were cut off."""
        self.own_health.drain()
        cut_off = await self.listener.drain(self._settings.listener.drain_grace)
        await self._checker.stop()
        self.close()
        return cut_off

    def close(self) -> None:
        """Close the connections to the endpoints at once."""
        self._deadlines.cancel()
        self._sweeper.stop()
        for pool in self.pools.values():
            pool.close()


async def _run(settings: Settings, *, take_over: bool) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    proxy = Proxy(settings, AsyncioReactor(loop))
    address = await proxy.start(take_over=take_over)
    configured = Address.parse(settings.listener.address)
    handover = Handover(configured if configured.port else address, proxy.listener.sockets, stop.set)
    handover.open()
    # What is alive now stays alive, and calls make few cycles: fewer and smaller collections save 3 % of a call.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    print(f"districhat ready on {address}", flush=True)
    await stop.wait()
    await handover.close()
    for signum in (signal.SIGTERM, signal.SIGINT):  # a second one ends the drain at once
        loop.remove_signal_handler(signum)
    log.info("draining: running calls have %g s to finish", settings.listener.drain_grace)
    cut_off = await proxy.stop()
    if cut_off:
        log.warning("%d calls did not finish in time and were cut off", cut_off)
    return 0


def serve(settings: Settings, *, take_over: bool = False) -> int:
    """Run the proxy until SIGTERM, SIGINT or a successor that takes its port, then drain it. Prints one line on stdout
    when it listens. `take_over`: take the port from the proxy that has it, if there is one.

    Returns 0, also if calls had to be cut off at the end of the grace. Raises ConfigError if the port is taken.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(settings, take_over=take_over))
