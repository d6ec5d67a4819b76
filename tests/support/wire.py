"""A proxy between in-memory clients and servers: real engines on all sides, no sockets, a clock of numbers.

Every byte goes through `MemoryTransport`, which can cut it anywhere and can stall; time only moves by
`World.advance`. After each step `World.run` lets everything happen that can happen without time passing.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Protocol

import ngh2

from proxy.cluster.address import Address
from proxy.server import Proxy
from proxy.settings import Settings
from proxy.slices import at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

Headers = list[tuple[bytes, bytes]]

PATH = b"/chat.ChatService/PostMessage"


class Timer:
    """A callback that can be called off."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Reading(Protocol):
    """An end of a connection, as far as it is needed for handing bytes to it."""

    protocol: asyncio.BaseProtocol
    reading: bool


class MemoryTransport:
    """One end of a connection. What is written arrives at `peer` when the world runs."""

    def __init__(self, world: World, protocol: asyncio.BaseProtocol) -> None:
        self.world = world
        self.protocol = protocol
        self.peer: MemoryTransport
        self.outgoing: deque[bytes] = deque()
        self.closing = False
        self.lost = False
        self.stalled = False
        """The peer does not read: bytes stay in `outgoing`, and the protocol is told to pause."""
        self.reading = True
        self.high_water = 65_536
        self.address = ""
        """Of the peer, if it has one."""

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return (self.address, 40000) if name == "peername" and self.address else None

    def get_write_buffer_size(self) -> int:
        return self.buffered()

    def set_write_buffer_limits(self, high: int) -> None:
        self.high_water = high

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def write(self, data: bytes) -> None:
        assert not self.lost, "written to a lost connection"
        self.outgoing.append(bytes(data))
        if self.stalled and self.buffered() > self.high_water:
            self.protocol.pause_writing()

    def buffered(self) -> int:
        return sum(map(len, self.outgoing))

    def stall(self) -> None:
        self.stalled = True

    def resume(self) -> None:
        self.stalled = False
        self.protocol.resume_writing()

    def drain(self, amount: int) -> None:
        """A line that stalls lets so many bytes through; with room in the buffer the protocol goes on."""
        before = self.buffered()
        data = b"".join(self.outgoing)
        self.outgoing = deque([data[amount:]] if amount < before else [])
        feed(self.peer, data[:amount])
        if before > self.high_water // 4 >= self.buffered():
            self.protocol.resume_writing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.world.call_soon(self._finish)

    def _finish(self) -> None:
        if self.outgoing and not self.stalled and not self.peer.lost:
            self.world.call_soon(self._finish)
        else:
            self.abort()

    def abort(self) -> None:
        self.closing = True
        self.outgoing.clear()
        for end in (self, self.peer):
            if not end.lost:
                end.lost = True
                self.world.call_soon(lambda end=end: end.protocol.connection_lost(None))

    def deliver(self) -> bool:
        """Hand what was written to the peer, cut as the world says. Returns whether there was anything."""
        if self.stalled or not self.outgoing or not self.peer.reading:
            return False
        pieces = deque(self.world.cut(b"".join(self.outgoing)))
        self.outgoing.clear()
        while pieces and not self.peer.lost and not self.peer.closing:
            if not self.peer.reading:
                self.outgoing.extend(pieces)
                break
            if rest := feed(self.peer, pieces.popleft()):
                pieces.appendleft(rest)
        return True


def feed(end: Reading, data: bytes) -> bytes:
    """Hand bytes to a protocol as an event loop does it, for as long as it reads. Returns the rest."""
    protocol = end.protocol
    if not hasattr(protocol, "get_buffer"):
        protocol.data_received(data)  # type: ignore[attr-defined]  # the other kind
        return b""
    while data and end.reading:
        room = protocol.get_buffer(-1)
        assert isinstance(room, memoryview)
        size = min(len(room), len(data))
        room[:size] = data[:size]
        protocol.buffer_updated(size)
        room[:size] = bytes(size)  # whoever kept a view of it will notice
        data = data[size:]
    return data


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


