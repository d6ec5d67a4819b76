"""The connections to a server: stream limits, back-off, keepalive, age, and the end."""

from __future__ import annotations

import ngh2
import pytest
from hyperframe.frame import DataFrame

from proxy.transport.pool import MAX_REFUSALS
from tests.support.messages import message
from tests.support.peers import Client, Exchange, Peer, Server, refuse
from tests.support.world import World, address_of, endpoints

CHAT = b"/chat.ChatService/Chat"


def reached(world: World) -> list[str]:
    """The names of the servers that saw any call."""
    return [name for name in "ABC" if address_of(name) in world.servers and world.at(name).exchanges]


def test_calls_beyond_the_servers_stream_limit_wait_in_order_and_stay() -> None:
    world = World(endpoints=endpoints("A", "B"), upstream={"max_connections": 1})
    for name in "AB":
        world.server(name, {ngh2.Setting.MAX_CONCURRENT_STREAMS: 2})
    client = world.start().client()
    sids = [client.request(message("chat-001", f"number {n}")) for n in range(6)]
    world.run()
    server = world.at(world.owner("chat-001"))
    for sid in (1, 3, 5, 7, 9, 11):
        assert len(server.exchanges) <= len(server.begun) + 2
        server.respond(sid, server.exchanges[sid].body)
        world.run()
    assert [client.exchanges[sid].body for sid in sids] == [message("chat-001", f"number {n}") for n in range(6)]
    assert [server.exchanges[sid].body for sid in sorted(server.exchanges)] == [
        client.exchanges[sid].body for sid in sids
    ]
    world.assert_clean()


def test_a_full_connection_gets_a_second_one_beside_it_up_to_the_maximum() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connections": 3})
    server = world.server("A", {ngh2.Setting.MAX_CONCURRENT_STREAMS: 2})
    client = world.start().client()
    for number in range(20):
        client.request(message("chat-001", f"number {number}"))
    world.run()
    assert len(server.connections) == 3
    assert [len(each.exchanges) for each in server.connections] == [2, 2, 2]


