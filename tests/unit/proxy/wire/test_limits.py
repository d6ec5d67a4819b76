"""What happens beyond each limit of a client's connection: the code it is told, the counter, whom it spares."""

from __future__ import annotations

import logging

import ngh2
import pytest

from tests.support.wire import Client, World, frame, message

CALM, SETTINGS_TIMEOUT, PROTOCOL_ERROR = 11, 4, 1
RESOURCE_EXHAUSTED, UNAVAILABLE, DEADLINE_EXCEEDED = 8, 14, 4
INITIAL_WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
CHAT = b"/chat.ChatService/Chat"


def count(world: World, limit: str) -> int:
    return world.proxy.watch.counters.snapshot()[limit]


def silent(world: World) -> World:
    """Servers that never answer by themselves."""
    return world.silent().start()


class RawClient(Client):
    """A client whose engine sends nothing: the test writes frames."""

    def __init__(self, world: World, data: bytes = b"") -> None:
        super().__init__(world)
        self.flush = lambda: False  # type: ignore[method-assign]
        world.join(world.proxy.listener.connection(), self)
        self.say(data)

    def say(self, data: bytes) -> None:
        self.transport.write(data)
        self.world.run()

    @property
    def last_code(self) -> int | None:
        """The error code of the last GOAWAY."""
        code, data = None, self.raw
        while len(data) >= 9:
            length = int.from_bytes(data[:3], "big")
            if data[3] == 7:
                code = int.from_bytes(data[13:17], "big")
            data = data[9 + length :]
        return code


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def raw_frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


HELLO = PREFACE + raw_frame(4, 0, 0) + raw_frame(4, 1, 0)


# Connections.


def test_connections_beyond_the_limit_are_turned_away_and_may_come_when_one_has_left() -> None:
    world = World(listener={"max_connections": 2}).echoing().start()
    first, _second, third = world.client(), world.client(), world.client()
    assert third.goaways[0].error_code == CALM
    assert third.goaways[0].last_stream_id == 0, "whatever it sends has not run"
    assert not third.connected
    assert count(world, "connections") == 1
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
    assert count(world, "connections_per_client") == 1
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
    world = silent(World(listener={"max_premature_resets": 50, "premature_resets_per_second": 1}))
    client, good = world.client(), world.client()
    cancel_at_once(world, client, 50)
    assert client.connected
    cancel_at_once(world, client, 1)
    assert client.goaways[-1].error_code == CALM
    assert not client.connected
    assert count(world, "premature_resets") == 1
    assert good.connected
    assert all(endpoint.active == 0 for endpoint in world.proxy.pools)


def test_premature_resets_are_earned_back_with_time() -> None:
    world = silent(World(listener={"max_premature_resets": 50, "premature_resets_per_second": 10}))
    client = world.client()
    cancel_at_once(world, client, 50)
    world.advance(4.0)
    cancel_at_once(world, client, 40)
    assert client.connected


def test_cancelling_a_stream_whose_response_has_begun_is_no_offence() -> None:
    world = silent(World(listener={"max_premature_resets": 5}))
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
    assert count(world, "premature_resets") == 0
    world.assert_clean()


