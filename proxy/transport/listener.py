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
from proxy.transport.client_clock import ClientLimits
from proxy.transport.client_sweeper import DRAIN_NOTICE, ClientSweeper
from proxy.transport.containment import contained
from proxy.transport.downstream import LAST_WORDS, DownstreamConnection
from proxy.transport.reactor import Reactor
from proxy.transport.settings import ListenerSettings

METADATA_TOLERANCE: Final = 2
"""Up to twice the announced size or number of header fields, a call alone is refused; beyond, its connection ends."""
BACKLOG: Final = 4096
"""Connections that the kernel accepts before we do; it caps this at net.core.somaxconn."""


class Listener:
    """Accepts clients from `open` on, and ends them by `drain`."""

    def __init__(self, forwarder: Forwarder, settings: ListenerSettings, reactor: Reactor, outbox: Outbox) -> None:
        self._settings = settings
        self.connections: set[DownstreamConnection] = set()
        self._by_client: dict[str, int] = {}
        """Address of a client -> its connections. Those without an address are not counted."""
        self.sweeper = ClientSweeper(settings, self.connections, forwarder.watch, reactor)
        self._forwarder = forwarder
        self._limits = limits_of_clients(settings)
        self._reactor = reactor
        self._outbox = outbox
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()
        self._empty.set()
        self._draining = False
        self._cut_off = 0

    def configure(self, settings: ListenerSettings) -> None:
        """Go on by these settings. What a connection was told when it came holds for it as long as it lasts."""
        self._settings = settings
        self._limits = limits_of_clients(settings)
        self.sweeper.configure(settings)

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
        self.sweeper.start()
        for server in self._servers:
            await server.start_serving()

    @property
    def sockets(self) -> list[int]:
        """The file descriptors that listen."""
        return [each.fileno() for server in self._servers for each in server.sockets]

    def connection(self) -> DownstreamConnection:
        """The protocol of a client that is about to be connected."""
        return DownstreamConnection(self._forwarder, self._limits, self._outbox, self._opened, self._closed)

    def _opened(self, connection: DownstreamConnection) -> None:
        settings = self._settings
        client = connection.client
        theirs = self._by_client.get(client, 0) if client is not None else 0
        if len(self.connections) >= settings.max_connections:
            connection.turn_away("connections", f"{len(self.connections)} connections are open")
            return
        if theirs >= settings.max_connections_per_client:
            connection.turn_away("connections_per_client", f"{theirs} connections are open from this address")
            return
        if client is not None:
            self._by_client[client] = theirs + 1
            connection.address = client
        self.connections.add(connection)
        self.sweeper.opened(connection)
        self._empty.clear()
        if self._draining:
            connection.start_drain()  # was accepted just before we stopped

    def _closed(self, connection: DownstreamConnection) -> None:
        if connection not in self.connections:
            return  # was turned away
        self.connections.remove(connection)
        client = connection.address
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]
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
        for timer in timers:
            timer.cancel()
        self.sweeper.stop()
        return self._cut_off

    def _finish_drain(self) -> None:
        for connection in self.connections:
            connection.finish_drain()

    def _end_calls(self) -> None:
        for connection in self.connections:
            calls = [each for each in connection.calls.values() if not each.done]
            self._cut_off += len(calls)
            for call in calls:
                with contained(call):
                    call.shut_down()

    def _abort(self) -> None:
        for connection in tuple(self.connections):
            connection.abort()


def limits_of_clients(settings: ListenerSettings) -> ClientLimits:
    """What a client's connection may ask of us."""
    engine = Limits(
        settings.max_concurrent_streams,
        settings.stream_window,
        settings.max_header_list_size,
        settings.max_header_count,
        glitches=(settings.max_glitches, settings.glitches_per_second),
        max_queued_acks=settings.max_queued_acks,
        max_continuations=settings.max_continuations,
        max_settings_entries=settings.max_settings_entries,
        tolerance=METADATA_TOLERANCE,
    )
    return ClientLimits(engine, (settings.max_premature_resets, settings.premature_resets_per_second))
