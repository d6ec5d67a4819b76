"""The load generator's HTTP/2 against an independent implementation of the other side."""

from __future__ import annotations

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.load.calls import Orders, percentiles
from bench.load.client import ClientConnection, literal
from bench.load.result import Latencies

HEADERS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/s/M"),
    (b":authority", b"a"),
    (b"te", b"trailers"),
)


class Server:
    """h2 with an answer of 3 bytes of body for every request."""

    def __init__(self) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.h2.initiate_connection()
        self.requests: list[tuple[tuple[bytes, bytes], ...]] = []
        self.bodies: list[bytes] = []

    def feed(self, data: bytes) -> bytes:
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self.requests.append(tuple((bytes(n), bytes(v)) for n, v in event.headers))
            elif isinstance(event, DataReceived):
                self.bodies.append(event.data)
            elif isinstance(event, StreamEnded):
                self.h2.send_headers(event.stream_id, [(b":status", b"200")])
                self.h2.send_data(event.stream_id, b"abc")
                self.h2.send_headers(event.stream_id, [(b"grpc-status", b"0")], end_stream=True)
        return self.h2.data_to_send()


def opened() -> tuple[ClientConnection, Server]:
    client, server = ClientConnection(HEADERS), Server()
    client.received(server.feed(client.out), 0.0)
    client.out = b""
    return client, server


def test_calls_are_read_as_meant_the_first_and_the_later_ones():
    client, server = opened()
    for number in range(3):
        extra = literal(b"grpc-timeout", b"%du" % number) + literal(b"x-long", b"v" * 400)
        assert client.received(server.feed(client.call(extra, b"body-%d" % number, 0.0)), 1.0) == 1
    for number, request in enumerate(server.requests):
        assert request == (*HEADERS, (b"grpc-timeout", b"%du" % number), (b"x-long", b"v" * 400))
    assert server.bodies == [b"body-0", b"body-1", b"body-2"]
    assert client.data_bytes == 9


@given(st.integers(1, 60))
def test_answers_may_come_in_pieces_of_any_size(size):
    client, server = opened()
    answers = server.feed(client.call(b"", b"x", 1.0) + client.call(b"", b"y", 2.0))
    ended = sum(client.received(answers[at : at + size], 5.0) for at in range(0, len(answers), size))
    assert ended == 2
    assert client.latencies == [4.0, 3.0]


def test_settings_and_pings_are_acknowledged():
    client, server = opened()
    server.h2.ping(b"12345678")
    client.received(server.h2.data_to_send(), 0.0)
    assert client.out.endswith(b"12345678")
    server.h2.receive_data(client.out)


def test_a_reset_ends_a_call_without_a_response():
    client, server = opened()
    server.h2.receive_data(client.call(b"", b"x", 0.0))
    server.h2.reset_stream(1)
    assert client.received(server.h2.data_to_send(), 0.0) == 1
    assert client.latencies == []
    assert client.resets == 1


def test_a_goaway_is_an_error():
    client, server = opened()
    server.h2.close_connection(error_code=2)
    with pytest.raises(BenchError, match="GOAWAY with error 2"):
        client.received(server.h2.data_to_send(), 0.0)


def test_a_proxy_that_gives_no_credit_is_an_error():
    client, _ = opened()
    for _ in range(65):
        client.call(b"", b"x" * 1000, 0.0)
    with pytest.raises(BenchError, match="window is full"):
        client.call(b"", b"x" * 1000, 0.0)


def test_percentiles():
    assert percentiles([]) is None
    assert percentiles([1.0]) == Latencies(1.0, 1.0, 1.0)
    assert percentiles([float(number) for number in range(1000)]) == Latencies(500.0, 990.0, 999.0)


def test_orders_say_the_same_on_the_command_line():
    said = " ".join(Orders(1, "/s/M", "64x1", 10, 3, 105, rate=0.0, timeouts=True).arguments())
    assert said == "--port 1 --method /s/M --shape 64x1 --calls 10 --chats 3 --reply-size 105 --timeouts"
