"""`grpc-timeout`: enforced, and the rest of it passed on."""

from __future__ import annotations

import ngh2
import pytest

from proxy.grpc_wire.timeout import parse_timeout
from tests.support.messages import framed, message
from tests.support.peers import Exchange
from tests.support.world import World, address_of

STREAM = b"/chat.ChatService/StreamReply"  # its route has no timeout of its own


def silent() -> World:
    return World().silent()


def timeout_seen(world: World, chat: str = "chat-000") -> bytes | None:
    return world.at(world.owner(chat)).last.header(b"grpc-timeout")


def test_an_unanswered_call_ends_at_its_deadline_on_both_sides() -> None:
    world = silent().start()
    client = world.client()
    sid = client.request(message(), path=STREAM, extra=[(b"grpc-timeout", b"1500m")])
    world.run()
    world.advance(1.4)
    assert not client.exchanges[sid].ended
    world.advance(0.2)
    assert client.exchanges[sid].status == 4
    assert world.at(world.owner("chat-000")).last.reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


def test_a_response_that_has_begun_ends_with_the_deadlines_status() -> None:
    world = silent().start()
    client = world.client()
    sid = client.request(message(), path=STREAM, extra=[(b"grpc-timeout", b"1S")])
    world.run()
    server = world.at(world.owner("chat-000"))
    server.begin(1)
    server.engine.send_data(1, framed(b"part"))
    world.advance(1.1)
    answer = client.exchanges[sid]
    assert (answer.body, answer.status, answer.closed) == (framed(b"part"), 4, True)
    world.assert_clean()


def test_a_call_that_waits_for_a_connection_ends_at_its_deadline() -> None:
    world = World(upstream={"connect_timeout": 60.0})
    for name in "ABC":
        world.servers[address_of(name)] = None
    client = world.start().client()
    sid = client.request(message(), extra=[(b"grpc-timeout", b"1S")])
    world.run()
    world.advance(1.1)
    assert client.exchanges[sid].status == 4
    world.assert_clean()


def test_a_first_message_that_never_comes_ends_at_the_deadline() -> None:
    world = silent().start()
    client = world.client()
    sid = client.request(message()[:8], end=False, extra=[(b"grpc-timeout", b"1S")])
    world.advance(1.1)
    assert client.exchanges[sid].status == 4
    assert client.exchanges[sid].reset == ngh2.ErrorCode.NO_ERROR
    world.assert_clean()


def test_a_call_in_time_leaves_no_deadline_behind() -> None:
    world = World().echoing().start()
    client = world.client()
    for number in range(50):
        client.request(message(f"chat-{number}"), extra=[(b"grpc-timeout", b"%dm" % (1000 + number))])
    world.run()
    world.assert_clean()
    world.advance(10.0)
    assert all(exchange.status == 0 for exchange in client.exchanges.values())


def test_a_call_that_leaves_at_once_carries_the_clients_own_value() -> None:
    world = World().echoing().start()
    client = world.client()
    client.request(message(), path=STREAM, extra=[(b"grpc-timeout", b"1234567u")])
    world.run()
    assert timeout_seen(world) == b"1234567u"


def test_a_call_that_waited_carries_only_what_is_left() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(message()[:8], path=STREAM, end=False, extra=[(b"grpc-timeout", b"3S")])
    world.advance(1.0)
    client.engine.send_data(sid, message()[8:], end_stream=True)
    world.run()
    value = timeout_seen(world)
    assert value is not None
    assert 1.9 < parse_timeout(value) <= 2.0


def test_the_routes_timeout_holds_where_the_client_brings_none() -> None:
    world = silent().start()
    client = world.client()
    sid = client.request(message())
    world.run()
    assert timeout_seen(world) is not None
    assert parse_timeout(timeout_seen(world) or b"") == 10.0
    world.advance(10.1)
    assert client.exchanges[sid].status == 4


@pytest.mark.parametrize(("sent", "seconds"), [(b"60S", 10.0), (b"5S", 5.0)])
def test_the_shorter_of_the_routes_and_the_clients_timeout_wins(sent: bytes, seconds: float) -> None:
    world = World().echoing().start()
    world.client().request(message(), extra=[(b"grpc-timeout", sent)])
    world.run()
    assert parse_timeout(timeout_seen(world) or b"") == seconds


def test_a_stream_without_a_timeout_has_none() -> None:
    world = silent().start()
    client = world.client()
    sid = client.request(message(), path=STREAM)
    world.run()
    assert timeout_seen(world) is None
    world.advance(3600.0)
    assert not client.exchanges[sid].ended


@pytest.mark.parametrize("position", range(6, 9))
def test_the_timeout_is_found_wherever_the_client_puts_it(position: int) -> None:
    world = World().echoing().start()
    client = world.client()
    for value in (b"7S", b"8S", b"9S"):
        extra = [(b"x-one", b"1"), (b"x-two", b"2")]
        extra.insert(position - 6, (b"grpc-timeout", value))
        client.request(message(), extra=extra)
        world.run()
        assert timeout_seen(world) == value


@pytest.mark.parametrize("value", [b"", b"S", b"10", b"-1S", b"+1S", b"1 S", b"123456789S", b"1s", b"1.5S"])
def test_a_malformed_timeout_is_the_clients_fault(value: bytes) -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(message(), extra=[(b"grpc-timeout", value)])
    world.run()
    assert client.exchanges[sid].status == 3
    assert all(not world.at(name).exchanges for name in "ABC")
    world.assert_clean()


def test_a_deadline_of_zero_has_passed_when_the_call_arrives() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(message(), extra=[(b"grpc-timeout", b"0S")])
    world.run()
    assert client.exchanges[sid].status == 4
    assert all(not world.at(name).exchanges for name in "ABC")


def test_the_longest_timeout_of_the_format_does_not_overflow() -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(message(), path=STREAM, extra=[(b"grpc-timeout", b"99999999H")])
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_duplicate_timeout_is_not_passed_on() -> None:
    world = World().echoing().start()
    world.client().request(message(), path=STREAM, extra=[(b"grpc-timeout", b"5S"), (b"grpc-timeout", b"9S")])
    world.run()
    last: Exchange = world.at(world.owner("chat-000")).last
    assert [value for name, value in last.headers if name == b"grpc-timeout"] == [b"5S"]
