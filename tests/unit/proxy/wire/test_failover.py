"""When the owner cannot take a call: who gets it next, who does not, and what the client is told.

One test per row of the table in `proxy.forwarding.retry`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support.messages import framed, message
from tests.support.peers import PATH, Client, refuse, reset
from tests.support.world import World, address_of, endpoints

if TYPE_CHECKING:
    pass


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
