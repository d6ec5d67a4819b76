"""What keeps one sick server, one sick chat or too much work from spreading."""

from __future__ import annotations

import ngh2
import pytest

from proxy.cluster.endpoint import Cause
from tests.support.messages import framed, message, varint
from tests.support.peers import Exchange, Peer, hang_up
from tests.support.world import World, address_of, endpoints

CHAT = b"/chat.ChatService/Chat"


def unavailable(server: Peer, sid: int, _exchange: Exchange) -> None:
    server.begun.add(sid)
    server.engine.send_response(sid, [(b":status", b"200"), (b"grpc-status", b"14")], end_stream=True)


# Ejection.


@pytest.mark.parametrize("failure", [unavailable, hang_up], ids=["answers UNAVAILABLE", "hangs up"])
def test_a_server_that_fails_its_calls_is_ejected_and_returns_in_time(failure) -> None:  # type: ignore[no-untyped-def]
    world = World(failback={"mode": "immediate"}).echoing()
    world.at("A").on_request = failure
    client = world.start().client()
    for chat in world.chats_of("A", 5):
        client.request(message(chat), path=CHAT)
        world.run()
    failed = len(world.calls_at("A"))
    chat = world.chats_of("A", 1)[0]
    sid = client.request(message(chat), path=CHAT)
    world.run()
    assert client.exchanges[sid].status == 0
    assert len(world.calls_at("A")) == failed
    assert "ejected for 30 s after 5 failures in a row" in world.proxy.cluster.snapshot.by_id["A"].reason
    world.echo_everywhere()
    world.advance(32.0)
    client.request(message(chat), path=CHAT)
    world.run()
    assert len(world.calls_at("A")) == failed + 1


def test_a_lost_connection_is_one_failure_however_many_calls_were_on_it() -> None:
    world = World().silent()
    client = world.start().client()
    for chat in world.chats_of("A", 20):
        client.request(message(chat), path=CHAT)
    world.run()
    world.at("A").transport.abort()
    world.run()
    assert world.proxy.cluster.snapshot.by_id["A"].available


@pytest.mark.parametrize("status", [1, 2, 3, 4, 5, 13])
def test_answers_that_say_nothing_about_the_server_eject_nobody(status: int) -> None:
    world = World().answering(lambda server, sid, _: server.respond(sid, status=status))  # type: ignore[attr-defined]
    client = world.start().client()
    for chat in world.chats_of("A", 20):
        client.request(message(chat), path=CHAT)
        world.run()
    assert world.proxy.cluster.snapshot.by_id["A"].available


# Quarantine.


def test_a_chat_that_kills_whatever_serves_it_takes_two_servers_and_not_a_third() -> None:
    world = World(endpoints=endpoints(*"ABCDE"), retry={"max_attempts": 5})

    def poisoned(server: Peer, sid: int, exchange: Exchange) -> None:
        if b"poison" in exchange.body:
            hang_up(server, sid, exchange)
        else:
            server.respond(sid, exchange.body)  # type: ignore[attr-defined]

    for name in "ABCDE":
        world.server(name).on_request = poisoned
    client = world.start().client()
    first = client.request(message("poison"))
    world.run()
    again = client.request(message("poison"))
    fine = client.request(message("chat-001"))
    world.run()
    for sid in (first, again):
        assert client.exchanges[sid].status == 14
        assert "quarantined for 30 s" in client.exchanges[sid].message
        assert client.exchanges[sid].header(b"grpc-retry-pushback-ms") == b"-1"
    assert client.exchanges[fine].status == 0
    assert sum(len(world.at(name).connections) for name in "ABCDE") == 5 + 2  # two of them died once
    world.advance(31.0)
    world.echo_everywhere()
    after = client.request(message("poison"))
    world.run()
    assert client.exchanges[after].status == 0
    world.assert_clean()


# The operator's drain.


