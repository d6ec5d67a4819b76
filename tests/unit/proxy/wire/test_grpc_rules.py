"""gRPC's own rules, which no HTTP/2 engine knows: the status, the ends of both directions, metadata, `te`."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import ngh2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.messages import framed, message
from tests.support.peers import PATH, Exchange, Headers, Peer, Server
from tests.support.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

CHAT = b"/chat.ChatService/Chat"
CANCELLED, UNKNOWN, INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED = 1, 2, 3, 7, 8
UNIMPLEMENTED, INTERNAL, UNAVAILABLE, UNAUTHENTICATED = 12, 13, 14, 16


def answering(answer: Callable[[Server, int], None]) -> World:
    """A world whose servers all answer so."""

    def on_request(server: Peer, sid: int, _exchange: Exchange) -> None:
        assert isinstance(server, Server)
        server.begun.add(sid)
        answer(server, sid)

    return World().answering(on_request).start()


def call(world: World, *, path: bytes = CHAT, end: bool = True) -> Exchange:
    client = world.client()
    sid = client.request(message("chat-001"), path=path, end=end)
    world.run()
    return client.exchanges[sid]


# The status, which there is exactly once.


def test_a_response_that_ends_without_a_status_gets_one_and_keeps_its_messages() -> None:
    def answer(server: Server, sid: int) -> None:
        server.begin(sid)
        server.engine.send_data(sid, framed(b"whole"), end_stream=True)

    world = answering(answer)
    seen = call(world)
    assert seen.body == framed(b"whole")
    assert seen.status == UNKNOWN
    assert seen.message == f"{world.owner('chat-001')}: answered HTTP 200 without one grpc-status"
    assert seen.closed
    world.assert_clean()


def test_trailers_without_a_status_get_one_and_keep_the_rest() -> None:
    def answer(server: Server, sid: int) -> None:
        server.begin(sid)
        server.engine.send_trailers(sid, [(b"x-cost", b"7"), (b"grpc-message", b"but no status")])

    seen = call(answering(answer))
    assert seen.status == UNKNOWN
    assert (b"x-cost", b"7") in seen.trailers
    assert [value for name, value in seen.trailers if name == b"grpc-message"] != [b"but no status"]


@pytest.mark.parametrize("second", [b"0", b"5"])
def test_two_statuses_are_replaced_by_one(second: bytes) -> None:
    def answer(server: Server, sid: int) -> None:
        server.begin(sid)
        server.engine.send_trailers(sid, [(b"grpc-status", b"0"), (b"x-a", b"1"), (b"grpc-status", second)])

    seen = call(answering(answer))
    assert [value for name, value in seen.trailers if name == b"grpc-status"] == [b"2"]
    assert (b"x-a", b"1") in seen.trailers


# doc/http-grpc-status-mapping.md
@pytest.mark.parametrize(
    ("http", "status"),
    [
        (400, INTERNAL),
        (401, UNAUTHENTICATED),
        (403, PERMISSION_DENIED),
        (404, UNIMPLEMENTED),
        (429, UNAVAILABLE),
        (431, INTERNAL),
        (500, UNKNOWN),
        (502, UNAVAILABLE),
        (503, UNAVAILABLE),
        (504, UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("body", [b"", b"<html>"])
def test_an_http_status_becomes_the_status_that_grpc_assigns_to_it(http: int, status: int, body: bytes) -> None:
    def answer(server: Server, sid: int) -> None:
        server.engine.send_response(sid, [(b":status", b"%d" % http), (b"server", b"x")], end_stream=not body)
        if body:
            server.engine.send_data(sid, body, end_stream=True)

    world = answering(answer)
    seen = call(world)
    assert seen.header(b":status") == b"200"
    assert seen.status == status
    assert f"answered HTTP {http} without one grpc-status" in seen.message
    assert seen.body == b""
    world.assert_clean()


def test_an_http_error_before_the_end_of_the_request_ends_both_directions() -> None:
    def answer(server: Server, sid: int) -> None:
        server.engine.send_response(sid, [(b":status", b"404")])

    world = World().silent()
    client = world.start().client()
    sid = client.request(message("chat-001"), path=CHAT, end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    answer(server, 1)
    world.run()
    assert client.exchanges[sid].status == UNIMPLEMENTED
    assert client.exchanges[sid].reset == ngh2.ErrorCode.NO_ERROR
    assert server.exchanges[1].reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


# PROTOCOL-HTTP2.md, "Errors"
@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ngh2.ErrorCode.NO_ERROR, INTERNAL),
        (ngh2.ErrorCode.PROTOCOL_ERROR, INTERNAL),
        (ngh2.ErrorCode.INTERNAL_ERROR, INTERNAL),
        (ngh2.ErrorCode.FLOW_CONTROL_ERROR, INTERNAL),
        (ngh2.ErrorCode.FRAME_SIZE_ERROR, INTERNAL),
        (ngh2.ErrorCode.REFUSED_STREAM, UNAVAILABLE),
        (ngh2.ErrorCode.CANCEL, CANCELLED),
        (ngh2.ErrorCode.COMPRESSION_ERROR, INTERNAL),
        (ngh2.ErrorCode.CONNECT_ERROR, INTERNAL),
        (ngh2.ErrorCode.ENHANCE_YOUR_CALM, RESOURCE_EXHAUSTED),
        (ngh2.ErrorCode.INADEQUATE_SECURITY, PERMISSION_DENIED),
    ],
)
def test_a_reset_in_the_middle_of_a_response_becomes_the_status_of_its_code(code: int, status: int) -> None:
    world = World().silent()
    client = world.start().client()
    sid = client.request(message("chat-001"), path=CHAT, end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, framed(b"part"))
    world.run()
    server.engine.reset_stream(1, code)
    world.run()
    seen = client.exchanges[sid]
    assert seen.body == framed(b"part")
    assert seen.status == status
    assert [name for name, _ in seen.trailers].count(b"grpc-status") == 1
    world.assert_clean()


# 1xx.


@pytest.mark.parametrize("times", [1, 5])
def test_informational_responses_neither_commit_the_call_nor_reach_the_client(times: int) -> None:
    def inform(server: Server, sid: int) -> None:
        for _ in range(times):
            server.engine.send_informational_response(sid, [(b":status", b"103"), (b"x-hint", b"1")])
        server.refuse(sid)

    world = answering(inform)
    world.at(world.order("chat-001")[1]).on_request = lambda server, sid, _: server.respond(sid, framed(b"second"))  # type: ignore[attr-defined]
    seen = call(world)
    assert seen.body == framed(b"second")
    assert seen.header(b"x-hint") is None
    world.assert_clean()


def test_an_informational_response_with_end_stream_is_the_servers_error() -> None:
    """RFC 9113, 8.1: END_STREAM on an informational response makes it malformed."""

    def answer(server: Server, sid: int) -> None:
        # The engine would not say it: HPACK ":status: 103" as a literal, flags END_STREAM | END_HEADERS.
        block = b"\x08\x03103"
        server.transport.write(len(block).to_bytes(3, "big") + b"\x01\x05" + sid.to_bytes(4, "big") + block)

    world = answering(answer)
    seen = call(world)
    assert seen.status in (INTERNAL, UNAVAILABLE)
    world.assert_clean()


# The ends of both directions.


def test_the_client_may_end_first_and_the_server_goes_on() -> None:
    world = World().silent()
    client = world.start().client()
    sid = client.request(message("chat-001"), path=CHAT, end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    client.engine.send_data(sid, framed(b"last"), end_stream=True)
    world.run()
    assert server.exchanges[1].ended
    for number in range(5):
        server.engine.send_data(1, framed(b"%d" % number))
        world.run()
    server.finish(1)
    world.run()
    assert client.exchanges[sid].body == b"".join(framed(b"%d" % number) for number in range(5))
    assert client.exchanges[sid].status == 0
    world.assert_clean()


def test_the_server_may_begin_and_end_before_the_client_does() -> None:
    """envoy #30149, grpc-node #2569, connect-es #1751: all of the tail, the trailers, and only then NO_ERROR."""
    world = World(upstream={"stream_window": 10_000}).silent()
    client = world.start().client({ngh2.Setting.INITIAL_WINDOW_SIZE: 1_000})
    client.hold = True
    sid = client.request(message("chat-001"), path=CHAT, end=False)
    world.run()
    server = world.at(world.owner("chat-001"))
    server.begin(1)
    server.engine.send_data(1, b"t" * 8_500)
    server.finish(1, status=9, message=b"enough")
    world.run()
    assert client.exchanges[sid].reset is None
    while client.exchanges[sid].status is None:
        client.take(sid)
        world.run()
    seen = client.exchanges[sid]
    assert len(seen.body) == 8_500
    assert (seen.status, seen.message) == (9, "enough")
    assert seen.reset == ngh2.ErrorCode.NO_ERROR
    assert server.exchanges[1].reset == ngh2.ErrorCode.CANCEL
    world.assert_clean()


