"""What happens beyond each limit of a client's connection: the code it is told, the counter, whom it spares."""

from __future__ import annotations

import logging

import ngh2
import pytest

from tests.support.frames import (
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    HEADERS,
    HELLO,
    PING,
    SETTINGS,
    frame,
    setting,
)
from tests.support.messages import message
from tests.support.peers import Client
from tests.support.world import World

RESOURCE_EXHAUSTED = 8
CHAT = b"/chat.ChatService/Chat"

# Connections.


def test_connections_beyond_the_limit_are_turned_away_and_may_come_when_one_has_left() -> None:
    world = World(listener={"max_connections": 2}).echoing().start()
    first, _second, third = world.client(), world.client(), world.client()
    assert third.goaways[0].error_code == ENHANCE_YOUR_CALM
    assert third.goaways[0].last_stream_id == 0, "whatever it sends has not run"
    assert not third.connected
    assert world.exceeded("connections") == 1
    first.transport.abort()
    world.run()
    fourth = world.client()
    sid = fourth.request(message())
    world.run()
    assert fourth.exchanges[sid].status == 0


def test_connections_of_one_client_beyond_its_limit_are_turned_away() -> None:
    world = World(listener={"max_connections_per_client": 2}).echoing().start()
    mine = [world.client(address="10.1.1.1") for _ in range(3)]
    other = world.client(address="10.1.1.2")
    assert [each.connected for each in mine] == [True, True, False]
    assert other.connected
    assert world.exceeded("connections_per_client") == 1
    mine[0].transport.abort()
    world.run()
    assert world.client(address="10.1.1.1").connected


def test_clients_without_an_address_are_counted_in_all_only() -> None:
    world = World(listener={"max_connections_per_client": 1}).echoing().start()
    assert all(world.client().connected for _ in range(3))


# Resets.


def cancel_at_once(world: World, client: Client, times: int) -> None:
    for _ in range(times):
        if not client.connected:
            return
        sid = client.request(message("chat-001"), path=CHAT)
        world.run()
        client.engine.reset_stream(sid)
        world.run()


def test_more_premature_resets_than_allowed_end_the_connection_calmly() -> None:
    world = World(listener={"max_premature_resets": 50, "premature_resets_per_second": 1}).silent().start()
    client, good = world.client(), world.client()
    cancel_at_once(world, client, 50)
    assert client.connected
    cancel_at_once(world, client, 1)
    assert client.goaways[-1].error_code == ENHANCE_YOUR_CALM
    assert not client.connected
    assert world.exceeded("premature_resets") == 1
    assert good.connected
    assert all(endpoint.active == 0 for endpoint in world.proxy.pools)


def test_premature_resets_are_earned_back_with_time() -> None:
    world = World(listener={"max_premature_resets": 50, "premature_resets_per_second": 10}).silent().start()
    client = world.client()
    cancel_at_once(world, client, 50)
    world.advance(4.0)
    cancel_at_once(world, client, 40)
    assert client.connected


def test_cancelling_a_stream_whose_response_has_begun_is_no_offence() -> None:
    world = World(listener={"max_premature_resets": 5}).silent().start()
    client = world.client()
    server = world.at(world.owner("chat-001"))
    for number in range(50):
        sid = client.request(message("chat-001"), path=CHAT)
        world.run()
        server.begin(2 * number + 1)
        world.run()
        client.engine.reset_stream(sid)
        world.run()
    assert client.connected
    assert world.exceeded("premature_resets") == 0
    world.assert_clean()


def test_many_old_calls_given_up_at_once_are_no_offence() -> None:
    """A server hangs, and all of a client's calls reach their deadlines in the same moment."""
    world = World(listener={"max_premature_resets": 5}).silent().start()
    client = world.client()
    sids = [client.request(message("chat-001"), path=CHAT) for _ in range(200)]
    world.run()
    world.advance(8.0)
    for sid in sids:
        client.engine.reset_stream(sid)
    world.run()
    assert client.connected
    world.assert_clean()


def test_requests_that_the_engine_refuses_count_as_premature_resets() -> None:
    """CVE-2025-8671: the client makes us reset."""
    world = World(listener={"max_premature_resets": 20}).silent().start()
    client = world.client()
    for _ in range(21):
        if client.connected:
            client.raw_request(
                [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b"content-length", b"5")]
            )
            world.run()
    assert client.goaways[-1].error_code == ENHANCE_YOUR_CALM
    assert world.exceeded("premature_resets") == 1


def test_premature_resets_beyond_the_limit_that_are_the_end_of_a_drained_connection_leave_nothing_behind() -> None:
    """Its engine is done with the last of them, so that the client hears nothing more; but it does not hang up."""
    world = World(listener={"max_premature_resets": 5}).silent().start()
    client = world.client()
    client.stopped = True
    sids = [client.request(message("chat-001"), path=CHAT) for _ in range(8)]
    client.say(client.engine.data_to_send())
    next(iter(world.proxy.listener.connections)).start_drain()
    world.run()
    client.say(client.engine.data_to_send())  # acknowledges what follows the GOAWAY
    for sid in sids:
        client.engine.reset_stream(sid)
    client.say(client.engine.data_to_send())
    assert world.exceeded("premature_resets") == 1
    assert not client.connected
    world.assert_clean()