def test_a_drained_servers_calls_finish_and_its_chats_go_elsewhere_until_the_operator_takes_it_back() -> None:
    world = World(failback={"mode": "immediate"}).echoing()
    home = world.proxy.cluster.snapshot.owner(b"chat-005")
    second = world.order("chat-005")[1]
    world.at(home.id).on_request = None  # answers when the test says so
    client = world.start().client()
    running = client.request(message("chat-005"))
    world.run()
    home.block(Cause.OPERATOR, "drained by the operator")
    world.echo_everywhere()
    moved = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[moved].status == 0
    assert len(world.calls_at(second)) == 1
    assert not home.unblock(Cause.HEALTH), "a passed check took the drain back"
    server = next(each for each in world.at(home.id).connections if each.order)
    server.respond(server.order[0], b"late")
    world.run()
    assert client.exchanges[running].status == 0
    assert home.active == 0
    home.unblock(Cause.OPERATOR)
    client.request(message("chat-005"))
    world.run()
    assert len(world.calls_at(home.id)) == 2
    world.assert_clean()


# Panic.


@pytest.mark.parametrize(("panic", "status"), [("try_all", 0), ("fail_fast", 14)])
def test_when_all_servers_are_only_said_to_be_sick(panic: str, status: int) -> None:
    world = World(retry={"panic": panic}).echoing().start()
    for endpoint in world.proxy.cluster.snapshot:
        endpoint.block(Cause.HEALTH, "timed out")
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == status
    if status:
        assert "A: timed out" in client.exchanges[sid].message
    else:
        assert len(world.calls_at(world.owner("chat-005"))) == 1
    world.assert_clean()


def test_panic_spares_a_server_that_the_operator_drains() -> None:
    world = World(retry={"panic": "try_all"}).echoing().start()
    owner, second, third = world.order("chat-005")
    for name, cause in ((owner, Cause.OPERATOR), (second, Cause.HEALTH), (third, Cause.OPERATOR)):
        world.proxy.cluster.snapshot.by_id[name].block(cause, cause.value)
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert {name: len(world.calls_at(name)) for name in "ABC"} == {owner: 0, second: 1, third: 0}
    world.assert_clean()


