"""Clients and servers of a proxy in memory: on our engine, or without one, by bytes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import ngh2

from tests.support.frames import GOAWAY, frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.support.memory_transport import MemoryTransport
    from tests.support.world import World

Headers = list[tuple[bytes, bytes]]

PATH = b"/chat.ChatService/PostMessage"


@dataclass
class Exchange:
    """What one stream has seen so far, from the side of a test peer."""

    headers: Headers = field(default_factory=list)
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    ended: bool = False
    reset: int | None = None
    closed: bool = False
    taken: int = 0

    def header(self, name: bytes) -> bytes | None:
        return dict(reversed([*self.headers, *self.trailers])).get(name)

    @property
    def status(self) -> int | None:
        value = self.header(b"grpc-status")
        return None if value is None else int(value)

    @property
    def message(self) -> str:
        return (self.header(b"grpc-message") or b"").decode()


class RawPeer:
    """A client or a server without an engine: it keeps what it gets, and says what the test says."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.transport: MemoryTransport
        self.address = ""
        """The host that the proxy sees, if any."""
        self.raw = b""
        """All that came."""
        self.connected = False

    # asyncio.Protocol, as far as MemoryTransport calls it.

    def connection_made(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.connected = True

    def data_received(self, data: bytes) -> None:
        self.raw += data

    def connection_lost(self, _exc: Exception | None) -> None:
        self.connected = False

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

    def flush(self) -> bool:
        """Send what there is to send. Returns whether there was anything."""
        return False

    def say(self, data: bytes) -> None:
        """Send these bytes, if there is still a connection, and let everything happen that comes of it."""
        if self.connected and not self.transport.closing:
            self.transport.write(data)
        self.world.run()

    @property
    def last_code(self) -> int | None:
        """The error code of the last GOAWAY that came."""
        codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in frames(self.raw) if kind == GOAWAY]
        return codes[-1] if codes else None


class Peer(RawPeer):
    """A test client or server: an engine and what it has seen. Credit is given automatically unless `hold`."""

    def __init__(self, world: World, role: ngh2.Role, settings: dict[int, int] | None = None) -> None:
        super().__init__(world)
        self.engine = ngh2.Connection(role, ngh2.Configuration(auto_window_update=False))
        self.engine.initiate_connection(settings or {})
        self.exchanges: dict[int, Exchange] = {}
        self.order: list[int] = []
        self.begun: set[int] = set()
        """Streams that a test answers by hand, or that were answered."""
        self.hold = False
        self.stopped = False
        """Says nothing by itself, as a process that is stopped; the test may say what the engine has to say."""
        self.goaways: list[ngh2.GoAwayReceived] = []
        self.pings = 0
        self.connection_closed = False
        self.on_request: Callable[[Peer, int, Exchange], None] | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        try:
            self.engine.receive_data(data)
        except ngh2.NGH2Error:
            return
        self._dispatch()

    def _dispatch(self) -> None:  # noqa: C901 - a branch an event
        for event in self.engine.events():
            match event:
                case ngh2.RequestReceived(sid, headers, end) | ngh2.ResponseReceived(sid, headers, end):
                    exchange = self.exchanges.setdefault(sid, Exchange())
                    self.order.append(sid)
                    exchange.headers = list(headers)
                    exchange.ended = end
                    self._announce(sid, exchange)
                case ngh2.DataReceived(sid, data, end):
                    exchange = self.exchanges[sid]
                    exchange.body += data
                    exchange.ended = exchange.ended or end
                    if not self.hold:
                        self.take(sid)
                    self._announce(sid, exchange)
                case ngh2.TrailersReceived(sid, headers):
                    self.exchanges[sid].trailers = list(headers)
                    self.exchanges[sid].ended = True
                case ngh2.StreamReset(sid, code):
                    self.exchanges.setdefault(sid, Exchange()).reset = code
                case ngh2.StreamClosed(sid, code):
                    exchange = self.exchanges.setdefault(sid, Exchange())
                    exchange.closed = True
                    if code and exchange.reset is None:
                        exchange.reset = code
                case ngh2.GoAwayReceived():
                    self.goaways.append(event)
                case ngh2.PingReceived():
                    self.pings += 1
                case ngh2.ConnectionClosed():
                    self.connection_closed = True

    def _announce(self, sid: int, exchange: Exchange) -> None:
        if self.on_request is not None and exchange.ended and sid not in self.begun:
            self.on_request(self, sid, exchange)

    def take(self, sid: int, amount: int | None = None) -> None:
        """Give credit for bytes of a stream that were received: all, or `amount`."""
        exchange = self.exchanges[sid]
        amount = len(exchange.body) - exchange.taken if amount is None else amount
        if amount and not self.connection_closed:
            exchange.taken += amount
            with contextlib.suppress(ngh2.ConnectionStateError):  # said goodbye in the same bytes
                self.engine.acknowledge_received_data(amount, sid)

    def flush(self) -> bool:
        if self.stopped or not self.connected or self.transport.closing:
            return False
        data = b""
        with contextlib.suppress(ngh2.NGH2Error):
            data = self.engine.data_to_send()
        self._dispatch()
        if data:
            self.transport.write(data)
        if self.connection_closed:
            self.transport.close()
        return bool(data)

    @property
    def last(self) -> Exchange:
        """The newest stream's exchange."""
        return self.exchanges[max(self.exchanges)]


