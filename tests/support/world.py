"""A proxy between in-memory clients and servers: real engines on all sides, no sockets, a clock of numbers.

Every byte goes through `MemoryTransport`, which can cut it anywhere and can stall; time only moves by
`World.advance`. After each step `World.run` lets everything happen that can happen without time passing.
"""

from __future__ import annotations

import heapq
from collections import deque
from itertools import count
from typing import TYPE_CHECKING

from proxy.server import Proxy
from proxy.settings import Settings
from proxy.slices import at_once
from tests.support.memory_transport import MemoryTransport
from tests.support.peers import Client, RawPeer, Server, echo

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from proxy.cluster.address import Address
    from tests.support.peers import Exchange, Peer


class Timer:
    """A callback that can be called off."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


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
        self._peers: list[RawPeer] = []
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

    def join(self, protocol: asyncio.BaseProtocol, peer: RawPeer) -> None:
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

    def raw_client(self, data: bytes = b"") -> RawPeer:
        """A client that says this first, and nothing by itself."""
        client = RawPeer(self)
        self.join(self.proxy.listener.connection(), client)
        client.say(data)
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

    def chats_of(self, name: str, count: int) -> list[str]:
        """The first `count` chats that endpoint `name` owns, of 500 that all tests know."""
        return [chat for chat in (f"chat-{number:03}" for number in range(500)) if self.owner(chat) == name][:count]

    def calls_at(self, name: str) -> list[Exchange]:
        """All calls that the server at endpoint `name` was ever given, by connection."""
        return [exchange for server in self.at(name).connections for exchange in server.exchanges.values()]

    def exceeded(self, limit: str) -> int:
        """How often this limit was met; its name is that of the metric's label."""
        return self.proxy.watch.counters.snapshot()[limit]

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


def address_of(name: str) -> str:
    return f"10.0.0.{ord(name) - ord('A') + 1}:50051"


def endpoints(*names: str) -> list[dict[str, str]]:
    """Settings of endpoints `A`, `B`, ... with an address each."""
    return [{"id": name, "address": address_of(name)} for name in names]


_IN_MEMORY: dict[str, object] = {"endpoints": endpoints("A", "B", "C"), "admin": {"cache_stats": False}}
"""What a world is like unless told otherwise; nobody may be asked who is not in memory."""