def test_panic_does_not_wait_for_servers_that_cannot_be_reached() -> None:
    world = World()
    owner, second, third = world.order("chat-005")
    world.echoing(third).start()  # the other two refuse
    world.proxy.cluster.snapshot.by_id[third].block(Cause.EJECTED, "ejected")
    client = world.client()
    sid = client.request(message("chat-005"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert len(world.calls_at(third)) == 1
    assert {owner, second} == {name for name in "ABC" if address_of(name) not in world.servers}


# Limits.


def test_calls_beyond_the_proxys_limit_are_turned_away_with_a_pushback() -> None:
    world = World(limits={"max_calls": 3, "pushback": 2.5}).silent()
    client = world.start().client()
    sids = [client.request(message(f"chat-{number}")) for number in range(5)]
    world.run()
    turned_away = [client.exchanges[sid] for sid in sids[3:]]
    assert [answer.status for answer in turned_away] == [14, 14]
    assert {answer.header(b"grpc-retry-pushback-ms") for answer in turned_away} == {b"2500"}
    assert sum(len(world.calls_at(name)) for name in "ABC") == 3


def test_calls_beyond_a_servers_limit_are_turned_away_and_move_nowhere() -> None:
    world = World(limits={"max_calls_per_endpoint": 2}).silent()
    client = world.start().client()
    sids = [client.request(message("chat-005")) for _ in range(4)]
    world.run()
    assert [client.exchanges[sid].status for sid in sids] == [None, None, 8, 8]
    assert sum(len(world.calls_at(name)) for name in "ABC") == 2
    other = client.request(message(world.chats_of(next(n for n in "ABC" if n != world.owner("chat-005")), 1)[0]))
    world.run()
    assert not client.exchanges[other].ended


def test_calls_beyond_a_chats_limit_are_turned_away_until_one_of_them_ends() -> None:
    world = World(limits={"max_calls_per_chat": 1}).silent()
    client = world.start().client()
    first = client.request(message("chat-005"))
    second = client.request(message("chat-005"))
    other = client.request(message("chat-006"))
    world.run()
    assert [client.exchanges[sid].status for sid in (first, second, other)] == [None, 8, None]
    client.engine.reset_stream(first)
    world.run()
    third = client.request(message("chat-005"))
    world.run()
    assert not client.exchanges[third].ended
    client.transport.abort()
    world.run()
    assert world.proxy.forwarder.calls_by_chat == {}
    world.assert_clean()


def test_large_replay_buffers_are_bounded_in_all() -> None:
    world = World(retry={"replay_buffer_total": 30_000}).silent()
    client = world.start().client()
    sids = [client.request(message("chat-005", "x" * 10_000)) for _ in range(5)]
    world.run()
    assert world.proxy.forwarder.kept <= 30_000
    for stream in world.at(world.owner("chat-005")).exchanges:
        world.at(world.owner("chat-005")).engine.reset_stream(stream, ngh2.ErrorCode.REFUSED_STREAM)
    world.run()
    assert [client.exchanges[sid].status for sid in sids].count(14) == 3
    client.transport.abort()
    world.run()
    assert world.proxy.forwarder.kept == 0


# What the hostile do.


def test_ping_acks_that_nobody_asked_for_queue_nothing() -> None:
    world = World().echoing().start()
    client = world.client()
    client.request(message(), path=CHAT, end=False)
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    downstream.pause_writing()  # the client does not read
    client.transport.write(b"\x00\x00\x08\x06\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" * 10_000)
    world.run()
    assert len(downstream.engine.data_to_send()) < 1000


def test_a_server_that_fails_calls_without_a_key_is_ejected_too() -> None:
    world = World().echoing()
    world.at("A").on_request = unavailable
    client = world.start().client()
    for _ in range(60):
        client.request(framed(b""), path=CHAT)
        world.run()
    assert len(world.calls_at("A")) == 5
    assert not world.proxy.cluster.snapshot.by_id["A"].available


def test_http_errors_count_as_failures() -> None:
    def http_503(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.begun.add(sid)
        server.engine.send_response(sid, [(b":status", b"503")])
        server.engine.send_data(sid, b"overloaded", end_stream=True)

    world = World().echoing()
    world.at("A").on_request = http_503
    client = world.start().client()
    for chat in world.chats_of("A", 10):
        client.request(message(chat), path=CHAT)
        world.run()
    assert len(world.calls_at("A")) == 5


def test_streams_that_were_running_well_when_their_server_died_are_not_quarantined() -> None:
    world = World(endpoints=endpoints("A", "B", "C")).silent()
    client = world.start().client()
    first, second, third = world.order("chat-005")
    for name in (first, second):
        sid = client.request(message("chat-005"), path=CHAT, end=False)
        world.run()
        world.at(name).begin(1)
        world.run()
        world.kill(name)
        assert client.exchanges[sid].ended
    sid = client.request(message("chat-005"), path=CHAT)
    world.run()
    world.at(third).respond(1)
    world.run()
    assert client.exchanges[sid].status == 0


def test_a_call_whose_first_message_does_not_come_ends() -> None:
    world = World(listener={"first_message_timeout": 8.0}).echoing().start()
    client = world.client()
    silent = client.request(end=False)
    partial = client.request(message()[:6], end=False)
    served = client.request(message("chat-001"), path=CHAT, end=False)
    world.advance(7.9)
    assert not client.exchanges[silent].ended
    world.advance(2.2)
    assert [client.exchanges[sid].status for sid in (silent, partial, served)] == [4, 4, None]
    assert "first message" in client.exchanges[silent].message


def test_bytes_of_first_messages_without_a_key_are_bounded_in_all() -> None:
    world = World(retry={"replay_buffer_total": 100_000}).echoing().start()
    client = world.client()
    piece = b"\x00\x00\x0f\x00\x00\x12" + varint(900_000) + b"x" * 30_000
    sids = [client.request(piece, end=False) for _ in range(10)]
    world.run()
    assert world.proxy.forwarder.kept <= 100_000
    assert [client.exchanges[sid].status for sid in sids].count(8) >= 6
    client.transport.abort()
    world.run()
    assert world.proxy.forwarder.kept == 0
    world.assert_clean()


def test_trouble_is_forgotten_in_time() -> None:
    world = World().echoing().start()
    owner = world.owner("chat-005")
    world.at(owner).on_request = unavailable
    client = world.client()
    client.request(message("chat-005"), path=CHAT)
    world.run()
    assert world.proxy.detector.troubled
    world.advance(60.0)
    assert not world.proxy.detector.troubled
