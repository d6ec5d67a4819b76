"""A call from its first header to its last, with real engines and bytes cut anywhere."""

from __future__ import annotations

import random

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import framed, message
from tests.support.peers import Exchange, Peer, Server, echo
from tests.support.world import World, endpoints

CUTS = {
    "whole": lambda data: (data,),
    "byte by byte": lambda data: (data[i : i + 1] for i in range(len(data))),
    "in tens": lambda data: (data[i : i + 10] for i in range(0, len(data), 10)),
}


@pytest.fixture(params=CUTS)
def world(request: pytest.FixtureRequest) -> World:
    return World(cut=CUTS[request.param]).echoing().start()


def test_a_unary_call_reaches_the_owner_of_its_chat_and_its_answer_the_client(world: World) -> None:
    client = world.client()
    for number in range(20):
        chat = f"chat-{number:03}"
        sid = client.request(message(chat))
        world.run()
        answer = client.exchanges[sid]
        assert answer.body == message(chat)
        assert answer.status == 0
        assert answer.closed
        assert world.at(world.owner(chat)).last.body == message(chat)
    world.assert_clean()


def test_the_same_chat_stays_with_its_server_whichever_connection_it_comes_by(world: World) -> None:
    for _ in range(5):
        client = world.client()
        client.request(message("chat-007"))
        world.run()
    owner = world.owner("chat-007")
    assert len(world.at(owner).exchanges) == 5
    assert all(not world.at(other).exchanges for other in set("ABC") - {owner})


def test_many_calls_on_one_connection_get_each_its_own_answer(world: World) -> None:
    client = world.client()
    bodies = {
        client.request(message(f"chat-{n:03}", f"text {n}")): message(f"chat-{n:03}", f"text {n}") for n in range(60)
    }
    world.run()
    assert {sid: client.exchanges[sid].body for sid in bodies} == bodies
    world.assert_clean()