class Peer:
    """A test client or server: an engine and what it has seen. Credit is given automatically unless `hold`."""

    def __init__(self, world: World, role: ngh2.Role, settings: dict[int, int] | None = None) -> None:
        self.world = world
        self.engine = ngh2.Connection(role, ngh2.Configuration(auto_window_update=False))
        self.engine.initiate_connection(settings or {})
        self.transport: MemoryTransport
        self.address = ""
        """The host that the proxy sees, if any."""
        self.exchanges: dict[int, Exchange] = {}
        self.order: list[int] = []
        self.begun: set[int] = set()
        """Streams that a test answers by hand, or that were answered."""
        self.hold = False
        self.goaways: list[ngh2.GoAwayReceived] = []
        self.pings = 0
        self.raw = b""
        self.connected = False
        self.connection_closed = False
        self.on_request: Callable[[Peer, int, Exchange], None] | None = None

    # asyncio.Protocol, as far as MemoryTransport calls it.

    def connection_made(self, transport: MemoryTransport) -> None:
        self.transport = transport
        self.connected = True

    def data_received(self, data: bytes) -> None:
        self.raw += data
        try:
            self.engine.receive_data(data)
        except ngh2.NGH2Error:
            return
        self._dispatch()

    def connection_lost(self, _exc: Exception | None) -> None:
        self.connected = False

    def pause_writing(self) -> None:
        pass

    def resume_writing(self) -> None:
        pass

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
        if not self.connected or self.transport.closing:
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


