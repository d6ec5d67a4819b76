"""Every broken rule of HTTP/2 ends in the code that RFC 9113 (or RFC 7541 for HPACK) names for it.

h2spec and h2specd take a bare close for any error; these tests do not. Each row is what a peer sends after good preface
and SETTINGS, and the one verdict that is right. The section that demands it is in the row's name.
"""

from __future__ import annotations

from collections.abc import Callable

import hpack
import pytest

from tests.conformance.memory import no_bugs, replay_client, replay_server, verdict_on
from tests.conformance.table import Row
from tests.support.frames import (
    ACK,
    CONTINUATION,
    DATA,
    EMPTY_SETTINGS,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    HELLO,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    literal_named,
    number,
    setting,
)
from tests.support.messages import message
from tests.support.world import World

PROTOCOL = "GOAWAY PROTOCOL_ERROR"
FRAME_SIZE = "GOAWAY FRAME_SIZE_ERROR"
FLOW_CONTROL = "GOAWAY FLOW_CONTROL_ERROR"
STREAM_CLOSED = "GOAWAY STREAM_CLOSED"
COMPRESSION = "GOAWAY COMPRESSION_ERROR"
MALFORMED = "RST PROTOCOL_ERROR"

GOOD = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/chat.ChatService/PostMessage",
    ":authority": "test",
    "content-type": "application/grpc",
    "te": "trailers",
}
OK = {":status": "200", "content-type": "application/grpc"}

Fields = list[tuple[str, str]]


def block(fields: Fields) -> bytes:
    """A header block of literals, so that none depends on another."""
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(name, value) for name, value in fields])


def settings(code: int, value: int) -> bytes:
    """SETTINGS with one entry."""
    return frame(SETTINGS, 0, 0, setting(code, value))


