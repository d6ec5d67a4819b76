"""Calls of every kind pass through the proxy as they are."""

from __future__ import annotations

import asyncio
import itertools
import os
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer, channel, echo_servers, messages
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.raw_http2 import RESPONSE, RawConnection, raw_client, raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import h2.events

    from tests.support.grpc_server import Context, ReceivedCall

SERVICE = "/any.where.Service/"
MIB = 1 << 20

UNICODE = "žluťoučký kůň: 100 % \u2603 \U0001f680\n\ttab"


@pytest.fixture
async def server() -> AsyncIterator[EchoServer]:
    async with echo_servers("Server-A") as (only,):
        yield only


@pytest.fixture
async def proxy(server: EchoServer, tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with proxy_process(tmp_path, toml(addresses(server))) as running:
        yield running


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(proxy.address) as opened:
        yield opened


async def _requests(*bodies: bytes) -> AsyncIterator[bytes]:
    for body in bodies:
        yield body


def _metadata(found: Any) -> list[tuple[str, str | bytes]]:
    return [(key, value) for key, value in found if not key.startswith("grpc-")]


# Shapes.


async def test_a_unary_call_of_an_unknown_service_passes_untouched(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    body = bytes(range(256))
    assert await client.unary_unary(SERVICE + "Unary")(body) == body
    assert [(call.method, call.requests) for call in server.calls] == [(SERVICE + "Unary", [body])]


async def test_a_server_stream_of_an_unknown_service_passes_untouched(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    body = os.urandom(10_000)
    chunks = [chunk async for chunk in client.unary_stream(SERVICE + "ServerStream")(body)]
    assert chunks == [body[:4096], body[4096:8192], body[8192:]]
    assert server.calls[0].requests == [body]


async def test_a_client_stream_of_an_unknown_service_passes_untouched(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    bodies = [b"one", b"", b"\x00\xff" * 100]
    assert await client.stream_unary(SERVICE + "ClientStream")(_requests(*bodies)) == b"".join(bodies)
    assert server.calls[0].requests == bodies
    assert server.calls[0].half_closed


async def test_a_bidi_stream_of_an_unknown_service_passes_untouched(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    bodies = [b"one", b"", b"\x00\xff" * 100]
    assert [body async for body in client.stream_stream(SERVICE + "Bidi")(_requests(*bodies))] == bodies
    assert server.calls[0].requests == bodies


async def test_the_synchronous_client_makes_calls_of_all_four_kinds(proxy: ProxyProcess) -> None:
    bodies = [b"one", b"two"]

    def calls() -> list[list[bytes]]:
        with grpc.insecure_channel(proxy.address, options=CLIENT_OPTIONS) as opened:
            return [
                [opened.unary_unary(SERVICE + "Unary")(b"one")],
                list(opened.unary_stream(SERVICE + "ServerStream")(b"one")),
                [opened.stream_unary(SERVICE + "ClientStream")(iter(bodies))],
                list(opened.stream_stream(SERVICE + "Bidi")(iter(bodies))),
            ]

    assert await asyncio.to_thread(calls) == [[b"one"], [b"one"], [b"onetwo"], bodies]


@pytest.mark.parametrize("kind", ["client", "bidi"])
async def test_a_stream_without_any_message_reaches_a_server(
    client: grpc.aio.Channel, server: EchoServer, kind: str
) -> None:
    if kind == "client":
        assert await client.stream_unary(SERVICE + "ClientStream")(_requests()) == b""
    else:
        assert [body async for body in client.stream_stream(SERVICE + "Bidi")(_requests())] == []
    assert server.calls[0].half_closed


# Metadata and status.


async def test_request_metadata_arrives_whole_and_in_order(client: grpc.aio.Channel, server: EchoServer) -> None:
    metadata = (
        ("x-chat-id", "chat-1"),
        ("repeated", "one"),
        ("binary-bin", bytes(range(256))),
        ("repeated", "two"),
        ("empty", ""),
        ("repeated-bin", b"\x00"),
        ("repeated-bin", b""),
        ("spaced", "a  b, c=d; e"),
    )
    await client.unary_unary(SERVICE + "Unary")(b"", metadata=metadata)
    async with channel(server.address) as direct:
        await direct.unary_unary(SERVICE + "Unary")(b"", metadata=metadata)
    proxied, unproxied = server.calls
    assert proxied.metadata == unproxied.metadata
    for name in dict(metadata):
        assert proxied.values(name) == [value for key, value in metadata if key == name]


async def test_response_metadata_arrives_whole_initial_and_trailing(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    trailing = (("tail", "one"), ("tail", "two"), ("tail-bin", bytes(range(256))), ("tail-empty", ""))

    async def script(_call: ReceivedCall, context: Context) -> None:
        context.set_trailing_metadata(trailing)
        await context.write(b"answer")

    server.scripts[SERVICE + "Trailing"] = script
    call = client.unary_unary(SERVICE + "Trailing")(b"")
    assert await call == b"answer"
    assert _metadata(await call.initial_metadata()) == [("x-server", "Server-A")]
    assert _metadata(await call.trailing_metadata()) == list(trailing)


async def test_initial_metadata_arrives_before_the_first_message(client: grpc.aio.Channel, server: EchoServer) -> None:
    gate = asyncio.Event()

    async def script(_call: ReceivedCall, context: Context) -> None:
        await gate.wait()
        await context.write(b"late")

    server.scripts[SERVICE + "Late"] = script
    call = client.unary_stream(SERVICE + "Late")(b"")
    assert _metadata(await call.initial_metadata()) == [("x-server", "Server-A")]
    gate.set()
    assert [body async for body in call] == [b"late"]


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_every_error_status_arrives_with_its_unicode_message(
    client: grpc.aio.Channel, server: EchoServer, code: grpc.StatusCode
) -> None:
    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.abort(code, UNICODE, (("why-bin", b"\x00\x01"),))

    server.scripts[SERVICE + "Fails"] = script
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.unary_unary(SERVICE + "Fails")(b"")
    assert raised.value.code() is code
    assert raised.value.details() == UNICODE
    assert ("why-bin", b"\x00\x01") in list(raised.value.trailing_metadata())


async def test_status_details_arrive_untouched(client: grpc.aio.Channel, server: EchoServer) -> None:
    details = os.urandom(3000)

    async def script(_call: ReceivedCall, context: Context) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "see the details")

    server.scripts[SERVICE + "Details"] = script
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.unary_unary(SERVICE + "Details")(b"")
    assert dict(raised.value.trailing_metadata())["grpc-status-details-bin"] == details


async def test_a_trailers_only_response_stays_one(tmp_path: Path) -> None:
    def refuse(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "RequestReceived":
            stream = getattr(event, "stream_id", 0)
            only = [*RESPONSE, (b"grpc-status", b"7"), (b"grpc-message", b"not%20you"), (b"x-own", b"kept")]
            connection.h2.send_headers(stream, only, end_stream=True)

    async with (
        raw_server("Server-A", refuse) as backend,
        proxy_process(tmp_path, toml({"Server-A": backend.address})) as proxy,
        raw_client(proxy.port) as client,
    ):
        stream = await client.over(client.request(SERVICE + "Unary", end=True))
        assert stream.headers == {
            b":status": b"200",
            b"content-type": b"application/grpc",
            b"grpc-status": b"7",
            b"grpc-message": b"not%20you",
            b"x-own": b"kept",
        }
        assert not stream.trailers
        assert not stream.data


async def test_an_error_after_messages_arrives_after_them(client: grpc.aio.Channel, server: EchoServer) -> None:
    async def script(_call: ReceivedCall, context: Context) -> None:
        for number in range(20):
            await context.write(b"%d" % number)
        await context.abort(grpc.StatusCode.DATA_LOSS, "that was all")

    server.scripts[SERVICE + "Breaks"] = script
    call = client.unary_stream(SERVICE + "Breaks")(b"")
    received = [await call.read() for _ in range(20)]
    assert received == [b"%d" % number for number in range(20)]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.DATA_LOSS, "that was all")


# Sizes.

SIZES = [0, 1, 16_383, 16_384, 16_385, 65_535, 65_536, 262_144, MIB + 1, 8 * MIB]


@pytest.mark.parametrize("size", SIZES)
async def test_a_message_of_any_size_passes_in_both_directions(client: grpc.aio.Channel, size: int) -> None:
    body = os.urandom(size)
    assert await client.unary_unary(SERVICE + "Unary")(body) == body


@pytest.mark.parametrize("size", [0, 1, 65_536, 8 * MIB])
async def test_a_streamed_message_of_any_size_passes_in_both_directions(client: grpc.aio.Channel, size: int) -> None:
    bodies = [os.urandom(size) for _ in range(2)]
    received = [body async for body in client.stream_stream(SERVICE + "Bidi")(_requests(*bodies))]
    assert received == bodies


async def test_large_messages_of_several_calls_at_once_are_not_mixed_up(client: grpc.aio.Channel) -> None:
    bodies = [bytes((number,)) * (2 * MIB + number) for number in range(8)]
    unary = client.unary_unary(SERVICE + "Unary")
    assert await asyncio.gather(*(unary(body) for body in bodies)) == bodies


async def test_a_stream_of_many_messages_arrives_complete_and_in_order(client: grpc.aio.Channel) -> None:
    bodies = [b"%d" % number * (number % 50) for number in range(5000)]
    received = [body async for body in client.stream_stream(SERVICE + "Bidi")(_requests(*bodies))]
    assert received == bodies


async def test_a_thousand_rounds_of_ping_pong_stay_in_step(client: grpc.aio.Channel) -> None:
    call = client.stream_stream(SERVICE + "Bidi")()
    for number in range(1000):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


# Ends of the two directions.


async def test_a_server_that_answers_early_ends_the_call_with_its_whole_response(
    client: grpc.aio.Channel, server: EchoServer
) -> None:
    answer = [os.urandom(256 * 1024) for _ in range(8)]

    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.read()
        for body in answer:
            await context.write(body)
        # It returns without reading to the end.

    server.scripts[SERVICE + "Early"] = script
    call = client.stream_stream(SERVICE + "Early")(metadata=(("x-chat-id", "chat"),))
    await call.write(b"first of many")
    received = []
    while (body := await call.read()) is not grpc.aio.EOF:
        received.append(body)
    assert received == answer
    assert await call.code() is grpc.StatusCode.OK
    assert call.done()


async def test_a_server_that_answers_early_while_the_client_still_sends_ends_the_call_in_good_order(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.read()
        await context.write(b"enough")

    server.scripts[SERVICE + "Enough"] = script

    def call() -> tuple[list[bytes], object, bytes]:
        # Not grpc.aio: it takes a failed write for the end of the call, whatever status is on its way.
        with grpc.insecure_channel(proxy.address, options=CLIENT_OPTIONS) as opened:
            running = opened.stream_stream(SERVICE + "Enough")(itertools.repeat(bytes(65_536)))
            return list(running), running.code(), opened.unary_unary(SERVICE + "Unary")(b"next")

    assert await asyncio.to_thread(call) == ([b"enough"], grpc.StatusCode.OK, b"next")


async def test_after_an_early_answer_the_client_is_told_to_stop_only_when_it_has_everything(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    body = os.urandom(300_000)

    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.write(body)

    server.scripts[SERVICE + "Early"] = script
    async with raw_client(proxy.port) as client:  # its windows are 65,535 bytes: the tail has to wait for credit
        stream = client.request(SERVICE + "Early")
        state = client.streams[stream]
        await client.until(lambda: state.reset is not None, "RST_STREAM")
        assert bytes(state.data[5:]) == body
        assert state.status == b"0"
        assert state.ended
        assert state.reset == 0, "NO_ERROR (RFC 9113, 8.1)"


async def test_a_half_closed_client_still_gets_messages(client: grpc.aio.Channel, server: EchoServer) -> None:
    gate = asyncio.Event()

    async def script(call: ReceivedCall, context: Context) -> None:
        call.requests += [body async for body in messages(context)]
        call.half_closed = True
        await gate.wait()
        for body in call.requests:
            await context.write(body)

    server.scripts[SERVICE + "Later"] = script
    call = client.stream_stream(SERVICE + "Later")()
    await call.write(b"question")
    await call.done_writing()
    await eventually(lambda: server.calls and server.calls[0].half_closed, "the half-close at the server")
    gate.set()
    assert await call.read() == b"question"
    assert await call.read() is grpc.aio.EOF


# What the wire may look like.


async def test_padded_data_passes_without_its_padding_and_gets_its_credit_back(
    proxy: ProxyProcess, server: EchoServer
) -> None:
    rounds = 3000  # with the padding 783,000 bytes, three times the stream's window
    async with raw_client(proxy.port) as client:
        stream = client.request(SERVICE + "ClientStream")
        for _ in range(rounds):
            await client.until(lambda: client.h2.local_flow_control_window(stream) > 300, "credit, also for padding")
            client.h2.send_data(stream, b"\x00\x00\x00\x00\x01x", pad_length=250)
            client.flush()
        client.send(stream, b"", end=True)
        state = await client.over(stream)
        assert state.status == b"0"
        assert bytes(state.data[5:]) == b"x" * rounds
    assert server.calls[0].requests == [b"x"] * rounds


async def test_request_headers_in_continuation_frames_pass(proxy: ProxyProcess, server: EchoServer) -> None:
    async with raw_client(proxy.port) as client:
        client.h2.max_outbound_frame_size = 1024
        value = b"v" * 5000
        stream = client.request(SERVICE + "Unary", (b"long", value))
        client.send(stream, b"\x00\x00\x00\x00\x01x", end=True)
        assert (await client.over(stream)).status == b"0"
    assert server.calls[0].values("long") == [value.decode()]


async def test_long_response_metadata_passes(client: grpc.aio.Channel, server: EchoServer) -> None:
    value = "v" * 6000

    async def script(_call: ReceivedCall, context: Context) -> None:
        context.set_trailing_metadata((("long", value),))

    server.scripts[SERVICE + "Long"] = script
    call = client.stream_stream(SERVICE + "Long")(_requests())
    assert [body async for body in call] == []
    assert dict(await call.trailing_metadata())["long"] == value


async def test_request_trailers_are_dropped_and_the_call_ends_well(proxy: ProxyProcess, server: EchoServer) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request(SERVICE + "ClientStream")
        client.send(stream, b"\x00\x00\x00\x00\x01x")
        client.h2.send_headers(stream, [(b"x-request-trailer", b"1")], end_stream=True)
        client.flush()
        state = await client.over(stream)
        assert state.status == b"0"
    assert server.calls[0].requests == [b"x"]