def test_many_old_calls_given_up_at_once_are_no_offence() -> None:
    """A server hangs, and all of a client's calls reach their deadlines in the same moment."""
    world = silent(World(listener={"max_premature_resets": 5}))
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
    world = silent(World(listener={"max_premature_resets": 20}))
    client = world.client()
    for _ in range(21):
        if client.connected:
            client.raw_request(
                [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a/b"), (b"content-length", b"5")]
            )
            world.run()
    assert client.goaways[-1].error_code == CALM
    assert count(world, "premature_resets") == 1


def test_premature_resets_beyond_the_limit_that_are_the_end_of_a_drained_connection_leave_nothing_behind() -> None:
    """Its engine is done with the last of them, so that the client hears nothing more; but it does not hang up."""
    world = silent(World(listener={"max_premature_resets": 5}))
    client = RawClient(world)
    sids = [client.request(message("chat-001"), path=CHAT) for _ in range(8)]
    client.say(client.engine.data_to_send())
    next(iter(world.proxy.listener.connections)).start_drain()
    world.run()
    client.say(client.engine.data_to_send())  # acknowledges what follows the GOAWAY
    for sid in sids:
        client.engine.reset_stream(sid)
    client.say(client.engine.data_to_send())
    assert count(world, "premature_resets") == 1
    assert not client.connected
    world.assert_clean()


def test_streams_count_until_the_server_has_been_told_of_their_reset() -> None:
    world = silent(World(listener={"max_concurrent_streams": 10}))
    client = world.client()
    server = world.owner("chat-001")
    upstream = world.proxy.pools[world.proxy.cluster.snapshot.by_id[server]].connections[0]
    upstream.pause_writing()  # the server reads nothing
    cancel_at_once(world, client, 100)
    assert client.connected
    cancel_at_once(world, client, 1)
    assert client.goaways[-1].error_code == CALM
    assert count(world, "unreleased_streams") == 1
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
        raw_frame(0x77, 0, 0, b"abc") * 1100,
        raw_frame(1, 0, 1, b"\x83") + raw_frame(9, 0, 1) * 20,
        raw_frame(4, 0, 0, b"\x00\x04\x00\x00\x00\x01" * 40),
    ],
    ids=["unknown frames", "continuations", "settings entries"],
)
def test_floods_end_the_connection_calmly(flood: bytes, caplog: pytest.LogCaptureFixture) -> None:
    world = World().echoing().start()
    client = RawClient(world, HELLO)
    with caplog.at_level(logging.WARNING):
        client.say(flood)
    assert client.last_code == CALM
    assert not client.connected
    assert count(world, "engine") == 1
    assert "limit engine: client unknown: " in caplog.text


def test_a_client_that_does_not_read_the_answers_to_its_pings_is_cut_off() -> None:
    world = World().echoing().start()
    client = RawClient(world, HELLO)
    client.transport.peer.stall()
    said = 0
    while client.connected and said < 20_000:
        client.say(raw_frame(6, 0, 0, b"12345678") * 500)
        said += 500
    assert not client.connected
    assert count(world, "engine") == 1


@pytest.mark.parametrize(
    ("limits", "flood", "allowed"),
    [
        ({"max_glitches": 10, "glitches_per_second": 1}, raw_frame(0x77, 0, 0), 10),
        ({"max_queued_acks": 10}, raw_frame(6, 0, 0, b"12345678"), 10),
    ],
    ids=["max_glitches", "max_queued_acks"],
)
def test_the_settings_say_how_much_the_engine_takes(limits: dict[str, int], flood: bytes, allowed: int) -> None:
    world = World(listener=limits).echoing().start()
    one, other = RawClient(world, HELLO), RawClient(world, HELLO)
    one.say(flood * allowed)
    assert one.connected
    other.say(flood * (allowed + 2))
    assert other.last_code == CALM


def test_the_settings_say_how_long_a_header_block_and_a_settings_frame_may_be() -> None:
    world = World(listener={"max_continuations": 2, "max_settings_entries": 10}).echoing().start()
    entry = b"\x00\x04\x00\x00\xff\xff"
    good, long, many = RawClient(world, HELLO), RawClient(world, HELLO), RawClient(world, HELLO)
    good.say(raw_frame(4, 0, 0, entry * 10) + raw_frame(1, 1, 1, b"\x83") + raw_frame(9, 0, 1) + raw_frame(9, 4, 1))
    assert good.connected
    long.say(raw_frame(1, 1, 1, b"\x83") + raw_frame(9, 0, 1) * 2 + raw_frame(9, 4, 1))
    many.say(raw_frame(4, 0, 0, entry * 11))
    assert long.last_code == many.last_code == CALM