def test_headers_and_trailers_pass_both_ways() -> None:
    world = World()

    def answer(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.engine.send_response(
            sid,
            [
                (b":status", b"200"),
                (b"content-type", b"application/grpc"),
                (b"x-from-server", b"1"),
                (b"b-bin", b"AAE"),
            ],
        )
        server.engine.send_data(sid, framed(b"ok"))
        server.engine.send_trailers(sid, [(b"grpc-status", b"5"), (b"grpc-message", b"no %C3%A4"), (b"x-end", b"2")])

    world.answering(answer)
    client = world.start().client()
    sid = client.request(
        message(), extra=[(b"x-from-client", b"3"), (b"c-bin", b"AAE"), (b"x-twice", b"a"), (b"x-twice", b"b")]
    )
    world.run()
    sent = world.at(world.owner("chat-000")).last.headers
    assert [value for name, value in sent if name == b"x-twice"] == [b"a", b"b"]
    assert (b"x-from-client", b"3") in sent
    assert (b"c-bin", b"AAE") in sent
    assert (b"te", b"trailers") in sent
    assert (b":authority", b"chat.test") in sent
    answered = client.exchanges[sid]
    assert answered.header(b"x-from-server") == b"1"
    assert answered.header(b"b-bin") == b"AAE"
    assert answered.trailers == [(b"grpc-status", b"5"), (b"grpc-message", b"no %C3%A4"), (b"x-end", b"2")]


def test_metadata_that_only_the_proxy_may_write_is_dropped(world: World) -> None:
    client = world.client()
    client.request(message(), extra=[(b"x-districhat-previous-owner", b"evil"), (b"x-districhatter", b"fine")])
    world.run()
    names = [name for name, _ in world.at(world.owner("chat-000")).last.headers]
    assert b"x-districhat-previous-owner" not in names
    assert b"x-districhatter" in names


def test_a_trailers_only_response_passes(world: World) -> None:
    def answer(server: Peer, sid: int, _exchange: Exchange) -> None:
        server.engine.send_response(sid, [(b":status", b"200"), (b"grpc-status", b"7")], end_stream=True)

    for name in "ABC":
        world.at(name).on_request = answer
    client = world.client()
    sid = client.request(message())
    world.run()
    assert client.exchanges[sid].headers == [(b":status", b"200"), (b"grpc-status", b"7")]
    assert client.exchanges[sid].closed
    world.assert_clean()


def test_an_informational_response_is_not_the_response(world: World) -> None:
    def answer(server: Peer, sid: int, exchange: Exchange) -> None:
        server.engine.send_informational_response(sid, [(b":status", b"103")])
        echo(server, sid, exchange)

    for name in "ABC":
        world.at(name).on_request = answer
    client = world.client()
    sid = client.request(message())
    world.run()
    assert client.exchanges[sid].status == 0


def test_messages_of_both_directions_alternate_on_one_stream(world: World) -> None:
    client = world.client()
    sid = client.request(message("chat-003"), end=False)
    world.run()
    server = world.at(world.owner("chat-003"))
    server.begin(1)
    for number in range(30):
        client.engine.send_data(sid, framed(b"ping %d" % number))
        world.run()
        server.engine.send_data(1, framed(b"pong %d" % number))
        world.run()
    client.engine.end_stream(sid)
    world.run()
    assert server.exchanges[1].ended
    assert not client.exchanges[sid].ended  # half-closed: the server may go on
    server.finish(1)
    world.run()
    assert server.exchanges[1].body == message("chat-003") + b"".join(framed(b"ping %d" % n) for n in range(30))
    assert client.exchanges[sid].body == b"".join(framed(b"pong %d" % n) for n in range(30))
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_request_trailers_are_dropped_and_the_end_passed_on(world: World) -> None:
    client = world.client()
    sid = client.request(message(), end=False)
    client.engine.send_trailers(sid, [(b"x-late", b"1")])
    world.run()
    assert world.at(world.owner("chat-000")).last.ended
    assert world.at(world.owner("chat-000")).last.trailers == []
    assert client.exchanges[sid].status == 0


def test_a_padded_frame_costs_no_window() -> None:
    """Padding counts against flow control (RFC 9113, 6.1), so it must be credited like data."""
    world = World(listener={"stream_window": 65_535}).echoing().start()
    client = world.client()
    sid = client.request(end=False)
    world.run()
    piece = message("chat-001")[:1]
    for _ in range(600):  # 600 x 257 bytes is more than two windows
        world.run()
        padded = bytes([255]) + piece + bytes(255)
        header = len(padded).to_bytes(3, "big") + b"\x00\x08" + sid.to_bytes(4, "big")
        client.transport.write(header + padded)
        piece = framed(b"x")[:1]
    world.run()
    downstream = next(iter(world.proxy.listener.connections))
    assert downstream.engine.stream_local_window_size(sid) > 30_000


def test_the_response_ends_before_the_request_and_the_client_gets_all_of_it(world: World) -> None:
    """RFC 9113, 8.1: the whole response first, then RST_STREAM(NO_ERROR) (envoy #30149, grpc-node #2569)."""
    client = world.client()
    sid = client.request(message("chat-003"), end=False)
    world.run()
    server = world.at(world.owner("chat-003"))
    server.begin(1)
    server.engine.send_data(1, framed(b"x" * 40_000))
    server.finish(1, status=8, message=b"enough")
    world.run()
    answer = client.exchanges[sid]
    assert len(answer.body) == 40_005
    assert answer.status == 8
    assert answer.reset == ngh2.ErrorCode.NO_ERROR
    assert server.exchanges[1].reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


def test_the_tail_of_an_early_response_waits_for_a_slow_client() -> None:
    world = World().echoing().start()
    client = world.client({ngh2.Setting.INITIAL_WINDOW_SIZE: 1000})
    client.hold = True
    sid = client.request(message("chat-003"), end=False)
    world.run()
    server = world.at(world.owner("chat-003"))
    server.begin(1)
    server.engine.send_data(1, b"y" * 2500)
    server.finish(1, status=3)
    world.run()
    answer = client.exchanges[sid]
    assert len(answer.body) == 1000
    assert answer.reset is None
    while not answer.ended:
        client.take(sid)
        world.run()
    assert (len(answer.body), answer.status, answer.reset) == (2500, 3, ngh2.ErrorCode.NO_ERROR)
    world.assert_clean()


def test_a_client_that_cancels_ends_the_call_at_the_server(world: World) -> None:
    client = world.client()
    sid = client.request(message("chat-003"), end=False)
    world.run()
    client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
    world.run()
    assert world.at(world.owner("chat-003")).last.reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


def test_a_client_that_vanishes_ends_its_calls_at_the_servers(world: World) -> None:
    client = world.client()
    for number in range(10):
        client.request(message(f"chat-{number:03}"), end=False)
    world.run()
    client.transport.abort()
    world.run()
    seen = [exchange.reset for name in "ABC" for exchange in world.at(name).exchanges.values()]
    assert seen == [ngh2.ErrorCode.CANCEL] * 10
    world.assert_clean()


def test_a_cancel_before_the_first_message_reaches_no_server(world: World) -> None:
    client = world.client()
    sid = client.request(message()[:7], end=False)
    world.run()
    client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
    world.run()
    assert all(not world.at(name).exchanges for name in "ABC")
    world.assert_clean()


def test_a_reset_in_the_same_bytes_as_its_request_harms_nobody() -> None:
    world = World().echoing().start()
    client = world.client()
    for number in range(50):
        body = message(f"chat-{number:03}") if number % 2 else b"\x00\x00\x00\x00\x02\xff\xff"
        sid = client.request(body)
        client.flush()
        client.engine.reset_stream(sid, ngh2.ErrorCode.CANCEL)
    world.run()
    sid = client.request(message())
    world.run()
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_a_server_that_resets_before_answering_becomes_a_status(world: World) -> None:
    client = world.client()
    sid = client.request(message("chat-003"), end=False, path=b"/chat.ChatService/Chat")
    world.run()
    owner = world.owner("chat-003")
    world.at(owner).engine.reset_stream(1, ngh2.ErrorCode.ENHANCE_YOUR_CALM)
    world.run()
    answer = client.exchanges[sid]
    assert answer.status == 8  # RESOURCE_EXHAUSTED, PROTOCOL-HTTP2.md "Errors"
    assert answer.message == f"{owner}: reset the call (ENHANCE_YOUR_CALM)"
    world.assert_clean()


def test_a_server_that_resets_in_the_middle_ends_the_response_with_a_status(world: World) -> None:
    client = world.client()
    sid = client.request(message("chat-003"))
    for name in "ABC":
        world.at(name).on_request = None
    world.run()
    server = world.at(world.owner("chat-003"))
    server.begin(1)
    server.engine.send_data(1, framed(b"part"))
    world.run()
    server.engine.reset_stream(1, ngh2.ErrorCode.INTERNAL_ERROR)
    world.run()
    answer = client.exchanges[sid]
    assert answer.body == framed(b"part")
    assert answer.status == 13
    assert answer.closed
    world.assert_clean()


def test_a_ping_is_answered(world: World) -> None:
    client = world.client()
    client.engine.ping(b"abcdefgh")
    world.run()
    assert b"abcdefgh" in client.raw


@given(pieces=st.lists(st.integers(1, 300), min_size=1, max_size=40), seed=st.integers(0, 2**32))
def test_any_cut_of_any_bytes_gives_the_same_answer(pieces: list[int], seed: int) -> None:
    chance = random.Random(seed)

    def cut(data: bytes) -> list[bytes]:
        out = []
        while data:
            size = chance.choice(pieces)
            out.append(data[:size])
            data = data[size:]
        return out

    world = World(cut=cut).echoing().start()
    client = world.client()
    bodies = {client.request(message(f"c{n}", "t" * n)): message(f"c{n}", "t" * n) for n in range(5)}
    world.run()
    assert {sid: client.exchanges[sid].body for sid in bodies} == bodies
    assert all(client.exchanges[sid].status == 0 for sid in bodies)
    world.assert_clean()


# Routes.


def test_a_route_by_metadata_does_not_wait_for_a_message() -> None:
    world = World(routes=[{"method": "/a.B/*", "key": {"metadata": "x-chat-id"}}]).echoing().start()
    client = world.client()
    client.request(path=b"/a.B/C", end=False, extra=[(b"x-chat-id", b"chat-004")])
    world.run()
    assert world.at(world.owner("chat-004")).exchanges


def test_a_route_by_endpoint_goes_to_the_server_it_names(world: World) -> None:
    client = world.client()
    for name in "ABC":
        client.request(framed(b"\x0a\x01" + name.encode()), path=b"/chat.ChatService/GetCacheStats")
        world.run()
        assert len(world.at(name).exchanges) == 1


@pytest.mark.parametrize(
    "body",
    [framed(b""), framed(b"\x0a\x00"), framed(b"\x0a\x01Z"), b""],
    ids=["no field", "empty", "unknown", "no message"],
)
def test_a_route_by_endpoint_that_names_none_goes_to_any(world: World, body: bytes) -> None:
    client = world.client()
    sid = client.request(body, path=b"/chat.ChatService/GetCacheStats")
    world.run()
    assert client.exchanges[sid].status == 0


def test_a_named_endpoint_that_is_down_is_not_replaced_by_another() -> None:
    world = World().echoing("A", "C").start()
    client = world.client()
    sid = client.request(framed(b"\x0a\x01B"), path=b"/chat.ChatService/GetCacheStats")
    world.run()
    assert client.exchanges[sid].status == 14
    assert "B: cannot connect: connection refused" in client.exchanges[sid].message


def test_calls_without_a_key_spread_over_the_least_loaded(world: World) -> None:
    for name in "ABC":
        world.at(name).on_request = None
    client = world.client()
    for _ in range(9):
        client.request(framed(b""))
        world.run()
    assert [len(world.at(name).exchanges) for name in "ABC"] == [3, 3, 3]


def test_the_smallest_configuration_is_the_endpoints_alone() -> None:
    world = World(endpoints=endpoints("A")).echoing().start()
    client = world.client()
    sid = client.request(message())
    world.run()
    assert client.exchanges[sid].status == 0
    assert isinstance(world.at("A"), Server)
