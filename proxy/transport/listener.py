"""The port clients connect to, and its connections."""

from __future__ import annotations

import asyncio

from proxy.cluster.address import Address
from proxy.forwarding.forwarder import Forwarder
from proxy.http2 import Limits, Outbox
from proxy.transport.downstream import DownstreamConnection

DRAIN_NOTICE = 5.0
"""Seconds that a client gets to acknowledge the first GOAWAY of a drain; grpc-go waits as long."""
BACKLOG = 4096
"""Connections that the kernel accepts before we do; it caps this at net.core.somaxconn."""


class Listener:
    """Accepts clients from `open` on, and ends them by `drain`."""

    def __init__(self, forwarder: Forwarder, limits: Limits, outbox: Outbox) -> None:
        self.connections: set[DownstreamConnection] = set()
        self._forwarder = forwarder
        self._limits = limits
        self._outbox = outbox
        self._server: asyncio.Server | None = None
        self._empty = asyncio.Event()
        self._empty.set()

    async def open(self, address: Address) -> Address:
        """Listen; returns where, with the real port. Raises OSError if that is not possible."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._connection, address.host, address.port, backlog=BACKLOG)
        host, port = self._server.sockets[0].getsockname()[:2]
        return Address(host, port)

    def _connection(self) -> DownstreamConnection:
        return DownstreamConnection(self._forwarder, self._limits, self._outbox, self._opened, self._closed)

    def _opened(self, connection: DownstreamConnection) -> None:
        self.connections.add(connection)
        self._empty.clear()

    def _closed(self, connection: DownstreamConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()

    async def drain(self, grace: float) -> int:
        """Take no more connections, then no more calls, and wait up to `grace` seconds for the running ones.

        Returns how many calls were cut off at the end of the grace.
        """
        if self._server is not None:
            self._server.close()
        for connection in self.connections:
            connection.start_drain()
        notice = asyncio.get_running_loop().call_later(min(DRAIN_NOTICE, grace / 2), self._finish_drain)
        try:
            async with asyncio.timeout(grace):
                await self._empty.wait()
        except TimeoutError:
            pass
        finally:
            notice.cancel()
        cut_off = sum(len(connection.calls) for connection in self.connections)
        for connection in tuple(self.connections):
            connection.abort()
        await self._empty.wait()
        return cut_off

    def _finish_drain(self) -> None:
        for connection in self.connections:
            connection.finish_drain()
