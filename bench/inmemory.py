"""Calls through the whole data path in memory: real engines on all sides, no sockets, no clock, no other process.

What the guard counts and the micro benchmarks time. The peers are those of the wire tests.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from tests.support.memory_transport import feed
from tests.support.messages import message
from tests.support.world import World

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from tests.support.peers import RawPeer

TOKENS = 20
"""Messages of the stream in `tokens`."""


class _TimedWorld(World):
    """Keeps the time that the proxy itself takes: when bytes are given to it, and when it asked to be called."""

    def __init__(self) -> None:
        self.seconds = 0.0
        super().__init__()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """See `Reactor`."""
        super().call_soon(partial(self._timed, callback))

    def _timed(self, callback: Callable[[], None]) -> None:
        start = perf_counter()
        callback()
        self.seconds += perf_counter() - start

    def join(self, protocol: asyncio.BaseProtocol, peer: RawPeer) -> None:
        """Connect a protocol of the proxy with a peer."""
        super().join(protocol, peer)
        peer.transport.peer.protocol = _Timed(self, protocol)  # type: ignore[assignment]  # has what is asked of it


class _Timed:
    """A protocol of the proxy, with a clock at its door."""

    def __init__(self, world: _TimedWorld, protocol: asyncio.BaseProtocol) -> None:
        self._world = world
        self.protocol = protocol
        self.reading = True
        self.connection_lost = protocol.connection_lost

    def data_received(self, data: bytes) -> None:
        start = perf_counter()
        feed(self, data)
        self._world.seconds += perf_counter() - start


class Calls:
    """A client, the proxy and three servers that answer; `unary`, `with_deadline` and `tokens` make one call each."""

    def __init__(self) -> None:
        self.world = _TimedWorld()
        self.world.echoing().start()
        self._client = self.world.client()
        self._body = message("chat-007", "A message of ordinary length, as a person would type it into a chat.")
        self._servers = [server for server in self.world.servers.values() if server is not None]
        self._number = 0

    def unary(self) -> None:
        """A call without a deadline of its own; the route has one."""
        self._call()

    def with_deadline(self) -> None:
        """A call with a `grpc-timeout` that no other call has."""
        self._number += 1
        self._call((b"grpc-timeout", b"%du" % (1_000_000 + self._number)))

    def tokens(self) -> None:
        """A call answered with `TOKENS` messages, each of which passes through the proxy by itself."""
        server = self.world.at(self.world.owner("chat-007"))
        answer, server.on_request = server.on_request, None
        sid = self._client.request(self._body)
        self.world.run()
        (stream,) = server.exchanges
        server.begin(stream)
        for _ in range(TOKENS):
            server.engine.send_data(stream, b"\\0\\0\\0\\0\\5token")
            self.world.run()
        server.finish(stream)
        self.world.run()
        server.on_request = answer
        self._check(sid)

    def _call(self, *extra: tuple[bytes, bytes]) -> None:
        sid = self._client.request(self._body, extra=extra)
        self.world.run()
        self._check(sid)

    def _check(self, sid: int) -> None:
        exchange = self._client.exchanges.pop(sid)
        if exchange.status != 0:
            raise AssertionError(f"a call ended with {exchange.status}: {exchange.message}")
        for peer in (self._client, *self._servers):
            # What the peers remember of calls would make each call dearer than the one before.
            peer.exchanges.clear()
            peer.order.clear()
            peer.begun.clear()
            peer.raw = b""

    def kinds(self) -> dict[str, tuple[Callable[[], None], int]]:
        """Name -> the call, and how many units it has."""
        return {
            "unary call": (self.unary, 1),
            "unary call with its own deadline": (self.with_deadline, 1),
            "message of a token stream": (self.tokens, TOKENS),
        }
