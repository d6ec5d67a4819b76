"""What proxy.http2 relies on in the engine; these fail first when an upgrade changes it."""

from __future__ import annotations

import ngh2
import pytest
from hyperframe.frame import Frame, GoAwayFrame

from proxy.http2 import Engine, Limits, client_engine, code_of, goaway_frame, server_engine

LIMITS = Limits(max_concurrent_streams=100, stream_window=70_000, max_header_list_size=16_384, max_header_count=50)
REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"t")]


def pump(client: Engine, server: Engine) -> tuple[list[ngh2.Event], list[ngh2.Event]]:
    """Exchange bytes until neither has any; returns the events of both."""
    seen: tuple[list[ngh2.Event], list[ngh2.Event]] = ([], [])
    while True:
        to_server, to_client = client.data_to_send(), server.data_to_send()
        if to_server:
            server.receive_data(to_server)
        if to_client:
            client.receive_data(to_client)
        seen[0].extend(client.events())
        seen[1].extend(server.events())
        if not to_server and not to_client:
            return seen


@pytest.fixture
def pair() -> tuple[Engine, Engine]:
    client, server = client_engine(LIMITS), server_engine(LIMITS)
    pump(client, server)
    return client, server


def test_both_sides_announce_their_limits(pair: tuple[Engine, Engine]) -> None:
    client, server = pair
    assert client.remote_settings[ngh2.Setting.MAX_CONCURRENT_STREAMS] == 100
    assert client.remote_settings[ngh2.Setting.INITIAL_WINDOW_SIZE] == 70_000
    assert client.remote_settings[ngh2.Setting.MAX_HEADER_LIST_SIZE] == 16_384
    assert server.remote_settings[ngh2.Setting.ENABLE_PUSH] == 0
    assert client.remote_window_size == server.remote_window_size == 7_000_000


def test_credit_can_be_returned_for_a_stream_that_is_closed(pair: tuple[Engine, Engine]) -> None:
    client, server = pair
    sid = client.send_request(REQUEST)
    client.send_data(sid, b"x" * 60_000)
    pump(client, server)
    client.reset_stream(sid)
    pump(client, server)
    server.acknowledge_received_data(60_000, sid)


def test_a_reset_in_the_same_pass_drops_queued_data(pair: tuple[Engine, Engine]) -> None:
    client, server = pair
    sid = client.send_request(REQUEST, end_stream=True)
    pump(client, server)
    server.send_response(sid, [(b":status", b"200")])
    server.send_data(sid, b"lost")
    server.reset_stream(sid)
    events, _ = pump(client, server)
    assert not any(isinstance(event, ngh2.DataReceived) for event in events)


def test_trailers_wait_for_a_window_even_without_data(pair: tuple[Engine, Engine]) -> None:
    client, server = pair
    client.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: 0})
    sid = client.send_request(REQUEST, end_stream=True)
    pump(client, server)
    server.send_response(sid, [(b":status", b"200")])
    server.send_trailers(sid, [(b"grpc-status", b"0")])
    events, _ = pump(client, server)
    assert not any(isinstance(event, ngh2.TrailersReceived) for event in events)
    assert server.queued_body_size(sid) == 0


@pytest.mark.parametrize(
    "headers", [[(b"x-%d" % n, b"1") for n in range(60)], [(b"x-long", b"y" * 17_000)]], ids=["many", "long"]
)
def test_too_many_or_too_long_headers_end_the_connection(
    pair: tuple[Engine, Engine], headers: list[tuple[bytes, bytes]]
) -> None:
    client, server = pair
    client.send_request([*REQUEST, *headers], end_stream=True)
    with pytest.raises(ngh2.DenialOfServiceError):
        server.receive_data(client.data_to_send())


@pytest.mark.parametrize(
    ("error", "code"), [(ngh2.ConnectionProtocolError("what"), 1), (ngh2.DenialOfServiceError("much"), 11)]
)
def test_the_goaway_made_by_hand_is_one(error: ngh2.NGH2Error, code: int) -> None:
    data = goaway_frame(code_of(error), str(error))
    frame, length = Frame.parse_frame_header(memoryview(data[:9]))
    assert isinstance(frame, GoAwayFrame)
    frame.parse_body(memoryview(data[9:]))
    assert (len(data) - 9, frame.stream_id) == (length, 0)
    assert (frame.last_stream_id, frame.error_code) == (2**31 - 1, code)
    assert str(error).encode() == frame.additional_data
