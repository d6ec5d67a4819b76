"""The port clients connect to, and its connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

from proxy.cluster.address import Address
from proxy.forwarding.forwarder import Forwarder
from proxy.http2 import Limits, Outbox
from proxy.transport.containment import contained
from proxy.transport.downstream import LAST_WORDS, DownstreamConnection
from proxy.transport.reactor import Handle, Reactor

DRAIN_NOTICE: Final = 5.0
"""Seconds that a client gets to acknowledge the first GOAWAY of a drain; grpc-go waits as long."""
BACKLOG: Final = 4096
"""Connections that the kernel accepts before we do; it caps this at net.core.somaxconn."""


SWEEPS: Final = 4
"""Looks at a call during its time for the first message: a timer per call would cost every call."""


class Listener:
    """Accepts clients from `open` on, and ends them by `drain`."""

    def __init__(
        self, forwarder: Forwarder, limits: Limits, reactor: Reactor, outbox: Outbox, *, first_message_timeout: float
    ) -> None:
        """`first_message_timeout`: seconds that a call's first message may take, where the route needs it."""
        self.first_message_timeout = first_message_timeout
        self._sweeper: Handle | None = None
        self.connections: set[DownstreamConnection] = set()
        self._forwarder = forwarder
        self.limits = limits
        """Of the connections that come from now on."""
        self._reactor = reactor
        self._outbox = outbox
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._cut_off = 0

    async def open(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Take `address`, or sockets that listen already; clients are accepted from `serve` on. Returns the address,
        with the real port. Raises OSError if it cannot be had.
        """
        create = partial(asyncio.get_running_loop().create_server, backlog=BACKLOG, start_serving=False)
        if inherited:
            self._servers = [await create(self.connection, sock=each) for each in inherited]
        else:
            self._servers = [await create(self.connection, address.host, address.port)]
        host, port = self._servers[0].sockets[0].getsockname()[:2]
        return Address(host, port)

    async def serve(self) -> None:
        """Accept clients. Raises OSError if somebody else took the port meanwhile."""
        self.start_sweeping()
        for server in self._servers:
            await server.start_serving()

    def start_sweeping(self) -> None:
        """Begin to look for calls whose first message does not come."""
        self._sweeper = self._reactor.call_later(self.first_message_timeout / SWEEPS, self._sweep)

    def _sweep(self) -> None:
        for connection in self.connections:
            for call in [each for each in connection.calls.values() if not each.routed]:
                with contained(call):
                    call.swept(SWEEPS + 1)
        self.start_sweeping()

    @property
    def sockets(self) -> list[int]:
        """The file descriptors that listen."""
        return [each.fileno() for server in self._servers for each in server.sockets]

    def connection(self) -> DownstreamConnection:
        """The protocol of a client that is about to be connected."""
        return DownstreamConnection(self._forwarder, self.limits, self._outbox, self._opened, self._closed)

    def _opened(self, connection: DownstreamConnection) -> None:
        self.connections.add(connection)
        self._empty.clear()
        if self._draining:
            connection.start_drain()  # was accepted just before we stopped

    def _closed(self, connection: DownstreamConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def drain(self, grace: float) -> int:
        """Take no more connections, then no more calls, and wait up to `grace` seconds for the running ones.

        Calls that last longer end with UNAVAILABLE. Returns how many they were. Call it once.
        """
        self._draining = True
        for server in self._servers:
            server.close()
        for connection in self.connections:
            connection.start_drain()
        timers = (
            self._reactor.call_later(min(DRAIN_NOTICE, grace / 2), self._finish_drain),
            self._reactor.call_later(grace, self._end_calls),
            self._reactor.call_later(grace + LAST_WORDS, self._abort),
        )
        await self._empty.wait()
        for timer in (*timers, self._sweeper):
            if timer is not None:
                timer.cancel()
        return self._cut_off

    def _finish_drain(self) -> None:
        for connection in self.connections:
            connection.finish_drain()

    def _end_calls(self) -> None:
        for connection in self.connections:
            calls = tuple(connection.calls.values())
            self._cut_off += len(calls)
            for call in calls:
                with contained(call):
                    call.shut_down()

    def _abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()
