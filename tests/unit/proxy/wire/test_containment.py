"""What one bad peer must not cost the others: a connection to a server carries the calls of many clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ngh2
import pytest

from proxy.transport.upstream import UpstreamConnection
from tests.support.messages import framed, message
from tests.support.peers import Peer, Server
from tests.support.world import World, endpoints

if TYPE_CHECKING:
    from collections.abc import Iterable

CHAT = b"/chat.ChatService/Chat"


def test_a_client_that_breaks_the_protocol_ends_no_other_clients_calls() -> None:
    world = World().silent().start()
    bad, good = world.client(), world.client()
    bad.request(message("chat-001"))
    sid = good.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    for stream in (1, 3):
        server.begin(stream)
        server.engine.send_data(stream, framed(b"first"))
    bad.transport.write(b"\x00\x00\x04\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00")  # WINDOW_UPDATE by 0: RFC 9113, 6.9
    for _ in range(3):
        for stream in (1, 3):
            if not server.exchanges[stream].closed:
                server.engine.send_data(stream, framed(b"more"))
        world.run()
    server.finish(3 if not server.exchanges[3].closed else 1)
    world.run()
    assert good.exchanges[sid].status == 0
    assert len(server.connections) == 1
    assert not bad.connected
    world.assert_clean()


def test_a_bug_in_one_call_costs_that_call_and_no_other(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World().silent()
    client = world.start().client()
    unlucky = client.request(message("chat-001"))
    lucky = client.request(message("chat-001"))
    world.run()
    server = world.at(world.owner("chat-001"))
    handlers = UpstreamConnection._handlers
    original = handlers[ngh2.ResponseReceived]

    def buggy(connection: UpstreamConnection, event: ngh2.ResponseReceived) -> None:
        if connection.calls[event.stream_id].sid == unlucky:
            raise ZeroDivisionError
        original(connection, event)

    monkeypatch.setitem(handlers, ngh2.ResponseReceived, buggy)
    server.respond(1)
    server.respond(3)
    world.run()
    assert client.exchanges[unlucky].reset == ngh2.ErrorCode.INTERNAL_ERROR
    assert client.exchanges[lucky].status == 0
    assert "a bug ended a call" in caplog.text
    world.assert_clean()


class BuggyEngine:
    """An engine that fails over requests with an entry `x-unlucky`, as a bug would."""

    def __init__(self, engine: ngh2.Connection) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def send_request(self, headers: Iterable[tuple[bytes, bytes]], *, end_stream: bool = False) -> int:
        if any(name == b"x-unlucky" for name, _ in headers):
            raise ZeroDivisionError
        return self._engine.send_request(headers, end_stream=end_stream)


def test_a_bug_that_meets_a_call_which_waits_for_its_server_does_not_keep_the_others_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connections": 1})
    server = world.server("A", {ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    client.request(message("chat-001"))
    unlucky = client.request(message("chat-001"), extra=[(b"x-unlucky", b"1")])
    lucky = client.request(message("chat-001"))
    world.run()
    (pool,) = world.proxy.pools.values()
    (connection,) = pool.connections
    connection.engine = BuggyEngine(connection.engine)  # type: ignore[assignment]  # as far as it is asked
    server.respond(1)
    world.run()
    assert client.exchanges[unlucky].reset == ngh2.ErrorCode.INTERNAL_ERROR
    server.respond(3)
    world.run()
    assert client.exchanges[lucky].status == 0
    assert "a bug ended a call" in caplog.text
    world.assert_clean()


def graceful_end(server: Server, streams: list[int]) -> None:
    """What a gRPC server's stop sends: GOAWAY before, then the ends of all streams in one write."""
    server.engine.send_goaway()
    server.world.run()
    for stream in streams:
        server.finish(stream)
    trailers = server.engine.data_to_send()
    for stream in streams:
        server.engine.reset_stream(stream, ngh2.ErrorCode.NO_ERROR)
    server.transport.write(trailers + server.engine.data_to_send())


def test_streams_that_end_together_with_their_connection_all_end_well() -> None:
    """The engine takes no calls any more when the first of these ends is told."""
    world = World().silent()
    client = world.start().client()
    sids = [client.request(message("chat-001"), path=CHAT, end=False) for _ in range(3)]
    world.run()
    server = world.at(world.owner("chat-001"))
    for stream in (1, 3, 5):
        server.begin(stream)
    world.run()
    graceful_end(server, [1, 3, 5])
    world.run()
    assert [client.exchanges[sid].status for sid in sids] == [0, 0, 0]
    world.assert_clean()


def test_a_client_that_says_all_and_goodbye_in_one_write_leaves_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World().echoing().start()
    for path in (CHAT, b"/grpc.health.v1.Health/Check", b"/grpc.health.v1.Health/Watch"):
        client = world.client()
        sid = client.request(framed(b"") if b"health" in path else message(), path=path)
        data = client.engine.data_to_send()
        client.engine.reset_stream(sid)
        client.engine.send_goaway()
        client.transport.write(data + client.engine.data_to_send())
        world.run()
    world.assert_clean()
    assert "bug" not in caplog.text


def test_a_client_that_says_more_to_an_answered_call_and_ends_it_with_its_connection_is_no_bug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World().silent().start()
    client = world.client({ngh2.Setting.INITIAL_WINDOW_SIZE: 0})
    sid = client.request(message("chat-001"), path=CHAT, end=False)
    world.run()
    next(iter(world.proxy.listener.connections)).start_drain()
    world.at(world.owner("chat-001")).respond(1, framed(b"that is enough"))
    world.run()
    client.engine.send_data(sid, framed(b"more"))
    data = client.engine.data_to_send()
    client.engine.reset_stream(sid)
    client.transport.write(data + client.engine.data_to_send())
    world.run()
    assert not world.proxy.listener.connections
    world.assert_clean()
    assert "bug" not in caplog.text


def test_a_server_that_says_goaway_at_once_is_not_connected_to_in_a_tight_loop() -> None:
    world = World(endpoints=endpoints("A"))
    world.server("A")
    original = world.join

    def rude(protocol: object, peer: Peer) -> None:
        original(protocol, peer)  # type: ignore[arg-type]
        if isinstance(peer, Server):
            peer.engine.send_goaway()

    world.join = rude  # type: ignore[method-assign]
    world.start()
    assert len(world.connects) == 1
    client = world.client()
    sid = client.request(message())
    world.advance(1.0)
    assert client.exchanges[sid].status == 14
    assert len(world.connects) < 6
    world.assert_clean()


def test_metadata_beyond_what_the_server_takes_is_refused_for_that_call_alone() -> None:
    """CVE-2023-32732 and its kind: sent all the same, it would end everybody's calls on the connection."""
    world = World().silent(settings={ngh2.Setting.MAX_HEADER_LIST_SIZE: 4096})
    client = world.start().client()
    large = client.request(message("chat-001"), extra=[(b"x-large", b"y" * 4000)])
    small = client.request(message("chat-001"))
    world.run()
    assert client.exchanges[large].status == 8
    assert "4096 bytes of metadata" in client.exchanges[large].message
    world.at(world.owner("chat-001")).respond(1)
    world.run()
    assert client.exchanges[small].status == 0
    world.assert_clean()


def test_nothing_keeps_a_dead_connection_alive() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connection_age": 10_000.0}).echoing().start()
    client = world.client()
    for _ in range(20):
        client.request(message())
        world.run()
        world.at("A").engine.send_goaway()
        world.run()
    assert sum(timer.callback is not None for _, _, timer in world._timers) < 20