def test_settings_that_change_all_the_time_end_the_connection() -> None:
    """Each change of INITIAL_WINDOW_SIZE is work for every open stream."""
    world = World(listener={"max_glitches": 30, "glitches_per_second": 1}).echoing().start()
    client = RawClient(world, HELLO)
    for number in range(32):
        if client.connected:
            client.say(raw_frame(4, 0, 0, b"\x00\x04" + number.to_bytes(4, "big")))
    assert client.last_code == CALM
    assert count(world, "settings_changes") == 1


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
    assert count(world, "metadata") == 2
    client.engine.end_stream(good)
    world.run()
    assert client.exchanges[good].status == 0
    world.assert_clean()


def test_metadata_beyond_twice_the_limit_ends_the_connection() -> None:
    world = World(listener={"max_header_list_size": 2048}).echoing().start()
    client = world.client()
    client.request(message(), extra=[(b"x-long", b"v" * 5000)])
    world.run()
    assert client.goaways[-1].error_code == CALM
    assert count(world, "engine") == 1


def test_metadata_that_the_server_does_not_take_costs_that_call_alone() -> None:
    world = World().silent(settings={ngh2.Setting.MAX_HEADER_LIST_SIZE: 1000})
    world.start().echo_everywhere()
    client = world.client()
    sid = client.request(message(), extra=[(b"x-long", b"v" * 2000)])
    good = client.request(message())
    world.run()
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    assert client.exchanges[good].status == 0
    assert count(world, "metadata_for_server") == 1


# Time. Looks come every quarter of the shortest time.


def test_a_client_that_says_nothing_is_cut_off() -> None:
    world = World(listener={"preface_timeout": 4.0}).echoing().start()
    client = RawClient(world)
    world.advance(3.5)
    assert client.connected
    world.advance(2.0)
    assert client.last_code == PROTOCOL_ERROR
    assert not client.connected
    assert count(world, "preface_timeout") == 1


def test_a_preface_that_trickles_is_cut_off_all_the_same() -> None:
    world = World(listener={"preface_timeout": 4.0}).echoing().start()
    client = RawClient(world)
    for byte in PREFACE:
        if not client.connected:
            break
        client.say(bytes([byte]))
        world.advance(0.5)
    assert not client.connected
    assert world.time < 1007


def test_settings_that_are_not_acknowledged_end_the_connection() -> None:
    world = World(listener={"settings_timeout": 4.0}).echoing().start()
    client = RawClient(world, PREFACE + raw_frame(4, 0, 0))
    world.advance(3.5)
    assert client.connected
    world.advance(3.0)
    assert client.last_code == SETTINGS_TIMEOUT
    assert count(world, "settings_timeout") == 1


@pytest.mark.parametrize(
    "begun",
    [raw_frame(1, 0, 1, b"\x83"), raw_frame(1, 4, 1, b"\x83\x86\x44")[:8], raw_frame(4, 0, 0, bytes(6))[:12]],
    ids=["header block without its end", "half a frame header", "half a SETTINGS frame"],
)
def test_a_frame_or_header_block_that_does_not_end_ends_the_connection(begun: bytes) -> None:
    world = World(listener={"frame_timeout": 4.0}).echoing().start()
    client = RawClient(world, HELLO)
    client.say(begun)
    world.advance(4.0)
    assert client.connected
    world.advance(3.0)
    assert client.last_code == CALM
    assert count(world, "frame_timeout") == 1


def test_a_header_block_that_does_not_end_after_data_ends_the_connection() -> None:
    world = silent(World(listener={"frame_timeout": 4.0}))
    client = world.client()
    client.request(message("chat-001"), path=CHAT)
    data = client.engine.data_to_send() + raw_frame(1, 0, 3, b"\x83")
    for byte in data:
        client.transport.write(bytes([byte]))
        world.run()
    client.flush = lambda: False  # type: ignore[method-assign] - nobody answers a PING in a header block
    world.advance(8.0)
    assert count(world, "frame_timeout") == 1