class World:
    """The event loop, the network and the proxy of one test. It is the `Reactor` of the proxy under test."""

    def __init__(self, *, cut: Callable[[bytes], Iterable[bytes]] | None = None, **settings: object) -> None:
        self.time = 1000.0
        self.cut = cut or (lambda data: (data,))
        self.servers: dict[str, Server | None] = {}
        """Address -> the server that answers there; None is a black hole; absent refuses."""
        self.connects: list[str] = []
        self._ready: deque[Callable[[], None]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = count()
        self._transports: list[MemoryTransport] = []
        self._peers: list[Peer] = []
        self.settings = Settings.model_validate({**_IN_MEMORY, **settings})
        self.whole = Proxy(self.settings, self)
        self.proxy = self.whole.data
        self.control = self.whole.control

    # Reactor.

    def now(self) -> float:
        return self.time

    def clock(self) -> float:
        return self.time

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._ready.append(callback)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.time + delay, next(self._sequence), timer))
        return timer

    def random(self) -> float:
        return 0.5

    def connect(
        self,
        address: Address,
        protocol: asyncio.BaseProtocol,
        on_failure: Callable[[str], None],
        secured: object = None,
    ) -> Timer:
        assert secured is None, "this network knows no TLS"
        self.connects.append(str(address))
        timer = Timer(lambda: self._connect(str(address), protocol, on_failure))
        self.call_soon(lambda: timer.callback and timer.callback())
        return timer

    def _connect(self, address: str, protocol: asyncio.BaseProtocol, on_failure: Callable[[str], None]) -> None:
        if address not in self.servers:
            on_failure("connection refused")
            return
        server = self.servers[address]
        if server is None:
            return
        if hasattr(server, "transport"):
            server = self.servers[address] = server.successor()
        self.join(protocol, server)

    def join(self, protocol: asyncio.BaseProtocol, peer: Peer) -> None:
        """Connect a protocol of the proxy with a peer."""
        near, far = MemoryTransport(self, protocol), MemoryTransport(self, peer)
        near.peer, far.peer = far, near
        near.address = peer.address
        self._transports += [near, far]
        if peer not in self._peers:
            self._peers.append(peer)
        peer.connection_made(far)
        protocol.connection_made(near)

    # The test's hands.

    def start(self) -> World:
        """Bring up the proxy's pools."""
        self.proxy.start()
        self.control.start_sweeping()
        self.proxy.listener.sweeper.start()
        self.run()
        return self

    def reload(self, **settings: object) -> None:
        """Go on by other settings, as `ControlPlane.apply` does; what is not given has its default."""
        self.settings = Settings.model_validate({**_IN_MEMORY, **settings})
        cluster = self.proxy.cluster
        succession = at_once(cluster.succession(self.settings.endpoints, self.settings.ring))
        self.control.prepare(self.settings, succession)
        self.run()
        self.control.switch(self.settings, succession)
        self.run()

    def server(self, name: str, settings: dict[int, int] | None = None) -> Server:
        """Put a fresh server at the address of endpoint `name`."""
        server = Server(self, settings)
        self.servers[address_of(name)] = server
        return server

    def echoing(self, *names: str, settings: dict[int, int] | None = None) -> World:
        """Servers that answer every call with its own body, at the addresses of the endpoints named (default: all)."""
        return self.answering(echo, *names, settings=settings)

    def silent(self, *names: str, settings: dict[int, int] | None = None) -> World:
        """Servers that answer nothing by themselves: the test does."""
        return self.answering(None, *names, settings=settings)

    def answering(
        self,
        on_request: Callable[[Peer, int, Exchange], None] | None,
        *names: str,
        settings: dict[int, int] | None = None,
    ) -> World:
        """Servers that answer so."""
        for name in names or tuple(self.proxy.cluster.snapshot.by_id):
            self.server(name, settings).on_request = on_request
        return self

    def echo_everywhere(self) -> None:
        """From now on, all servers answer every call with its own body."""
        for server in self.servers.values():
            if server is not None:
                server.on_request = echo

    def at(self, name: str) -> Server:
        """The server now at the address of endpoint `name`."""
        server = self.servers[address_of(name)]
        assert server is not None
        return server

    def kill(self, name: str) -> None:
        """The server is gone: its connections break, new ones are refused."""
        server = self.servers.pop(address_of(name))
        assert server is not None
        for connection in server.connections:
            if connection.connected:
                connection.transport.abort()
        self.run()

    def client(self, settings: dict[int, int] | None = None, *, address: str = "") -> Client:
        client = Client(self, settings)
        client.address = address
        self.join(self.proxy.listener.connection(), client)
        self.run()
        return client

    def run(self) -> None:
        """Let everything happen that can happen at this moment."""
        for _ in range(100_000):
            busy = bool(self._ready)
            for _ in range(len(self._ready)):
                self._ready.popleft()()
            for peer in self._peers:
                busy = peer.flush() or busy
            for transport in self._transports:
                busy = transport.deliver() or busy
            if not busy and not self._ready:
                return
        raise AssertionError("the world does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that it brings."""
        self.run()
        until = self.time + seconds
        while self._timers and self._timers[0][0] <= until:
            at, _, timer = heapq.heappop(self._timers)
            self.time = max(self.time, at)
            if timer.callback is not None:
                timer.callback()
            self.run()
        self.time = until
        self.run()

    def owner(self, chat: str) -> str:
        """The name of the endpoint that owns a chat."""
        return self.proxy.cluster.snapshot.owner(chat.encode()).id

    def order(self, chat: str) -> list[str]:
        """The names of all endpoints in ring order for a chat."""
        return [endpoint.id for endpoint in self.proxy.cluster.snapshot.candidates(chat.encode())]

    def assert_clean(self) -> None:
        """No call, credit or deadline is left anywhere."""
        for connection in self.proxy.listener.connections:
            assert not connection.calls, "calls left downstream"
            assert not connection.owed, "credit owed to servers"
            assert not connection.tails, "streams waiting for their reset"
            assert connection.closed or not connection.engine.queued_body_size()
        for endpoint, pool in self.proxy.pools.items():
            assert endpoint.active == 0, f"{endpoint.id} counts {endpoint.active} active calls"
            assert not pool.waiting, "calls left waiting"
            for connection in pool.connections:
                assert not connection.calls, "calls left upstream"
                assert not connection.owed, "credit owed to clients"
        assert len(self.proxy.forwarder.deadlines) == 0, "deadlines left"
        assert self.proxy.forwarder.active == 0, "calls counted as active"
        assert self.proxy.forwarder.budget.repeating == 0, "repeats counted as under way"


def echo(server: Peer, sid: int, exchange: Exchange) -> None:
    """Answer a call with its own body."""
    assert isinstance(server, Server)
    with contextlib.suppress(ngh2.StreamUnavailableError):  # reset in the same bytes that ended it
        server.respond(sid, exchange.body)


def address_of(name: str) -> str:
    return f"10.0.0.{ord(name) - ord('A') + 1}:50051"


def endpoints(*names: str) -> list[dict[str, str]]:
    """Settings of endpoints `A`, `B`, ... with an address each."""
    return [{"id": name, "address": address_of(name)} for name in names]


_IN_MEMORY: dict[str, object] = {"endpoints": endpoints("A", "B", "C"), "admin": {"cache_stats": False}}
"""What a world is like unless told otherwise; nobody may be asked who is not in memory."""


def message(chat: str = "chat-000", text: str = "hello") -> bytes:
    """A ChatRequest as a gRPC length-prefixed message."""
    fields = b"\x0a" + bytes([len(chat)]) + chat.encode() + b"\x12" + varint(len(text)) + text.encode()
    return frame(fields)


def frame(payload: bytes, *, flag: int = 0) -> bytes:
    """A gRPC length-prefixed message."""
    return bytes([flag]) + len(payload).to_bytes(4, "big") + payload


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