@pytest.mark.parametrize("path", [PATH, CHAT])
def test_a_stream_without_any_message_is_routed_and_answered(path: bytes) -> None:
    world = World().echoing().start()
    client = world.client()
    sid = client.request(path=path)
    world.run()
    assert client.exchanges[sid].status == 0
    assert client.exchanges[sid].body == b""
    world.assert_clean()


# Metadata.


def sent(*extra: tuple[bytes, bytes], **replaced: bytes) -> Headers:
    fields = {"method": b"POST", "scheme": b"http", "path": CHAT, "authority": b"t", **replaced}
    return [*((b":" + name.encode(), value) for name, value in fields.items()), *extra]


GRPC = (b"content-type", b"application/grpc")


def outcome(headers: Headers) -> tuple[Exchange, World]:
    world = World().echoing().start()
    client = world.client()
    sid = client.raw_request(headers, message("chat-001"))
    world.run()
    world.assert_clean()
    return client.exchanges[sid], world


def reached(world: World) -> bool:
    return any(world.at(name).exchanges for name in "ABC")


@pytest.mark.parametrize(
    "value", [b"", b"AAE=", b"AAE", b"AA==", b"AA", b"AAEC", b"+/+/", b"AAE=,AAEC", b"AAE,AA", b",", b"AA,"]
)
def test_base64_of_every_form_passes_as_it_came(value: bytes) -> None:
    seen, world = outcome(sent(GRPC, (b"x-trace-bin", value)))
    assert seen.status == 0
    assert (b"x-trace-bin", value) in world.at(world.owner("chat-001")).last.headers