def test_more_waiting_calls_than_allowed_are_refused_at_once() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connections": 1, "max_waiting": 3})
    world.server("A", {ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    sids = [client.request(message("chat-001")) for _ in range(6)]
    world.run()
    refused = [client.exchanges[sid] for sid in sids if client.exchanges[sid].ended]
    assert [answer.status for answer in refused] == [8, 8]
    assert "3 calls are waiting" in refused[0].message


def test_a_cancelled_call_stops_waiting() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connections": 1})
    server = world.server("A", {ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    client.request(message("chat-001", "first"))
    second = client.request(message("chat-001", "second"))
    third = client.request(message("chat-001", "third"))
    world.run()
    client.engine.reset_stream(second, ngh2.ErrorCode.CANCEL)
    world.run()
    server.respond(1)
    world.run()
    assert [exchange.body for exchange in server.exchanges.values()] == [
        message("chat-001", "first"),
        message("chat-001", "third"),
    ]
    server.respond(3)
    world.run()
    assert client.exchanges[third].status == 0
    world.assert_clean()


def test_a_refusal_at_the_stream_limit_keeps_the_call_with_its_server() -> None:
    """C-core's server counts a stream a moment longer than the protocol does."""
    world = World(upstream={"max_connections": 1}).echoing()
    owner = world.owner("chat-001")
    server = world.server(owner, {ngh2.Setting.MAX_CONCURRENT_STREAMS: 2})
    refusals = []

    def refuse_each_first_successor(peer: Peer, sid: int, exchange: Exchange) -> None:
        assert isinstance(peer, Server)
        if sid > 4 and exchange.body not in refusals:
            refusals.append(exchange.body)
            refuse(peer, sid, exchange)

    server.on_request = refuse_each_first_successor
    client = world.start().client()
    sids = [client.request(message("chat-001", f"number {n}")) for n in range(8)]
    world.run()
    for _ in range(40):
        for sid, exchange in list(server.exchanges.items()):
            if exchange.ended and not exchange.closed and sid not in server.begun:
                server.respond(sid, exchange.body)
        world.advance(0.01)
    assert [client.exchanges[sid].body for sid in sids] == [message("chat-001", f"number {n}") for n in range(8)]
    assert len(refusals) == 6
    assert reached(world) == [owner]
    world.assert_clean()


def at_the_limit() -> tuple[World, Client, int, Server]:
    """The owner of `chat-001` has a call, as many as it takes at once, and another waits; other servers would echo."""
    world = World(upstream={"max_connections": 1})
    owner, *others = world.order("chat-001")
    world.echoing(*others).server(owner, {ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    client.request(message("chat-001"))
    waiting = client.request(message("chat-001"))
    world.run()
    return world, client, waiting, world.at(owner)


def test_a_server_that_refuses_for_ever_at_its_limit_is_left_in_the_end() -> None:
    world, client, waiting, server = at_the_limit()
    server.on_request = refuse
    server.respond(1)
    world.advance(1.0)
    assert client.exchanges[waiting].status == 0
    assert len(server.exchanges) == 1 + 1 + MAX_REFUSALS
    world.assert_clean()


def test_a_server_that_refuses_at_its_limit_and_hangs_up_each_time_gets_the_call_once_more_and_no_oftener() -> None:
    """No stream has ended on its new connections that it might count still: the refusal is not about its limit."""
    world, client, waiting, server = at_the_limit()

    def refuse_and_hang_up(peer: Peer, sid: int, exchange: Exchange) -> None:
        refuse(peer, sid, exchange)
        peer.transport.write(peer.engine.data_to_send())
        peer.transport.close()

    server.on_request = refuse_and_hang_up
    server.respond(1)
    world.advance(1.0)
    assert client.exchanges[waiting].status == 0
    assert [len(each.exchanges) for each in server.connections] == [2, 1, 0]
    world.assert_clean()


def test_a_raised_stream_limit_lets_waiting_calls_go() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connections": 1})
    server = world.server("A", {ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    for _ in range(5):
        client.request(message("chat-001"))
    world.run()
    assert len(server.exchanges) == 1
    server.engine.update_settings({ngh2.Setting.MAX_CONCURRENT_STREAMS: 10})
    world.run()
    assert len(server.exchanges) == 5


def test_a_server_that_accepts_and_hangs_up_is_not_connected_to_in_a_tight_loop() -> None:
    world = World(endpoints=endpoints("A"))
    world.server("A")
    world.start()
    for connects in (1, 2):
        world.at("A").transport.abort()
        world.run()
        assert len(world.connects) == connects
        assert "connection closed by the server" in world.proxy.cluster.snapshot.by_id["A"].reason
        world.advance(0.5)


def test_an_idle_connection_that_the_server_closes_is_replaced_before_a_call_needs_it() -> None:
    world = World(endpoints=endpoints("A")).echoing().start()
    world.advance(60.0)
    world.at("A").transport.abort()
    world.run()
    assert len(world.connects) == 2
    assert world.proxy.cluster.snapshot.by_id["A"].available


@pytest.mark.parametrize("state", ["connecting", "backing off", "ready", "with calls"])
def test_closing_the_pools_ends_every_state_for_good(state: str) -> None:
    world = World(endpoints=endpoints("A"))
    if state == "connecting":
        world.servers[address_of("A")] = None
    elif state != "backing off":
        world.server("A")
    world.start()
    if state == "with calls":
        world.client().request(message())
        world.run()
    world.proxy.close()
    world.proxy.close()
    world.run()
    connects = len(world.connects)
    world.advance(120.0)
    assert len(world.connects) == connects
    pool = next(iter(world.proxy.pools.values()))
    assert all(connection.closed for connection in pool.connections)


# Keepalive and age.


def with_a_call(**upstream: float) -> tuple[World, Client, int, Server]:
    """A call that its server, the owner of `chat-005`, does not answer."""
    world = World(upstream=upstream).silent()
    client = world.start().client()
    sid = client.request(message("chat-005"), path=CHAT)
    world.run()
    return world, client, sid, world.at(world.owner("chat-005"))


def test_a_server_that_does_not_answer_a_ping_is_given_up_while_calls_depend_on_it() -> None:
    world, client, sid, owner = with_a_call(keepalive_interval=60.0, keepalive_timeout=5.0)
    world.advance(61.0)
    assert owner.pings == 1
    assert not client.exchanges[sid].ended
    owner.stopped = True
    world.advance(59.0)
    assert not client.exchanges[sid].ended
    world.advance(6.0)
    assert client.exchanges[sid].status == 14
    assert "no answer to a PING within 5 s" in client.exchanges[sid].message
    world.assert_clean()


def test_a_server_whose_answer_to_a_ping_waits_behind_a_long_response_is_not_given_up() -> None:
    world, client, sid, owner = with_a_call(keepalive_interval=60.0, keepalive_timeout=5.0)
    owner.begin(1)
    world.run()
    owner.stopped = True  # the answer is in the line, behind the DATA
    world.advance(61.0)
    for _ in range(30):  # over a slow line, past a second interval
        owner.transport.write(DataFrame(1, bytes(100)).serialize())
        world.advance(4.0)
    assert not client.exchanges[sid].ended
    assert len(client.exchanges[sid].body) == 3000
    world.advance(10.0)
    assert client.exchanges[sid].ended, "and then nothing comes any more"
    world.assert_clean()


def test_an_idle_connection_is_not_pinged() -> None:
    """gRPC servers end the connections of clients that ping without calls (gRFC A8)."""
    world = World(upstream={"keepalive_interval": 60.0}).echoing().start()
    world.advance(3600.0)
    assert [world.at(name).pings for name in "ABC"] == [0, 0, 0]


def test_keepalive_that_a_reload_switches_off_ends_at_once() -> None:
    world, _, _, owner = with_a_call(keepalive_interval=60.0)
    world.reload(upstream={"keepalive_interval": 0.0})
    world.advance(3600.0)
    assert owner.pings == 0


@pytest.mark.parametrize("before", [0.0, 3600.0])
def test_a_new_keepalive_interval_reaches_connections_that_stand(before: float) -> None:
    world, client, sid, owner = with_a_call(keepalive_interval=before, keepalive_timeout=5.0)
    world.advance(100.0)
    world.reload(upstream={"keepalive_interval": 60.0, "keepalive_timeout": 5.0})
    world.advance(59.0)
    assert owner.pings == 0
    world.advance(2.0)
    assert owner.pings == 1
    world.reload(upstream={"keepalive_interval": 60.0, "keepalive_timeout": 4.0})
    world.advance(57.0)
    assert owner.pings == 1, "a reload that leaves the interval as it is puts nothing off"
    owner.stopped = True
    world.advance(6.0)
    assert client.exchanges[sid].status == 14
    assert "no answer to a PING within 4 s" in client.exchanges[sid].message
    world.assert_clean()


def test_a_new_keepalive_interval_reaches_connections_that_only_finish_their_calls() -> None:
    world = World(endpoints=endpoints("A"), upstream={"keepalive_interval": 0.0, "max_connection_age": 100.0})
    old = world.server("A")
    client = world.start().client()
    client.request(message("chat-005"), path=CHAT)
    world.run()
    world.advance(111.0)
    assert world.at("A") is not old
    world.reload(endpoints=endpoints("A"), upstream={"keepalive_interval": 60.0, "max_connection_age": 100.0})
    world.advance(61.0)
    assert old.pings == 1


def test_an_old_connection_is_replaced_without_disturbing_its_calls() -> None:
    world = World(endpoints=endpoints("A"), upstream={"max_connection_age": 100.0})
    old = world.server("A")
    client = world.start().client()
    running = client.request(message("chat-005"), path=CHAT, end=False)
    world.run()
    world.advance(111.0)
    fresh = world.at("A")
    assert fresh is not old
    later = client.request(message("chat-005"), path=CHAT)
    world.run()
    assert (len(old.exchanges), len(fresh.exchanges)) == (1, 1)
    client.engine.end_stream(running)
    world.run()
    old.respond(1)
    fresh.respond(1)
    world.run()
    assert (client.exchanges[running].status, client.exchanges[later].status) == (0, 0)
    assert not old.connected
    world.assert_clean()


def test_a_connection_is_replaced_before_its_stream_ids_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.transport.pool.MAX_STREAM_ID", 20)
    world = World(endpoints=endpoints("A")).echoing().start()
    client = world.client()
    for _ in range(20):
        sid = client.request(message())
        world.run()
        assert client.exchanges[sid].status == 0
    assert [max(server.exchanges) for server in world.at("A").connections] == [11, 11, 11, 3]