def test_a_large_request_over_a_slow_line_is_not_taken_for_an_endless_frame() -> None:
    """The answer to our PING waits behind it, in the client's own socket buffer."""
    world = silent(World(listener={"frame_timeout": 4.0}))
    client = world.client()
    sid = client.request(message("chat-001", "x" * 200_000), path=CHAT)
    line = bytearray(client.engine.data_to_send())
    client.flush = lambda: line.extend(client.engine.data_to_send()) or False  # type: ignore[func-returns-value, method-assign]
    while line:
        client.transport.write(bytes(line[:1000]))
        del line[:1000]
        world.advance(0.1)
    assert client.pings
    assert count(world, "frame_timeout") == 0
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
    flush, client.flush = client.flush, lambda: False  # type: ignore[method-assign]
    for index in range(0, len(data), 10):
        client.transport.write(data[index : index + 10])
        world.advance(0.3)
    client.flush = flush  # type: ignore[method-assign]
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
    assert count(world, "idle_timeout") == 1


def test_a_client_with_a_call_is_not_idle() -> None:
    world = silent(World(listener={"idle_timeout": 60.0}))
    client = world.client()
    client.request(message(), path=CHAT)
    world.advance(300.0)
    assert client.connected


def test_an_old_connection_is_drained_in_two_steps_while_its_calls_go_on() -> None:
    world = silent(World(listener={"max_connection_age": 100.0}))
    client = world.client()
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    world.advance(90.0)
    assert not client.goaways
    world.advance(30.0)
    assert [each.last_stream_id for each in client.goaways] == [2**31 - 1, sid]
    server = world.at(world.owner("chat-001"))
    server.respond(1, frame(b"late"))
    world.run()
    assert client.exchanges[sid].status == 0
    assert not client.connected
    assert count(world, "connection_age") == 1


def test_a_client_that_does_not_acknowledge_gets_the_final_goaway_all_the_same() -> None:
    world = World(listener={"max_connection_age": 100.0}).echoing().start()
    client = RawClient(world, HELLO)
    world.advance(130.0)
    assert not client.connected
    assert client.raw.count(raw_frame(7, 0, 0, bytes(8))[:9]) == 2


def test_calls_that_outlast_the_grace_of_an_old_connection_end_unavailable() -> None:
    world = silent(World(listener={"max_connection_age": 100.0, "max_connection_age_grace": 20.0}))
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
    assert count(world, "first_message_timeout") == 1


# Clients that do not read.


def stalling(world: World, window: int = 0) -> tuple[Client, int]:
    """A client that has a call with 50,000 bytes for it and gives no window."""
    client = world.client({INITIAL_WINDOW: window})
    client.hold = True
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, b"z" * 50_000)
    server.finish(1)
    world.run()
    return client, sid


def test_a_call_whose_client_takes_nothing_is_reset_on_both_sides() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}, upstream={"stream_window": 10_000}))
    client, sid = stalling(world)
    other = client.request(message("chat-002"), path=CHAT)
    world.advance(35.0)
    assert client.exchanges[sid].reset is None
    world.advance(25.0)
    assert client.exchanges[sid].reset == CALM
    assert world.at(world.owner("chat-001")).exchanges[1].reset == ngh2.ErrorCode.CANCEL
    assert count(world, "stall_timeout") == 1
    assert client.exchanges[other].reset is None
    assert client.connected
    client.engine.reset_stream(other)
    world.run()
    world.assert_clean()


def test_a_response_that_only_waits_for_the_window_is_given_up_too() -> None:
    """The server has finished; body and trailers wait in the proxy."""
    world = silent(World(listener={"stall_timeout": 40.0}))
    client, sid = stalling(world)
    world.advance(60.0)
    assert client.exchanges[sid].reset == CALM
    world.assert_clean()