@pytest.mark.parametrize(
    "value",
    [b"A", b"AAEC=", b"A===", b"AA=", b"AA=A", b"AAE-", b"AA_A", b"AA A", b"AAE=, AA", b"\xff\xfe", b"AAE=AAE="],
)
def test_what_is_not_base64_is_refused_before_it_can_end_a_shared_connection(value: bytes) -> None:
    """CVE-2023-32732: a server may answer it by ending the connection, and with it everybody's calls."""
    seen, world = outcome(sent(GRPC, (b"x-trace-bin", value)))
    assert seen.status == INVALID_ARGUMENT
    assert seen.message == "the value of x-trace-bin is not base64"
    assert not reached(world)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4), st.booleans())
def test_what_an_encoder_writes_is_base64(values: list[bytes], padded: bool) -> None:
    encoded = [base64.b64encode(value) for value in values]
    joined = b",".join(encoded if padded else [each.rstrip(b"=") for each in encoded])
    seen, _ = outcome(sent(GRPC, (b"x-bin", joined)))
    assert seen.status == 0


@pytest.mark.parametrize("name", [b"x!y", b"x$", b"~", b"x|y", b"a'b", b"a*b", b"a&b"])
def test_names_that_http_allows_and_grpc_does_not_are_refused(name: bytes) -> None:
    seen, world = outcome(sent(GRPC, (name, b"1")))
    assert seen.status == INVALID_ARGUMENT
    assert "malformed metadata name" in seen.message
    assert not reached(world)


@pytest.mark.parametrize("scheme", [b"ftp", b"HTTP", b"", b"javascript"])
def test_a_scheme_other_than_https_two_is_refused(scheme: bytes) -> None:
    seen, world = outcome(sent(GRPC, scheme=scheme))
    assert seen.status == INVALID_ARGUMENT or seen.reset == ngh2.ErrorCode.PROTOCOL_ERROR
    assert not reached(world)


def test_a_host_that_disagrees_with_the_authority_is_refused() -> None:
    seen, world = outcome(sent(GRPC, (b"host", b"other")))
    assert seen.status == INVALID_ARGUMENT
    assert not reached(world)


