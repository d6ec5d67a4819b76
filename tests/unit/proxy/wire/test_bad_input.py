"""What clients get wrong, and what each mistake is answered with."""

from __future__ import annotations

import gzip
import zlib

import ngh2
import pytest

from tests.support.messages import framed, message, varint
from tests.support.peers import PATH, Headers
from tests.support.world import World

INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 3, 8, 12, 13


@pytest.fixture
def world() -> World:
    return World().echoing().start()


def saw_nothing(world: World) -> bool:
    return all(not world.at(name).exchanges for name in "ABC")


def headers(*extra: tuple[bytes, bytes], **replaced: bytes) -> Headers:
    base = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": PATH,
        b":authority": b"t",
        b"content-type": b"application/grpc",
    }
    for name, value in replaced.items():
        base[{"method": b":method", "path": b":path", "content_type": b"content-type"}[name]] = value
    return [*base.items(), *extra]


# The port.


@pytest.mark.parametrize("request_line", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /a HTTP/1.0\r\n\r\n", b"G"])
def test_http1_is_answered_in_text_and_closed(world: World, request_line: bytes) -> None:
    client = world.raw_client(request_line)
    head, text = client.raw.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 505 ")
    assert text == b"This port speaks gRPC over HTTP/2 only.\n"
    assert b"content-length: %d\r\n" % len(text) in head
    assert not client.connected


@pytest.mark.parametrize(
    "data",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01", b"\x00" * 64, b"\xff\xff", b"hello\n", b" GET"],
    ids=["tls", "zeros", "ones", "text", "space"],
)
def test_bytes_that_are_not_http2_get_a_goaway_and_are_closed(world: World, data: bytes) -> None:
    client = world.raw_client(data)
    assert b"\x07\x00\x00\x00\x00\x00\x7f\xff\xff\xff\x00\x00\x00\x01" in client.raw  # GOAWAY(PROTOCOL_ERROR)
    assert not client.connected


def test_the_clock_of_the_passes_does_not_stand_still_after_bytes_that_are_not_http2(world: World) -> None:
    """Or a call that comes minutes later would count as begun now."""
    world.raw_client(b"GET / HTTP/1.1\r\n\r\n")
    assert not world.proxy.forwarder.clock.fresh


def test_a_broken_client_harms_no_other(world: World) -> None:
    good = world.client()
    sid = good.request(message(), end=False)
    world.run()
    world.raw_client(b"nonsense")
    good.engine.end_stream(sid)
    world.run()
    assert good.exchanges[sid].status == 0


# The request.


@pytest.mark.parametrize("value", [b"application/json", b"text/html", b"application/grpcx", b"application/grp", b""])
def test_a_content_type_other_than_grpc_is_answered_with_415(world: World, value: bytes) -> None:
    client = world.client()
    sid = client.raw_request(headers(content_type=value), message())
    world.run()
    assert client.exchanges[sid].header(b":status") == b"415"
    assert client.exchanges[sid].ended
    assert saw_nothing(world)
    world.assert_clean()


@pytest.mark.parametrize("value", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=x"])
def test_the_content_types_of_grpc_pass(world: World, value: bytes) -> None:
    client = world.client()
    sid = client.raw_request(headers(content_type=value), message())
    world.run()
    assert client.exchanges[sid].status == 0


def test_a_method_other_than_post_is_answered_with_405(world: World) -> None:
    client = world.client()
    sid = client.raw_request(headers(method=b"GET"))
    world.run()
    assert client.exchanges[sid].header(b":status") == b"405"
    assert saw_nothing(world)


def test_a_rejected_request_that_goes_on_sending_is_told_to_stop(world: World) -> None:
    client = world.client()
    sid = client.raw_request(headers(content_type=b"text/plain"), b"x" * 10_000, end=False)
    world.run()
    assert client.exchanges[sid].reset == ngh2.ErrorCode.NO_ERROR
    client.engine.ping()
    world.run()
    world.assert_clean()


# The first message.

LONG = b"k" * 4097
BAD_KEYS = {
    "a number": framed(b"\x08\x05"),
    "32 bits": framed(b"\x0d\x00\x00\x00\x00"),
    "64 bits": framed(b"\x09" + bytes(8)),
    "longer than 4 KiB": framed(b"\x0a" + varint(len(LONG)) + LONG),
    "not protobuf": framed(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"),
    "field number zero": framed(b"\x02\x01x"),
    "length beyond the message": framed(b"\x0a\x20abc"),
}


@pytest.mark.parametrize("body", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_key_field_that_cannot_be_a_key_is_the_clients_fault(world: World, body: bytes) -> None:
    client = world.client()
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].status == INVALID_ARGUMENT
    assert client.exchanges[sid].message
    assert saw_nothing(world)
    world.assert_clean()


MISSING = {
    "no field": framed(b"\x12\x02hi"),
    "empty field": framed(b"\x0a\x00\x12\x02hi"),
    "empty message": framed(b""),
    "no message": b"",
}


@pytest.mark.parametrize("body", MISSING.values(), ids=MISSING)
def test_a_missing_key_goes_to_the_least_loaded_server(world: World, body: bytes) -> None:
    client = world.client()
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].status == 0
    assert client.exchanges[sid].body == body


@pytest.mark.parametrize("body", MISSING.values(), ids=MISSING)
def test_a_missing_key_is_rejected_where_the_route_says_so(body: bytes) -> None:
    routes = [{"method": PATH.decode(), "key": {"field": "1"}, "missing_key": "reject"}]
    world = World(routes=routes).echoing().start()
    client = world.client()
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].status == INVALID_ARGUMENT
    assert saw_nothing(world)
    world.assert_clean()


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7, 10, len(message()) - 1])
def test_a_truncated_first_message_is_answered_with_internal_and_not_forwarded(world: World, size: int) -> None:
    client = world.client()
    sid = client.request(message()[:size])
    world.run()
    assert client.exchanges[sid].status == INTERNAL
    assert "truncated" in client.exchanges[sid].message
    assert saw_nothing(world)
    world.assert_clean()


