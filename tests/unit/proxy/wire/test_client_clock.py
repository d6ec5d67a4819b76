"""How long a client may take, be silent, be idle and be connected. Looks come every quarter of the shortest time."""

from __future__ import annotations

import pytest

from tests.support.frames import (
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    GOAWAY,
    HEADERS,
    HELLO,
    PREFACE,
    PROTOCOL_ERROR,
    SETTINGS,
    SETTINGS_TIMEOUT,
    frame,
)
from tests.support.messages import framed, message
from tests.support.world import World

UNAVAILABLE, DEADLINE_EXCEEDED = 14, 4
CHAT = b"/chat.ChatService/Chat"


def test_a_client_that_says_nothing_is_cut_off() -> None:
    world = World(listener={"preface_timeout": 4.0}).echoing().start()
    client = world.raw_client()
    world.advance(3.5)
    assert client.connected
    world.advance(2.0)
    assert client.last_code == PROTOCOL_ERROR
    assert not client.connected
    assert world.exceeded("preface_timeout") == 1


def test_a_preface_that_trickles_is_cut_off_all_the_same() -> None:
    world = World(listener={"preface_timeout": 4.0}).echoing().start()
    client = world.raw_client()
    for byte in PREFACE:
        if not client.connected:
            break
        client.say(bytes([byte]))
        world.advance(0.5)
    assert not client.connected
    assert world.time < 1007


def test_settings_that_are_not_acknowledged_end_the_connection() -> None:
    world = World(listener={"settings_timeout": 4.0}).echoing().start()
    client = world.raw_client(PREFACE + frame(SETTINGS, 0, 0))
    world.advance(3.5)
    assert client.connected
    world.advance(3.0)
    assert client.last_code == SETTINGS_TIMEOUT
    assert world.exceeded("settings_timeout") == 1


@pytest.mark.parametrize(
    "begun",
    [
        frame(HEADERS, 0, 1, b"\x83"),
        frame(HEADERS, END_HEADERS, 1, b"\x83\x86\x44")[:8],
        frame(SETTINGS, 0, 0, bytes(6))[:12],
    ],
    ids=["header block without its end", "half a frame header", "half a SETTINGS frame"],
)
def test_a_frame_or_header_block_that_does_not_end_ends_the_connection(begun: bytes) -> None:
    world = World(listener={"frame_timeout": 4.0}).echoing().start()
    client = world.raw_client(HELLO)
    client.say(begun)
    world.advance(4.0)
    assert client.connected
    world.advance(3.0)
    assert client.last_code == ENHANCE_YOUR_CALM
    assert world.exceeded("frame_timeout") == 1


def test_a_header_block_that_does_not_end_after_data_ends_the_connection() -> None:
    world = World(listener={"frame_timeout": 4.0}).silent().start()
    client = world.client()
    client.request(message("chat-001"), path=CHAT)
    data = client.engine.data_to_send() + frame(HEADERS, 0, 3, b"\x83")
    for byte in data:
        client.transport.write(bytes([byte]))
        world.run()
    client.stopped = True  # nobody answers a PING in a header block
    world.advance(8.0)
    assert world.exceeded("frame_timeout") == 1


def test_a_large_request_over_a_slow_line_is_not_taken_for_an_endless_frame() -> None:
    """The answer to our PING waits behind it, in the client's own socket buffer."""
    world = World(listener={"frame_timeout": 4.0}).silent().start()
    client = world.client()
    sid = client.request(message("chat-001", "x" * 200_000), path=CHAT)
    client.stopped = True
    line = bytearray(client.engine.data_to_send())
    while line:
        client.transport.write(bytes(line[:1000]))
        del line[:1000]
        world.advance(0.1)
        line += client.engine.data_to_send()
    assert client.pings
    assert world.exceeded("frame_timeout") == 0
    server = world.at(world.owner("chat-001"))
    assert server.exchanges[1].ended
    server.respond(1)
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_client_that_answers_a_ping_is_not_in_the_middle_of_anything() -> None:
    world = World(listener={"frame_timeout": 4.0}).echoing().start()
    client = world.client()
    body = message()
    sid = client.request(body)
    data = client.engine.data_to_send()
    client.stopped = True
    for index in range(0, len(data), 10):
        client.transport.write(data[index : index + 10])
        world.advance(0.3)
    client.stopped = False
    world.run()
    assert client.exchanges[sid].body == body
    assert client.pings
    world.advance(60.0)
    assert client.connected


def test_an_idle_client_is_asked_to_leave_in_two_steps() -> None:
    world = World(listener={"idle_timeout": 60.0}).echoing().start()
    client = world.client()
    for _ in range(5):
        client.request(message())
        world.advance(50.0)
    assert client.connected, "a call now and then is not idle"
    world.advance(20.0)
    assert client.goaways[0].last_stream_id == 2**31 - 1
    assert not client.connected
    assert world.exceeded("idle_timeout") == 1


def test_a_client_with_a_call_is_not_idle() -> None:
    world = World(listener={"idle_timeout": 60.0}).silent().start()
    client = world.client()
    client.request(message(), path=CHAT)
    world.advance(300.0)
    assert client.connected


def test_an_old_connection_is_drained_in_two_steps_while_its_calls_go_on() -> None:
    world = World(listener={"max_connection_age": 100.0}).silent().start()
    client = world.client()
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    world.advance(90.0)
    assert not client.goaways
    world.advance(30.0)
    assert [each.last_stream_id for each in client.goaways] == [2**31 - 1, sid]
    server = world.at(world.owner("chat-001"))
    server.respond(1, framed(b"late"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert not client.connected
    assert world.exceeded("connection_age") == 1


def test_a_client_that_does_not_acknowledge_gets_the_final_goaway_all_the_same() -> None:
    world = World(listener={"max_connection_age": 100.0}).echoing().start()
    client = world.raw_client(HELLO)
    world.advance(130.0)
    assert not client.connected
    assert client.raw.count(frame(GOAWAY, 0, 0, bytes(8))[:9]) == 2


def test_calls_that_outlast_the_grace_of_an_old_connection_end_unavailable() -> None:
    world = World(listener={"max_connection_age": 100.0, "max_connection_age_grace": 20.0}).silent().start()
    client = world.client()
    sid = client.request(message("chat-001"), path=CHAT)
    world.advance(115.0)
    assert client.exchanges[sid].status is None
    world.advance(20.0)
    assert client.exchanges[sid].status == UNAVAILABLE
    world.assert_clean()


def test_ages_differ_so_that_connections_do_not_all_end_at_once() -> None:
    world = World(listener={"max_connection_age": 100.0}).start()
    chance = iter([0.0, 0.999])
    world.random = lambda: next(chance)  # type: ignore[method-assign]
    ages = [world.proxy.listener.connections and 0.0]
    for _ in range(2):
        world.client()
    ages = sorted(each.clock.expires_at - world.time for each in world.proxy.listener.connections)
    assert ages == pytest.approx([90.0, 110.0], abs=0.1)


def test_a_call_without_its_first_message_is_counted() -> None:
    world = World(listener={"first_message_timeout": 4.0}).echoing().start()
    client = world.client()
    sid = client.request(message()[:3], end=False)
    world.advance(10.0)
    assert client.exchanges[sid].status == DEADLINE_EXCEEDED
    assert world.exceeded("first_message_timeout") == 1
