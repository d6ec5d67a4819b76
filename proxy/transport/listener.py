"""The port clients connect to, and its connections."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from functools import partial
from typing import Final

from proxy.cluster.address import Address
from proxy.forwarding.forwarder import Forwarder
from proxy.http2 import EMPTY_SETTINGS, ErrorCode, Limits, Outbox, goaway_frame
from proxy.transport.acceptor import Acceptor
from proxy.transport.client_clock import ClientLimits
from proxy.transport.client_sweeper import DRAIN_NOTICE, ClientSweeper
from proxy.transport.containment import contained
from proxy.transport.downstream import LAST_WORDS, DownstreamConnection
from proxy.transport.handshake import Handshakes, Objection
from proxy.transport.reactor import Reactor, as_protocol
from proxy.transport.settings import ListenerSettings
from proxy.transport.tls import ServerTls

log = logging.getLogger(__name__)

METADATA_TOLERANCE: Final = 2
"""Up to twice the announced size or number of header fields, a call alone is refused; beyond, its connection ends."""
BACKLOG: Final = 4096
"""Connections that the kernel accepts before we do; it caps this at net.core.somaxconn."""
FAREWELL: Final = EMPTY_SETTINGS + goaway_frame(ErrorCode.ENHANCE_YOUR_CALM, "too many connections", last_stream_id=0)
"""For clients in cleartext that get no connection at all."""


class Listener:
    """Accepts clients from `open` on, and ends them by `drain`."""

    def __init__(
        self,
        forwarder: Forwarder,
        settings: ListenerSettings,
        reactor: Reactor,
        outbox: Outbox,
        tls: ServerTls | None = None,
    ) -> None:
        """`tls`: None: clients speak cleartext."""
        self._settings = settings
        self._tls = tls
        self.connections: set[DownstreamConnection] = set()
        self._by_client: dict[str, int] = {}
        """Address of a client -> its connections, and handshakes. Those without an address are not counted."""
        self._handshakes = 0
        """Clients that are not secured yet."""
        self.sweeper = ClientSweeper(settings, self.connections, forwarder.watch, reactor)
        self.accepted = 0
        """Connections since the start."""
        self._forwarder = forwarder
        self._limits = limits_of_clients(settings)
        self._reactor = reactor
        self._outbox = outbox
        self._acceptor: Acceptor | None = None
        self._handshaker: Handshakes | None = None
        self._arriving: set[asyncio.Task[object]] = set()
        """Clients in cleartext that have been accepted, and have no connection yet."""
        self._empty = asyncio.Event()
        """There may be nobody left."""
        self._accepting = True
        self._draining = False
        self._cut_off = 0

    def configure(self, settings: ListenerSettings) -> None:
        """Go on by these settings. What a connection was told when it came holds for it as long as it lasts."""
        self._settings = settings
        self._limits = limits_of_clients(settings)
        self.sweeper.configure(settings)

    async def open(self, address: Address, inherited: Sequence[socket.socket] = ()) -> Address:
        """Take `address`, or sockets that have it already, as those of a unix socket must; clients are accepted from
        `serve` on. Returns the address, with the real port. Raises OSError if it cannot be had.
        """
        sockets = inherited or await _bound(address)
        if self._tls is None:
            self._acceptor = Acceptor(sockets, BACKLOG, self._connect, self._exhausted, FAREWELL)
        else:
            self._handshaker = Handshakes(self._tls, self)
            self._acceptor = Acceptor(sockets, BACKLOG, self._handshaker.begin, self._exhausted)
        if address.path:
            return address
        host, port = sockets[0].getsockname()[:2]
        return Address(host, port)

    async def serve(self) -> None:
        """Accept clients. Raises OSError if somebody else took the port meanwhile."""
        self.sweeper.start()
        if self._acceptor is not None:
            self._acceptor.start()

    def stop_accepting(self) -> None:
        """Take no more connections; those that are here go on. May be called twice."""
        if self._accepting:
            self._accepting = False
            if self._acceptor is not None:
                self._acceptor.close()

    @property
    def sockets(self) -> list[int]:
        """The file descriptors that listen."""
        return [each.fileno() for each in self._acceptor.sockets] if self._acceptor is not None else []

    def connection(self) -> DownstreamConnection:
        """The protocol of a client that is about to be connected."""
        return DownstreamConnection(self._forwarder, self._limits, self._outbox, self._opened, self._closed)

    def _protocol(self) -> asyncio.BaseProtocol:
        return as_protocol(self.connection())

    def _exhausted(self, detail: str) -> None:
        self._forwarder.watch.exceeded("file_descriptors", detail)

    def _connect(self, client: socket.socket, _address: str | None) -> None:
        """Give a client in cleartext its connection."""
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(self._protocol, client), name="new client")
        self._arriving.add(task)
        task.add_done_callback(partial(self._arrived, client))

    def _arrived(self, client: socket.socket, task: asyncio.Task[object]) -> None:
        self._arriving.discard(task)
        error = None if task.cancelled() else task.exception()
        if task.cancelled() or error is not None:
            client.close()
        if error is not None:
            level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
            log.log(level, "a client got no connection", exc_info=error)
        self._check_empty()

    # Handshakes: they count as connections.

    def begin_handshake(self, client: str | None) -> bool:
        """Whether there is room for a client that is about to be secured; `end_handshake` must follow if there is."""
        full = self._is_full(client)
        if full is not None:
            limit, detail = full
            self._forwarder.watch.exceeded(limit, f"client {client or 'unknown'}: {detail}")
            return False
        self._handshakes += 1
        self._count(client)
        return True

    def end_handshake(self, client: str | None, objection: Objection | None = None) -> None:
        """The client is about to get its connection, or gets none, for that reason or because it has left."""
        self._handshakes -= 1
        self._uncount(client)
        if objection is not None:
            limit, detail = objection
            self._forwarder.watch.exceeded(limit, f"client {client or 'unknown'}: {detail}")
        self._check_empty()

    # Connections.

    def _is_full(self, client: str | None) -> tuple[str, str] | None:
        """The limit that one connection more from there would exceed, and how; None: there is room."""
        settings = self._settings
        everybody = len(self.connections) + self._handshakes
        if everybody >= settings.max_connections:
            return "connections", f"{everybody} connections are open"
        theirs = self._by_client.get(client, 0) if client is not None else 0
        if theirs >= settings.max_connections_per_client:
            return "connections_per_client", f"{theirs} connections are open from this address"
        return None

    def _count(self, client: str | None) -> None:
        if client is not None:
            self._by_client[client] = self._by_client.get(client, 0) + 1

    def _uncount(self, client: str | None) -> None:
        if client is not None:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _check_empty(self) -> None:
        if not self._is_anybody_left():
            self._empty.set()

    def _is_anybody_left(self) -> bool:
        # A handshake that has ended may have become a connection.
        return bool(self.connections or self._handshakes or self._arriving)

    def _opened(self, connection: DownstreamConnection) -> None:
        client = connection.client
        full = self._is_full(client)
        if full is not None:
            connection.turn_away(*full)
            return
        self.accepted += 1
        self._count(client)
        connection.address = client
        self.connections.add(connection)
        self.sweeper.opened(connection)
        if self._draining:
            connection.start_drain()  # was accepted just before we stopped

    def _closed(self, connection: DownstreamConnection) -> None:
        if connection not in self.connections:
            return  # was turned away
        self.connections.remove(connection)
        self._uncount(connection.address)
        self._check_empty()
        if self._acceptor is not None and self._accepting:
            self._acceptor.go_on()

    async def drain(self, grace: float) -> int:
        """Take no more connections, then no more calls, and wait up to `grace` seconds for the running ones.

        Calls that last longer end with UNAVAILABLE. Returns how many they were. Call it once.
        """
        self._draining = True
        self.stop_accepting()
        for connection in self.connections:
            connection.start_drain()
        timers = (
            self._reactor.call_later(min(DRAIN_NOTICE, grace / 2), self._finish_drain),
            self._reactor.call_later(grace, self._end_calls),
            self._reactor.call_later(grace + LAST_WORDS, self._abort),
        )
        while self._is_anybody_left():
            self._empty.clear()
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
        if self._handshaker is not None:
            self._handshaker.abort()


async def _bound(address: Address) -> list[socket.socket]:
    """Sockets for all that the host of `address` stands for. Raises OSError if it cannot be had."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(asyncio.Protocol, address.host, address.port, start_serving=False)
    sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in server.sockets]
    server.close()
    return sockets


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