def test_streams_count_until_the_server_has_been_told_of_their_reset() -> None:
    world = World(listener={"max_concurrent_streams": 10}).silent().start()
    client = world.client()
    server = world.owner("chat-001")
    upstream = world.proxy.pools[world.proxy.cluster.snapshot.by_id[server]].connections[0]
    upstream.pause_writing()  # the server reads nothing
    cancel_at_once(world, client, 100)
    assert client.connected
    cancel_at_once(world, client, 1)
    assert client.goaways[-1].error_code == ENHANCE_YOUR_CALM
    assert world.exceeded("unreleased_streams") == 1
    other = world.client()
    upstream.resume_writing()
    world.run()
    cancel_at_once(world, other, 200)
    assert other.connected
    world.assert_clean()


# Floods that the engine finds.


@pytest.mark.parametrize(
    "flood",
    [
        frame(0x77, 0, 0, b"abc") * 1100,
        frame(HEADERS, 0, 1, b"\x83") + frame(CONTINUATION, 0, 1) * 20,
        frame(SETTINGS, 0, 0, setting(4, 1) * 40),
    ],
    ids=["unknown frames", "continuations", "settings entries"],
)
def test_floods_end_the_connection_calmly(flood: bytes, caplog: pytest.LogCaptureFixture) -> None:
    world = World().echoing().start()
    client = world.raw_client(HELLO)
    with caplog.at_level(logging.WARNING):
        client.say(flood)
    assert client.last_code == ENHANCE_YOUR_CALM
    assert not client.connected
    assert world.exceeded("engine") == 1
    assert "limit engine: client unknown: " in caplog.text


def test_a_client_that_does_not_read_the_answers_to_its_pings_is_cut_off() -> None:
    world = World().echoing().start()
    client = world.raw_client(HELLO)
    client.transport.peer.stall()
    said = 0
    while client.connected and said < 20_000:
        client.say(frame(PING, 0, 0, b"12345678") * 500)
        said += 500
    assert not client.connected
    assert world.exceeded("engine") == 1


@pytest.mark.parametrize(
    ("limits", "flood", "allowed"),
    [
        ({"max_glitches": 10, "glitches_per_second": 1}, frame(0x77, 0, 0), 10),
        ({"max_queued_acks": 10}, frame(PING, 0, 0, b"12345678"), 10),
    ],
    ids=["max_glitches", "max_queued_acks"],
)
def test_the_settings_say_how_much_the_engine_takes(limits: dict[str, int], flood: bytes, allowed: int) -> None:
    world = World(listener=limits).echoing().start()
    one, other = world.raw_client(HELLO), world.raw_client(HELLO)
    one.say(flood * allowed)
    assert one.connected
    other.say(flood * (allowed + 2))
    assert other.last_code == ENHANCE_YOUR_CALM


def test_the_settings_say_how_long_a_header_block_and_a_settings_frame_may_be() -> None:
    world = World(listener={"max_continuations": 2, "max_settings_entries": 10}).echoing().start()
    entry, begun = setting(4, 65_535), frame(HEADERS, END_STREAM, 1, b"\x83")
    more, last = frame(CONTINUATION, 0, 1), frame(CONTINUATION, END_HEADERS, 1)
    good, long, many = world.raw_client(HELLO), world.raw_client(HELLO), world.raw_client(HELLO)
    good.say(frame(SETTINGS, 0, 0, entry * 10) + begun + more + last)
    assert good.connected
    long.say(begun + more * 2 + last)
    many.say(frame(SETTINGS, 0, 0, entry * 11))
    assert long.last_code == many.last_code == ENHANCE_YOUR_CALM


def test_settings_that_change_all_the_time_end_the_connection() -> None:
    """Each change of INITIAL_WINDOW_SIZE is work for every open stream."""
    world = World(listener={"max_glitches": 30, "glitches_per_second": 1}).echoing().start()
    client = world.raw_client(HELLO)
    for number in range(32):
        if client.connected:
            client.say(frame(SETTINGS, 0, 0, setting(4, number)))
    assert client.last_code == ENHANCE_YOUR_CALM
    assert world.exceeded("settings_changes") == 1


# Metadata.


def test_a_call_with_too_much_metadata_fails_alone() -> None:
    world = World(listener={"max_header_list_size": 2048, "max_header_count": 20}).echoing().start()
    client = world.client()
    good = client.request(message("chat-001"), end=False)
    long = client.request(message(), extra=[(b"x-long", b"v" * 2000)])
    many = client.request(message(), extra=[(b"x-%d" % n, b"") for n in range(20)])
    world.run()
    assert client.exchanges[long].status == client.exchanges[many].status == RESOURCE_EXHAUSTED
    assert "bytes of metadata, more than 2048" in client.exchanges[long].message
    assert "fields of metadata, more than 20" in client.exchanges[many].message
    assert world.exceeded("metadata") == 2
    client.engine.end_stream(good)
    world.run()
    assert client.exchanges[good].status == 0
    world.assert_clean()


def test_metadata_beyond_twice_the_limit_ends_the_connection() -> None:
    world = World(listener={"max_header_list_size": 2048}).echoing().start()
    client = world.client()
    client.request(message(), extra=[(b"x-long", b"v" * 5000)])
    world.run()
    assert client.goaways[-1].error_code == ENHANCE_YOUR_CALM
    assert world.exceeded("engine") == 1


def test_metadata_that_the_server_does_not_take_costs_that_call_alone() -> None:
    world = World().silent(settings={ngh2.Setting.MAX_HEADER_LIST_SIZE: 1000})
    world.start().echo_everywhere()
    client = world.client()
    sid = client.request(message(), extra=[(b"x-long", b"v" * 2000)])
    good = client.request(message())
    world.run()
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    assert client.exchanges[good].status == 0
    assert world.exceeded("metadata_for_server") == 1