@pytest.mark.parametrize("host", [(b"host", b"t")])
def test_a_host_that_agrees_passes(host: tuple[bytes, bytes]) -> None:
    assert outcome(sent(GRPC, host))[0].status == 0


@pytest.mark.parametrize("extra", [[(b"te", b"trailers")], []], ids=["sent", "forgotten"])
def test_the_server_always_sees_te_trailers_once(extra: Headers) -> None:
    seen, world = outcome(sent(GRPC, *extra))
    assert seen.status == 0
    assert world.at(world.owner("chat-001")).last.headers.count((b"te", b"trailers")) == 1


@pytest.mark.parametrize("value", [b"gzip", b"trailers, deflate"])
def test_another_te_is_malformed(value: bytes) -> None:
    """RFC 9113, 8.2.2."""
    seen, world = outcome(sent(GRPC, (b"te", value)))
    assert seen.reset == ngh2.ErrorCode.PROTOCOL_ERROR
    assert not reached(world)


@pytest.mark.parametrize("value", [bytes(range(0x80, 0x100)), "grüß".encode(), b"plain"])
def test_bytes_beyond_ascii_in_values_pass_and_break_nothing(value: bytes) -> None:
    seen, world = outcome(sent(GRPC, (b"x-note", value)))
    assert seen.status == 0
    assert (b"x-note", value) in world.at(world.owner("chat-001")).last.headers


def test_metadata_that_must_not_be_indexed_stays_so() -> None:
    """RFC 7541, 7.1.3: an intermediary must not put on a field what its sender keeps out of the table."""
    world = answering(lambda server, sid: server.respond(sid))
    secret = ngh2.NeverIndexedHeader(b"authorization", b"Bearer 1")
    world.client().request(message("chat-001"), extra=(secret, (b"x-plain", b"1")))
    world.run()
    (exchange,) = world.at(world.owner("chat-001")).exchanges.values()
    passed = {field[0]: type(field) for field in exchange.headers}
    assert passed[b"authorization"] is ngh2.NeverIndexedHeader
    assert passed[b"x-plain"] is not ngh2.NeverIndexedHeader


def test_a_key_in_metadata_may_not_be_longer_than_one_in_a_message() -> None:
    world = World(routes=[{"method": "*", "key": {"metadata": "x-chat-id"}}]).echoing().start()
    client = world.client()
    long = client.request(message(), extra=[(b"x-chat-id", b"k" * 4097)])
    good = client.request(message(), extra=[(b"x-chat-id", b"k" * 4096)])
    world.run()
    assert client.exchanges[long].status == INVALID_ARGUMENT
    assert client.exchanges[good].status == 0


def test_a_key_in_metadata_does_not_compete_with_the_message() -> None:
    """S6 of the catalogue: the route alone says where the key is, so a client cannot name two."""
    world = World().echoing().start()
    client = world.client()
    other = next(f"chat-{n}" for n in range(50) if world.owner(f"chat-{n}") != world.owner("chat-001"))
    client.request(message("chat-001"), extra=[(b"x-chat-id", other.encode())])
    world.run()
    assert world.at(world.owner("chat-001")).exchanges
    assert not world.at(world.owner(other)).exchanges


# Messages.


def test_a_message_larger_than_every_limit_passes_once_it_is_routed() -> None:
    world = World(
        listener={"max_first_message": 10_000},
        retry={"replay_buffer": 1_000},
        limits={"max_buffered_per_connection": 400_000},
    )
    world.echoing().start()
    client = world.client()
    body = message("chat-001", "x" * 2_000_000)
    sid = client.request(body, path=CHAT)
    world.run()
    assert client.exchanges[sid].body == body
    assert client.exchanges[sid].status == 0
    world.assert_clean()


@pytest.mark.parametrize("cut", range(1, 7))
def test_a_length_prefix_may_be_cut_anywhere(cut: int) -> None:
    world = World().echoing().start()
    client = world.client()
    body = message("chat-001")
    sid = client.request(body[:cut], path=CHAT, end=False)
    world.run()
    client.engine.send_data(sid, body[cut:], end_stream=True)
    world.run()
    assert client.exchanges[sid].body == body