def test_a_response_that_is_taken_slowly_is_not_given_up_because_its_server_has_gone() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}))
    client, sid = stalling(world, window=1000)
    exchange = client.exchanges[sid]
    world.kill(world.owner("chat-001"))
    for _ in range(60):
        client.take(sid)
        world.advance(1.0)
    assert exchange.reset is None
    assert (len(exchange.body), exchange.status) == (50_000, 0)
    world.assert_clean()


def test_trailers_alone_that_wait_for_the_window_are_given_up_too() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}))
    client = world.client({INITIAL_WINDOW: 0})
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    world.at(world.owner("chat-001")).respond(1)
    world.advance(60.0)
    assert client.exchanges[sid].reset == CALM
    world.assert_clean()


def test_a_client_that_takes_a_little_now_and_then_is_not_given_up() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}))
    client, sid = stalling(world, window=100)
    for _ in range(20):
        client.take(sid)
        world.advance(30.0)
    assert client.exchanges[sid].reset is None
    assert len(client.exchanges[sid].body) == 21 * 100
    assert count(world, "stall_timeout") == 0


def test_a_client_that_drains_all_between_two_looks_is_not_given_up() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}))
    client = world.client({INITIAL_WINDOW: 1000})
    client.hold = True
    sid = client.request(message("chat-001"), path=CHAT)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(30):
        server.engine.send_data(1, b"z" * 1000)
        world.run()
        client.take(sid)
        world.run()
        server.engine.send_data(1, b"z" * 1000)
        world.advance(9.0)
        client.take(sid)
        world.run()
    assert client.exchanges[sid].reset is None


def test_a_client_whose_transport_takes_nothing_loses_its_connection() -> None:
    world = silent(World(listener={"stall_timeout": 40.0}))
    client = world.client({INITIAL_WINDOW: 1 << 24})
    client.engine.set_local_window_size(2**31 - 1)
    client.request(message("chat-001"), path=CHAT)
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    downstream.wire.stall()  # type: ignore[union-attr]
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    for _ in range(4):
        server.engine.send_data(1, b"z" * 100_000)
        world.run()
    world.advance(35.0)
    assert client.connected
    world.advance(30.0)
    assert not client.connected
    assert count(world, "stall_timeout") >= 1


# Bytes.


def hoard(world: World, client: Client, calls: int, size: int, server: str) -> None:
    """Responses of `size` bytes to `calls` calls that the client does not take."""
    first = len(world.at(server).exchanges)
    for _ in range(calls):
        client.request(message("chat-001"), path=CHAT)
    world.run()
    for number in range(first, first + calls):
        if world.at(server).exchanges[2 * number + 1].reset is None:
            world.at(server).begin(2 * number + 1)
            world.at(server).engine.send_data(2 * number + 1, b"z" * size)
    world.run()


@pytest.mark.parametrize("stalled", [False, True], ids=["no window", "transport full"])
def test_a_client_that_lets_too_much_wait_loses_its_largest_calls(stalled: bool) -> None:
    world = silent(World(limits={"max_buffered_per_connection": 1_000_000}, upstream={"stream_window": 100_000}))
    client = world.client({INITIAL_WINDOW: 1 << 24 if stalled else 0})
    client.engine.set_local_window_size(2**31 - 1)
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    if stalled:
        downstream.wire.stall()  # type: ignore[union-attr]
    server = world.owner("chat-001")
    hoard(world, client, 5, 1_000, server)
    for _ in range(40):
        hoard(world, client, 1, 100_000, server)
    assert count(world, "buffered_per_connection") >= 1
    held = downstream.engine.queued_body_size() + downstream.wire.buffered()  # type: ignore[union-attr]
    assert held <= 1_100_000
    small = [client.exchanges[2 * number + 1] for number in range(5)]
    assert all(each.reset is None for each in small)
    if not stalled:
        assert sum(each.reset == CALM for each in client.exchanges.values()) >= 30
    else:
        downstream.wire.resume()  # type: ignore[union-attr]
        world.run()
        assert all(len(each.body) == 1_000 for each in small)
        assert sum(each.reset == CALM for each in client.exchanges.values()) >= 20