def opened(stream: int = 1, *, end: bool = False) -> bytes:
    """A good request, or its beginning."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, block(list(GOOD.items())))


def request(*extra: tuple[str, str], without: str = "", end: bool = True, **replaced: str) -> bytes:
    """A request like the good one, but for some fields. `replaced`: pseudo-headers, without their colon."""
    fields = {name: value for name, value in GOOD.items() if name != without}
    fields.update({f":{name}": value for name, value in replaced.items()})
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block([*fields.items(), *extra]))


def response(*extra: tuple[str, str], end: bool = False, **replaced: str) -> bytes:
    """The same for a response."""
    fields = OK | {f":{name}": value for name, value in replaced.items()}
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block([*fields.items(), *extra]))


def trailers(*fields: tuple[str, str], end: bool = True) -> bytes:
    """HEADERS that are not the first."""
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), 1, block(list(fields)))


EITHER_SIDE: dict[str, tuple[bytes, str]] = {
    "4.2 frame longer than MAX_FRAME_SIZE": (frame(DATA, 0, 1, bytes(16_385)), FRAME_SIZE),
    "5.1 RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 101, number(8)), PROTOCOL),
    "5.1 WINDOW_UPDATE on an idle stream": (frame(WINDOW_UPDATE, 0, 101, number(1)), PROTOCOL),
    "5.1 DATA on an idle stream": (frame(DATA, 0, 101, b"x"), PROTOCOL),
    "6.1 DATA on stream 0": (frame(DATA, 0, 0, b"x"), PROTOCOL),
    "6.2 HEADERS on stream 0": (frame(HEADERS, END_HEADERS, 0, block(list(GOOD.items()))), PROTOCOL),
    "6.4 RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, number(8)), PROTOCOL),
    "6.4 RST_STREAM of another length than 4": (frame(RST_STREAM, 0, 1, b"\0\0\0"), FRAME_SIZE),
    "6.5 SETTINGS on a stream": (frame(SETTINGS, 0, 1), PROTOCOL),
    "6.5 SETTINGS ACK with a payload": (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE),
    "6.5 SETTINGS of a length that is no multiple of 6": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE),
    "6.5.2 ENABLE_PUSH other than 0 and 1": (settings(2, 2), PROTOCOL),
    "6.5.2 INITIAL_WINDOW_SIZE above 2^31-1": (settings(4, 2**31), FLOW_CONTROL),
    "6.5.2 MAX_FRAME_SIZE below 16,384": (settings(5, 16_383), PROTOCOL),
    "6.5.2 MAX_FRAME_SIZE above 2^24-1": (settings(5, 2**24), PROTOCOL),
    "6.7 PING on a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL),
    "6.7 PING of another length than 8": (frame(PING, 0, 0, bytes(6)), FRAME_SIZE),
    "6.8 GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "6.9 WINDOW_UPDATE of another length than 4": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE),
    "6.9 WINDOW_UPDATE by 0 on the connection": (frame(WINDOW_UPDATE, 0, 0, number(0)), PROTOCOL),
    "6.9.1 connection window above 2^31-1": (frame(WINDOW_UPDATE, 0, 0, number(2**31 - 1)), FLOW_CONTROL),
    "6.10 CONTINUATION without HEADERS": (frame(CONTINUATION, END_HEADERS, 1, b""), PROTOCOL),
}

DOWNSTREAM: dict[str, tuple[bytes, str]] = {
    "3.4 another frame before SETTINGS": (PREFACE + frame(PING, 0, 0, bytes(8)), PROTOCOL),
    "3.4 bytes that are no preface": (b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", PROTOCOL),
    "4.3 header block that breaks off": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x40\x05ab"), COMPRESSION),
    "4.3 unknown frame inside a header block": (
        frame(HEADERS, END_STREAM, 1, block(list(GOOD.items()))) + frame(0x16, 0, 0),
        PROTOCOL,
    ),
    "5.1 DATA after END_STREAM": (opened() + frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
    "5.1 HEADERS after END_STREAM": (opened() + frame(DATA, END_STREAM, 1) + opened(), STREAM_CLOSED),
    "5.1.1 request on an even stream": (opened(2), PROTOCOL),
    "6.1 padding longer than the frame": (opened() + frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL),
    "6.2 padding longer than the frame": (frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff\x82"), PROTOCOL),
    "6.2 another stream's frame inside a header block": (
        frame(HEADERS, END_STREAM, 1, block(list(GOOD.items()))) + opened(3),
        PROTOCOL,
    ),
    "6.3 PRIORITY of another length than 5": (frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE),
    "6.6 PUSH_PROMISE from a client": (opened() + frame(PUSH_PROMISE, END_HEADERS, 1, number(2)), PROTOCOL),
    "6.9 WINDOW_UPDATE by 0 on a stream": (opened() + frame(WINDOW_UPDATE, 0, 1, number(0)), PROTOCOL),
    "6.9.1 stream window above 2^31-1": (opened() + frame(WINDOW_UPDATE, 0, 1, number(2**31 - 1)), FLOW_CONTROL),
    "6.9.2 INITIAL_WINDOW_SIZE that takes a stream above 2^31-1": (
        opened() + frame(WINDOW_UPDATE, 0, 1, number(2**30)) + settings(4, 2**31 - 1),
        FLOW_CONTROL,
    ),
    "6.10 DATA inside a header block": (
        frame(HEADERS, 0, 1, block(list(GOOD.items()))) + frame(DATA, END_STREAM, 1),
        PROTOCOL,
    ),
    "8.1 trailers without END_STREAM": (opened() + trailers(("a", "b"), end=False), MALFORMED),
    "8.1.1 content-length larger than the body": (request(("content-length", "5")), MALFORMED),
    "8.1.1 content-length smaller than the body": (
        request(("content-length", "1"), end=False) + frame(DATA, END_STREAM, 1, message()),
        MALFORMED,
    ),
    "8.1.1 content-length that is no number": (request(("content-length", "-1")), MALFORMED),
    "8.1.1 content-length twice": (request(("content-length", "0"), ("content-length", "1")), MALFORMED),
    "8.2 upper-case name": (request(("X-Upper", "a")), MALFORMED),
    "8.2.1 empty name": (request(("", "a")), MALFORMED),
    "8.2.1 space in a name": (request(("a b", "a")), MALFORMED),
    "8.2.1 line feed in a value": (request(("a", "b\nc: d")), MALFORMED),
    "8.2.1 NUL in a value": (request(("a", "b\0c")), MALFORMED),
    "8.2.1 NUL in :path": (request(path="/a\0b"), MALFORMED),
    "8.2.2 connection": (request(("connection", "close")), MALFORMED),
    "8.2.2 keep-alive": (request(("keep-alive", "1")), MALFORMED),
    "8.2.2 proxy-connection": (request(("proxy-connection", "close")), MALFORMED),
    "8.2.2 transfer-encoding": (request(("transfer-encoding", "chunked")), MALFORMED),
    "8.2.2 upgrade": (request(("upgrade", "h2c")), MALFORMED),
    "8.2.2 te other than trailers": (request(("te", "gzip"), without="te"), MALFORMED),
    "8.3 unknown pseudo-header": (request(strange="a"), MALFORMED),
    "8.3 a response's pseudo-header": (request(status="200"), MALFORMED),
    "8.3 pseudo-header after others": (request((":scheme", "http"), without=":scheme"), MALFORMED),
    "8.3 pseudo-header in trailers": (opened() + trailers((":path", "/")), MALFORMED),
    "8.3.1 no :method": (request(without=":method"), MALFORMED),
    "8.3.1 no :scheme": (request(without=":scheme"), MALFORMED),
    "8.3.1 no :path": (request(without=":path"), MALFORMED),
    "8.3.1 empty :path": (request(path=""), MALFORMED),
    "8.3.1 two of :path": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block([(":path", "/a.B/C"), *GOOD.items()])),
        MALFORMED,
    ),
    "RFC 7541 2.3.3 index beyond both tables": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff\x00"), COMPRESSION),
    "RFC 7541 2.3.3 literal whose name has an index beyond both tables": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block(list(GOOD.items())) + literal_named(100)),
        COMPRESSION,
    ),
    "RFC 7541 5.2 EOS inside a Huffman string": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x84\xff\xff\xff\xff\x01a"),
        COMPRESSION,
    ),
    "RFC 7541 5.2 Huffman padding with zeros": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x00\x81\x18\x01a"),
        COMPRESSION,
    ),
    "RFC 7541 6.1 index 0": (frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), COMPRESSION),
    "RFC 7541 6.3 table size above the setting": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x3f\xe2\x1f" + block(list(GOOD.items()))),
        COMPRESSION,
    ),
    "RFC 7541 4.2 table size change after the first field": (
        frame(HEADERS, END_HEADERS | END_STREAM, 1, block(list(GOOD.items())) + b"\x20"),
        COMPRESSION,
    ),
}

UPSTREAM: dict[str, tuple[bytes, str]] = {
    "4.3 header block that breaks off": (frame(HEADERS, END_HEADERS, 1, b"\x40\x05ab"), COMPRESSION),
    "RFC 7541 2.3.3 literal whose name has an index beyond both tables": (
        frame(HEADERS, END_HEADERS, 1, block(list(OK.items())) + literal_named(100)),
        COMPRESSION,
    ),
    "5.1 DATA after END_STREAM": (
        response(("grpc-status", "0"), end=False) + frame(DATA, END_STREAM, 1) + frame(DATA, 0, 1, b"x"),
        "none",  # closed on both sides: dropped, as a reset may have crossed it
    ),
    "5.1 response on a stream that we did not open": (
        frame(HEADERS, END_HEADERS, 3, block(list(OK.items()))),
        PROTOCOL,
    ),
    "5.1.1 response on an even stream": (frame(HEADERS, END_HEADERS, 2, block(list(OK.items()))), PROTOCOL),
    "6.5.2 ENABLE_PUSH from a server": (settings(2, 1), PROTOCOL),
    "6.6 PUSH_PROMISE though we forbade it": (
        frame(SETTINGS, ACK, 0) + frame(PUSH_PROMISE, END_HEADERS, 1, number(2) + block(list(GOOD.items()))),
        PROTOCOL,
    ),
    "8.1 DATA before HEADERS": (frame(DATA, 0, 1, b"x"), MALFORMED),
    "8.1 trailers without END_STREAM": (response() + trailers(("a", "b"), end=False), MALFORMED),
    "8.1 1xx with END_STREAM": (response(status="103", end=True), MALFORMED),
    "8.1.1 content-length larger than the body": (
        response(("content-length", "5")) + frame(DATA, END_STREAM, 1, b"abc"),
        MALFORMED,
    ),
    "8.2 upper-case name": (response(("X-Upper", "a")), MALFORMED),
    "8.2.1 line feed in a value": (response(("a", "b\nc")), MALFORMED),
    "8.2.2 connection": (response(("connection", "close")), MALFORMED),
    "8.3 a request's pseudo-header": (response(path="/"), MALFORMED),
    "8.3.2 no :status": (frame(HEADERS, END_HEADERS, 1, block([("content-type", "application/grpc")])), MALFORMED),
    "8.6 101 is not for HTTP/2": (response(status="101"), MALFORMED),
}


def right(found: str, wanted: str) -> bool:
    """RFC 9113 5.4.1: a stream error may be treated as a connection error of the same code."""
    return found in (wanted, wanted.replace("RST", "GOAWAY"))


DOWN = EITHER_SIDE | DOWNSTREAM
UP = EITHER_SIDE | UPSTREAM


@pytest.mark.parametrize("name", DOWN)
def test_a_client_that_breaks_a_rule_gets_its_code(name: str):
    data, wanted = DOWN[name]
    begun = data if name.startswith("3.4") else PREFACE + EMPTY_SETTINGS + data
    found = replay_client(begun)
    assert right(found, wanted), found
    assert replay_client(begun, lambda each: [each[at : at + 1] for at in range(len(each))]) == found


@pytest.mark.parametrize("name", UP)
def test_a_server_that_breaks_a_rule_gets_its_code(name: str):
    data, wanted = UP[name]
    found = replay_server(data)
    assert right(found, wanted), found
    assert replay_server(data, lambda each: [each[at : at + 1] for at in range(len(each))]) == found


def test_a_client_that_sends_more_than_its_window_gets_flow_control_error():
    with no_bugs():
        world = World(listener={"stream_window": 1000}).echoing().start()
        client = world.raw_client(HELLO + opened())
        client.say(frame(DATA, 0, 1, bytes(1001)))
        assert right(verdict_on(client), "RST FLOW_CONTROL_ERROR"), verdict_on(client)


def test_a_stream_above_the_limit_is_refused_and_the_connection_lives():
    with no_bugs():
        world = World(listener={"max_concurrent_streams": 2}).echoing().start()
        client = world.raw_client(PREFACE + EMPTY_SETTINGS + opened(1) + opened(3) + opened(5))
        assert verdict_on(client) == "RST REFUSED_STREAM"
        assert client.connected


def test_the_number_of_rules_is_in_the_table(record: Callable[[Row], None]):
    record(Row("exact error codes, downstream", "RFC 9113", len(DOWN) + 2))
    record(Row("exact error codes, upstream", "RFC 9113", len(UP)))