def test_a_huge_declared_length_reserves_nothing_and_routes_by_the_key(world: World) -> None:
    client = world.client()
    client.request(b"\x00\x7f\xff\xff\xff\x0a\x08chat-001", end=False)
    world.run()
    assert world.at(world.owner("chat-001")).exchanges


def test_a_declared_length_that_no_protobuf_message_has_is_refused_before_it_comes(world: World) -> None:
    client = world.client()
    sid = client.request(b"\x00\xff\xff\xff\xff", end=False)
    world.run()
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    world.assert_clean()


def test_a_first_message_too_large_to_search_is_refused() -> None:
    world = World(listener={"max_first_message": 10_000}).echoing().start()
    client = world.client()
    sid = client.request(framed(b"\x12" + varint(20_000) + b"x" * 20_000 + b"\x0a\x01k"))
    world.run()
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    assert saw_nothing(world)
    world.assert_clean()


def test_the_key_may_be_the_last_field_of_a_message_larger_than_the_window() -> None:
    world = World(listener={"stream_window": 65_535}).echoing().start()
    client = world.client()
    body = framed(b"\x12" + varint(1_000_000) + b"x" * 1_000_000 + b"\x0a\x08chat-009")
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].body == body
    assert world.at(world.owner("chat-009")).exchanges
    world.assert_clean()


@pytest.mark.parametrize(("encoding", "compress"), [(b"gzip", gzip.compress), (b"deflate", zlib.compress)])
def test_a_compressed_message_is_routed_by_its_key_and_forwarded_as_it_came(
    world: World, encoding: bytes, compress
) -> None:  # type: ignore[no-untyped-def]
    client = world.client()
    body = framed(compress(message("chat-011")[5:]), flag=1)
    sid = client.request(body, extra=[(b"grpc-encoding", encoding)])
    world.run()
    assert client.exchanges[sid].body == body
    assert world.at(world.owner("chat-011")).exchanges


def test_an_encoding_that_cannot_be_read_is_refused_with_those_that_can(world: World) -> None:
    client = world.client()
    sid = client.request(framed(b"\x00\x01", flag=1), extra=[(b"grpc-encoding", b"snappy")])
    world.run()
    assert client.exchanges[sid].status == UNIMPLEMENTED
    assert client.exchanges[sid].header(b"grpc-accept-encoding") == b"identity,deflate,gzip"


@pytest.mark.parametrize("body", [framed(b"xx", flag=1), framed(b"xx", flag=2), framed(b"xx", flag=255)])
def test_a_bad_compressed_flag_is_answered_with_internal(world: World, body: bytes) -> None:
    client = world.client()
    sid = client.request(body)
    world.run()
    assert client.exchanges[sid].status == INTERNAL
    assert saw_nothing(world)


def test_a_compression_bomb_is_refused(world: World) -> None:
    client = world.client()
    bomb = gzip.compress(b"\x12" + varint(50_000_000) + bytes(50_000_000))
    sid = client.request(framed(bomb, flag=1), extra=[(b"grpc-encoding", b"gzip")])
    world.run()
    assert client.exchanges[sid].status == RESOURCE_EXHAUSTED
    assert saw_nothing(world)
    world.assert_clean()
