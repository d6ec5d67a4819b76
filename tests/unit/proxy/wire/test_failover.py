"""When the owner cannot take a call: who gets it next, who does not, and what the client is told.

One test per row of the table in `proxy.forwarding.retry`, then what one bad peer must not cost the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ngh2
import pytest

from proxy.transport.upstream import UpstreamConnection
from tests.support.messages import framed, message
from tests.support.peers import PATH, Client, Peer, Server, refuse, reset
from tests.support.world import World, address_of, endpoints

if TYPE_CHECKING:
    from collections.abc import Iterable


def under_way(*, path: bytes = PATH, end: bool = True) -> tuple[World, str, Client, int]:
    """A call is with the owner of its chat, which says nothing by itself; the other servers would answer."""
    world = World().echoing()
    owner = world.owner("chat-005")
    world.at(owner).on_request = None
    client = world.start().client()
    sid = client.request(message("chat-005"), path=path, end=end)
    world.run()
    return world, owner, client, sid


def reached(world: World) -> list[str]:
    """The names of the servers that saw any call."""
    return [name for name in "ABC" if address_of(name) in world.servers and world.at(name).exchanges]


# CONNECT_FAILED


def test_a_refused_connect_moves_the_call_to_the_next_server_on_the_ring() -> None:
    world = World()
    owner, second, third = world.order("chat-005")
    world.echoing(second, third).start()
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert reached(world) == [second]
    assert not world.proxy.cluster.snapshot.by_id[owner].available
    world.assert_clean()


def test_a_call_that_waits_for_the_connect_moves_when_it_is_refused() -> None:
    world = World()
    _owner, second, third = world.order("chat-005")
    world.echoing(second, third)
    for pool in world.proxy.pools.values():
        pool.start()
    client = world.client()  # not yet run: nothing is connected
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert reached(world) == [second]


def test_the_next_call_does_not_pay_for_the_failed_connect_again() -> None:
    world = World()
    owner, *others = world.order("chat-005")
    world.echoing(*others).start()
    client = world.client()
    before = len(world.connects)
    for _ in range(5):
        client.request(message("chat-005"))
        world.run()
    assert len(world.connects) == before
    assert world.connects.count(address_of(owner)) == 1


def test_the_owner_gets_its_chats_back_when_it_can_be_reached_again() -> None:
    world = World()
    owner, *others = world.order("chat-005")
    world.echoing(*others).start()
    world.echoing(owner)
    world.advance(0.3)  # the first back-off is at most 0.25 s
    client = world.client()
    client.request(message("chat-005"))
    world.run()
    assert reached(world) == [owner]


def test_the_back_off_grows_with_each_failure_up_to_its_ceiling() -> None:
    world = World(endpoints=endpoints("A"), upstream={"connect_backoff": 1.0, "max_connect_backoff": 4.0}).start()
    gaps = []
    for _ in range(5):
        count, waited = len(world.connects), 0.0
        while len(world.connects) == count:
            world.advance(0.25)
            waited += 0.25
        gaps.append(waited)
    assert gaps == [0.75, 1.5, 3.0, 3.0, 3.0]  # x 0.75: half fixed, half jitter at 0.5


def test_a_server_that_was_away_for_hours_is_connected_to_once_it_is_back() -> None:
    world = World(endpoints=endpoints("A"), upstream={"connect_backoff": 1.0, "max_connect_backoff": 1.0}).start()
    while len(world.connects) < 1_100:  # the 1,024th doubling is beyond what a float holds
        world.advance(1.0)
    world.echoing("A").advance(1.0)
    client = world.client()
    client.request(message("chat-005"))
    world.run()
    assert reached(world) == ["A"]


def test_a_black_hole_fails_after_the_connect_timeout_and_the_call_moves_on() -> None:
    world = World(upstream={"connect_timeout": 2.0})
    owner, second, third = world.order("chat-005")
    world.echoing(second, third)
    world.servers[address_of(owner)] = None
    world.start()
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert not client.exchanges[sid].ended
    world.advance(2.0)
    assert client.exchanges[sid].status == 0
    assert reached_without(world, owner) == [second]


def reached_without(world: World, hole: str) -> list[str]:
    return [name for name in "ABC" if name != hole and world.at(name).exchanges]


def test_a_server_that_accepts_but_never_speaks_http2_counts_as_not_connected() -> None:
    world = World(upstream={"connect_timeout": 2.0})
    owner, second, third = world.order("chat-005")
    world.echoing(second, third)
    world.server(owner).stopped = True
    world.start()
    client = world.client()
    sid = client.request(message("chat-005"))
    world.advance(2.0)
    assert client.exchanges[sid].status == 0
    assert world.at(second).exchanges


def test_when_nothing_is_left_the_client_learns_which_servers_were_tried_and_why_each_failed() -> None:
    world = World().start()
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    answer = client.exchanges[sid]
    assert answer.status == 14
    first, second, third = world.order("chat-005")
    why = "cannot connect: connection refused"
    assert answer.message == f"no server could take the call ({first}: {why}; {second}: {why}; {third}: {why})"
    world.assert_clean()


def test_at_most_max_attempts_servers_are_offered_a_call() -> None:
    names = "ABCDE"
    world = World(endpoints=endpoints(*names), retry={"max_attempts": 2})
    for name in names:
        world.server(name).on_request = refuse
    client = world.start().client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 14
    assert sum(len(world.at(name).exchanges) for name in names) == 2


def test_servers_that_are_known_to_be_down_cost_no_attempt() -> None:
    names = "ABCDEF"
    world = World(endpoints=endpoints(*names), retry={"max_attempts": 1})
    *_, last = world.order("chat-005")
    world.echoing(last).start()
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0


# REFUSED


def test_a_refused_stream_moves_the_call_with_its_whole_body() -> None:
    world = World()
    owner, second, third = world.order("chat-005")
    world.echoing(second, third).server(owner).on_request = refuse
    client = world.start().client()
    sid = client.request(message("chat-005", "x" * 5000))
    world.run()
    assert client.exchanges[sid].body == message("chat-005", "x" * 5000)
    assert client.exchanges[sid].status == 0
    assert reached(world) == sorted([owner, second])
    world.assert_clean()


def test_a_refusing_server_is_not_marked_down() -> None:
    world = World()
    owner, *others = world.order("chat-005")
    world.echoing(*others).server(owner).on_request = refuse
    client = world.start().client()
    client.request(message("chat-005"))
    world.run()
    assert world.proxy.cluster.snapshot.by_id[owner].available


def test_a_request_longer_than_the_replay_buffer_cannot_move_once_it_was_sent() -> None:
    world = World(retry={"replay_buffer": 1000})
    owner, *others = world.order("chat-005")
    world.echoing(*others).server(owner).on_request = refuse
    client = world.start().client()
    sid = client.request(message("chat-005", "x" * 2000))
    world.run()
    assert client.exchanges[sid].status == 14
    assert reached(world) == [owner]
    world.assert_clean()


def test_a_streaming_request_that_outgrows_the_replay_buffer_cannot_move() -> None:
    world = World(retry={"replay_buffer": 1000})
    owner, *others = world.order("chat-005")
    world.echoing(*others).server(owner)
    client = world.start().client()
    sid = client.request(message("chat-005"), end=False)
    for _ in range(10):
        client.engine.send_data(sid, framed(b"x" * 200))
        world.run()
    world.at(owner).refuse(1)
    world.run()
    assert client.exchanges[sid].status == 14
    assert reached(world) == [owner]


def test_a_streaming_request_that_is_still_buffered_moves_and_keeps_its_order() -> None:
    world = World()
    owner, second, third = world.order("chat-005")
    world.echoing(second, third).server(owner)
    client = world.start().client()
    sid = client.request(message("chat-005"), end=False)
    world.run()
    for number in range(5):
        client.engine.send_data(sid, framed(b"%d" % number))
        world.run()
    world.at(owner).refuse(1)
    world.run()
    client.engine.send_data(sid, framed(b"after"), end_stream=True)
    world.run()
    assert client.exchanges[sid].body == message("chat-005") + b"".join(framed(b"%d" % n) for n in range(5)) + framed(
        b"after"
    )
    assert client.exchanges[sid].status == 0
    world.assert_clean()


# UNPROCESSED


def test_a_stream_above_a_goaway_is_sent_again_to_the_same_server() -> None:
    """What nginx does after keepalive_requests (grpc-java #10533): no reason to move the chat."""
    world, owner, client, sid = under_way()
    first = world.at(owner)
    first.engine.terminate_connection(0, last_stream_id=0)
    fresh = world.server(owner)
    fresh.on_request = lambda server, s, exchange: server.respond(s, exchange.body)  # type: ignore[attr-defined]
    world.run()
    assert client.exchanges[sid].status == 0
    assert fresh.exchanges
    world.assert_clean()


def test_a_stream_above_a_goaway_moves_on_if_the_server_does_not_come_back() -> None:
    world, owner, client, sid = under_way()
    world.servers.pop(address_of(owner)).engine.terminate_connection(0, last_stream_id=0)  # type: ignore[union-attr]
    world.run()
    assert client.exchanges[sid].status == 0
    assert reached(world) == [world.order("chat-005")[1]]


def test_a_stream_that_a_goaway_leaves_alone_finishes_on_the_old_connection() -> None:
    world, owner, client, sid = under_way()
    old = world.at(owner)
    old.engine.send_shutdown_notice()
    world.run()
    old.engine.send_goaway()
    world.run()
    later = client.request(message("chat-005"))
    world.run()
    assert world.at(owner) is not old
    world.at(owner).respond(1, b"new")
    old.respond(1, b"old")
    world.run()
    assert (client.exchanges[sid].body, client.exchanges[later].body) == (b"old", b"new")
    world.assert_clean()


# LOST, RESET: may have run. (test_repeats.py has the routes on which that is no matter.)

CHAT = b"/chat.ChatService/Chat"


def test_a_connection_lost_after_the_request_was_written_fails_the_call_and_runs_it_nowhere_else() -> None:
    """Envoy #39800 ran such a call twice."""
    world, owner, client, sid = under_way(path=CHAT)
    world.kill(owner)
    answer = client.exchanges[sid]
    assert answer.status == 14
    assert answer.message.startswith(f"{owner}: ")
    assert "may have run" in answer.message
    assert [name for name in "ABC" if name != owner and world.at(name).exchanges] == []
    world.assert_clean()


def test_a_reset_other_than_refused_fails_the_call_and_runs_it_nowhere_else() -> None:
    world = World()
    owner = world.owner("chat-005")
    world.echoing().at(owner).on_request = reset
    client = world.start().client()
    sid = client.request(message("chat-005"), path=CHAT)
    world.run()
    assert client.exchanges[sid].status == 13
    assert reached(world) == [owner]


def test_a_connection_lost_before_the_request_was_written_moves_the_call() -> None:
    world = World().echoing()
    owner = world.owner("chat-005")
    client = world.start().client()
    connection = world.proxy.pools[world.proxy.cluster.snapshot.by_id[owner]].connections[0]
    connection.pause_writing()  # the kernel takes nothing more
    sid = client.request(message("chat-005"))
    world.run()
    world.kill(owner)
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_after_the_response_began_a_lost_connection_ends_it_with_a_status() -> None:
    world, owner, client, sid = under_way(end=False)
    server = world.at(owner)
    server.begin(1)
    server.engine.send_data(1, framed(b"part"))
    world.run()
    world.kill(owner)
    answer = client.exchanges[sid]
    assert (answer.body, answer.status) == (framed(b"part"), 14)
    assert answer.closed
    world.assert_clean()


def test_a_server_that_breaks_the_protocol_fails_its_calls_and_is_connected_to_again() -> None:
    world, owner, client, sid = under_way(path=CHAT)
    broken = world.at(owner)
    broken.transport.write(b"\x00\x00\x00\x00\x00\x00\x00\x00\x00")  # DATA on stream 0: RFC 9113, 6.1
    world.run()
    assert client.exchanges[sid].status == 14
    assert "broke the protocol" in client.exchanges[sid].message
    assert len(broken.connections) == 2


# Containment: the connections to servers carry the calls of many clients.


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