def test_beyond_the_total_the_client_that_holds_most_pays() -> None:
    world = silent(World(limits={"max_buffered": 1_000_000}, upstream={"stream_window": 100_000}))
    server = world.owner("chat-001")
    modest, greedy = world.client({INITIAL_WINDOW: 0}), world.client({INITIAL_WINDOW: 0})
    hoard(world, modest, 2, 100_000, server)
    hoard(world, greedy, 20, 100_000, server)
    assert count(world, "buffered") >= 1
    assert all(each.reset is None for each in modest.exchanges.values())
    assert world.proxy.outbox.backlog.total <= 1_000_000


def test_a_client_whose_uploads_pile_up_at_a_slow_server_loses_the_largest() -> None:
    world = World(limits={"max_buffered_per_connection": 1_000_000}, listener={"stream_window": 100_000})
    for name in "ABC":
        world.server(name, {INITIAL_WINDOW: 0}).hold = True
    world.start()
    modest, greedy = world.client(), world.client()
    mine = [modest.request(message("chat-001", "x" * 60_000), path=CHAT, end=False) for _ in range(4)]
    theirs = [greedy.request(message("chat-001", "x" * 90_000), path=CHAT, end=False) for _ in range(20)]
    world.run()
    assert all(modest.exchanges[sid].status is None for sid in mine)
    assert sum(greedy.exchanges[sid].status == RESOURCE_EXHAUSTED for sid in theirs) >= 9
    assert count(world, "buffered_per_connection") >= 1
    assert world.proxy.outbox.backlog.total <= 1_500_000


def test_what_is_gone_is_not_counted_any_more() -> None:
    world = silent(World(upstream={"stream_window": 100_000}))
    client = world.client({INITIAL_WINDOW: 0})
    hoard(world, client, 3, 100_000, world.owner("chat-001"))
    assert world.proxy.outbox.backlog.total == 300_000
    client.transport.abort()
    world.run()
    assert world.proxy.outbox.backlog.total == 0
    world.assert_clean()


def test_first_messages_of_one_client_that_never_end_do_not_starve_another() -> None:
    world = World(limits={"max_buffered_per_connection": 500_000}, retry={"replay_buffer_total": 1_000_000})
    world.echoing().start()
    endless = frame(b"\x12\x80\x80\x80\x01" + b"x" * 90_000 + bytes(2_100_000))[:90_000]
    clients = [world.client() for _ in range(4)]
    sids = [(client, client.request(endless, end=False)) for client in clients for _ in range(8)]
    world.run()
    refused = [client.exchanges[sid].status == RESOURCE_EXHAUSTED for client, sid in sids]
    assert sum(refused) >= 16
    assert count(world, "request_bytes") == sum(refused)
    assert world.proxy.forwarder.kept <= 1_000_000
    good = world.client()
    sid = good.request(message("chat-001")[:6], end=False)
    world.run()
    good.engine.send_data(sid, message("chat-001")[6:], end_stream=True)
    world.run()
    assert good.exchanges[sid].status == 0


def test_requests_that_wait_for_a_server_are_bounded() -> None:
    world = World(limits={"max_buffered_per_connection": 500_000}, upstream={"max_connections": 1})
    world.silent(settings={ngh2.Setting.MAX_CONCURRENT_STREAMS: 1})
    client = world.start().client()
    sids = [client.request(message("chat-001", "x" * 90_000), path=CHAT, end=False) for _ in range(20)]
    world.run()
    refused = [sid for sid in sids if client.exchanges[sid].status == RESOURCE_EXHAUSTED]
    assert len(refused) >= 14
    assert count(world, "request_bytes") == len(refused)
    assert next(iter(world.proxy.listener.connections)).kept <= 500_000
