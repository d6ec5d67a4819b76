"""Raw bytes on either side of a proxy in memory: what came back, and whether anything was left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tests.conformance.verdicts import verdict
from tests.support.frames import EMPTY_SETTINGS
from tests.support.messages import message
from tests.support.peers import RawPeer, echo
from tests.support.world import World, address_of, endpoints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.peers import Client

Cut = Callable[[bytes], Iterable[bytes]]

SMALL_RING = {"virtual_nodes": 1}
"""One server needs no more, and building the ring would take most of the time."""
PATIENCE = 20.0
"""Seconds of the world's clock after which every timer of a connection or call has done its work."""


class _Bugs(logging.Handler):
    """Keeps what the proxy reports of its own bugs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(self.format(record))


@contextmanager
def no_bugs() -> Iterator[None]:
    """Fails if the proxy reports a bug of its own meanwhile: those it contains raise nothing."""
    handler = _Bugs()
    logger = logging.getLogger("proxy")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
    assert not handler.found, handler.found[0]


def whole(data: bytes) -> tuple[bytes, ...]:
    """In one piece."""
    return (data,)


def verdict_on(peer: RawPeer) -> str:
    """What the proxy thinks of what it was sent."""
    return verdict(peer.raw, closed=not peer.connected)


def good_call(world: World) -> None:
    """A call of a stock client, which must be answered."""
    client = world.client()
    sid = client.request(message())
    world.run()
    assert client.exchanges[sid].status == 0, client.exchanges[sid]
    client.transport.abort()
    world.run()


def _send(world: World, peer: RawPeer, data: bytes, cut: Cut, *, paced: bool) -> None:
    world.cut = whole if paced else cut
    for piece in cut(data) if paced else (data,):
        peer.say(piece)
    world.cut = whole


def no_strays(world: World) -> None:
    """Every call that a living connection counts has its stream there: none that ended is still waited for."""
    upstream = [each for pool in world.proxy.pools.values() for each in pool.connections]
    for connection in (*world.proxy.listener.connections, *upstream):
        if not connection.closed:
            for sid in connection.calls:
                connection.engine.stream_remote_window_size(sid)  # raises if the engine does not know it


def replay_client(data: bytes, cut: Cut = whole, *, paced: bool = False, patience: float = PATIENCE) -> str:
    """A client that sends `data` to a proxy before servers that echo, and then leaves. Returns the proxy's verdict.

    `cut`: into which pieces. They arrive in one pass of the loop, or, if `paced`, each after all that the one before
    brought about. `patience`: seconds of the world's clock to wait for what comes of it later.

    Fails if the proxy raises, reports a bug, waits for what has ended, keeps anything of the client, or cannot serve
    the next one.
    """
    with no_bugs():
        world = World(endpoints=endpoints("A"), ring=SMALL_RING).echoing().start()
        peer = world.raw_client()
        _send(world, peer, data, cut, paced=paced)
        no_strays(world)
        found = verdict_on(peer)
        good_call(world)
        if peer.connected:
            peer.transport.abort()
        world.advance(patience)
        world.assert_clean()
        assert not world.proxy.listener.connections
        good_call(world)
        return found


def replay_server(data: bytes, cut: Cut = whole, *, paced: bool = False, patience: float = PATIENCE) -> str:
    """A server that sends its SETTINGS, waits for a request, sends `data`, and then hangs up. Returns the proxy's
    verdict: what it told the server before that. `cut`, `paced`, `patience`: as for `replay_client`.

    Fails if the proxy raises, reports a bug, leaves the client's call without an end, keeps anything of it, or cannot
    serve the next one by a good server.
    """
    with no_bugs():
        world = World(endpoints=endpoints("A"), ring=SMALL_RING, outlier={"consecutive_failures": 0})
        peer = RawPeer(world)
        world.servers[address_of("A")] = peer  # type: ignore[assignment]
        world.start()
        world.servers.clear()  # whatever becomes of this connection, there is no second one for now
        peer.say(EMPTY_SETTINGS)
        client = world.client()
        sid = client.request(message())
        world.run()
        assert sid in world.proxy.pools[world.proxy.cluster.snapshot.by_id["A"]].connections[0].calls
        _send(world, peer, data, cut, paced=paced)
        no_strays(world)
        found = verdict_on(peer)
        world.server("A").on_request = echo
        if peer.connected:
            peer.transport.abort()
        world.run()
        over(client, sid)
        world.advance(patience)
        good_call(world)
        client.transport.abort()
        world.run()
        world.assert_clean()
        return found


def over(client: Client, sid: int) -> None:
    """The call has ended: by a status, the end of a response that is not gRPC's, or a reset."""
    exchange = client.exchanges[sid]
    assert exchange.ended or exchange.reset is not None, exchange
    assert not client.goaways, "one server's bytes ended the client's connection"