class Server(Peer):
    """A server on an address: one object a connection, all of them in `connections`."""

    def __init__(self, world: World, settings: dict[int, int] | None = None) -> None:
        super().__init__(world, ngh2.Role.SERVER, settings)
        self._settings = settings
        self.connections = [self]

    def successor(self) -> Server:
        """The same server for a further connection: a fresh engine, the same behaviour."""
        fresh = Server(self.world, self._settings)
        fresh.on_request, fresh.hold, fresh.connections = self.on_request, self.hold, self.connections
        self.connections.append(fresh)
        return fresh

    def respond(self, sid: int, body: bytes = b"", *, status: int = 0, message: bytes = b"") -> None:
        """A whole gRPC response."""
        self.begin(sid)
        if body:
            self.engine.send_data(sid, body)
        self.finish(sid, status=status, message=message)

    def begin(self, sid: int) -> None:
        self.begun.add(sid)
        self.engine.send_response(sid, [(b":status", b"200"), (b"content-type", b"application/grpc")])

    def finish(self, sid: int, *, status: int = 0, message: bytes = b"") -> None:
        trailers = [(b"grpc-status", str(status).encode())]
        if message:
            trailers.append((b"grpc-message", message))
        self.engine.send_trailers(sid, trailers)

    def refuse(self, sid: int) -> None:
        self.engine.reset_stream(sid, ngh2.ErrorCode.REFUSED_STREAM)


class Client(Peer):
    """A client of the proxy."""

    def __init__(self, world: World, settings: dict[int, int] | None = None) -> None:
        super().__init__(world, ngh2.Role.CLIENT, settings)

    def request(
        self, body: bytes = b"", *, path: bytes = PATH, end: bool = True, extra: Iterable[tuple[bytes, bytes]] = ()
    ) -> int:
        """Begin a call; returns its stream."""
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path),
            (b":authority", b"chat.test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            *extra,
        ]
        return self.raw_request(headers, body, end=end)

    def raw_request(self, headers: Headers, body: bytes = b"", *, end: bool = True) -> int:
        sid = self.engine.send_request(headers, end_stream=end and not body)
        self.exchanges[sid] = Exchange()
        if body:
            self.engine.send_data(sid, body, end_stream=end)
        return sid


def echo(server: Peer, sid: int, exchange: Exchange) -> None:
    """Answer a call with its own body."""
    assert isinstance(server, Server)
    with contextlib.suppress(ngh2.StreamUnavailableError):  # reset in the same bytes that ended it
        server.respond(sid, exchange.body)


def refuse(server: Peer, sid: int, _exchange: Exchange) -> None:
    """Refuse a call: it has not run."""
    assert isinstance(server, Server)
    server.begun.add(sid)
    server.refuse(sid)


def reset(server: Peer, sid: int, _exchange: Exchange) -> None:
    """Reset a call, which may have run."""
    server.begun.add(sid)
    server.engine.reset_stream(sid, ngh2.ErrorCode.INTERNAL_ERROR)


def hang_up(server: Peer, sid: int, _exchange: Exchange) -> None:
    """End the connection, with all calls on it."""
    server.begun.add(sid)
    server.transport.abort()
