"""The end of a call travels: cancellations and deadlines to the server, aborts to the client, and nothing leaks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import EchoServer, channel, echo_servers, server_of
from tests.support.messages import framed, keyed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.raw_http2 import RESPONSE, RawConnection, raw_client, raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import h2.events

    from tests.support.grpc_server import Context, ReceivedCall

HANG = "/any.Service/Hang"
TALK = "/any.Service/Talk"
ENDLESS = "/any.Service/Endless"

KINDS = ("unary", "server_stream", "client_stream", "bidi")


async def _open(client: grpc.aio.Channel, kind: str, method: str, seconds: float | None = None) -> Any:
    """A call that has sent one message; a streaming client sends no more, and does not end."""
    if kind == "unary":
        return client.unary_unary(method)(b"request", timeout=seconds)
    if kind == "server_stream":
        return client.unary_stream(method)(b"request", timeout=seconds)
    make = client.stream_unary if kind == "client_stream" else client.stream_stream
    call = make(method)(timeout=seconds)
    await call.write(b"request")
    return call


async def _read_into(call: ReceivedCall, context: Context) -> None:
    message: Any = await context.read()
    if message is not grpc.aio.EOF:
        call.requests.append(message)


async def _hang(call: ReceivedCall, context: Context) -> None:
    """Reads a message and never answers."""
    await _read_into(call, context)
    await asyncio.Event().wait()


async def _talk(call: ReceivedCall, context: Context) -> None:
    """Answers the first message, and then never ends."""
    await _read_into(call, context)
    await context.write(call.requests[0])
    await asyncio.Event().wait()


async def _endless(_call: ReceivedCall, context: Context) -> None:
    while True:
        await context.write(bytes(10_000))


@pytest.fixture
async def servers() -> AsyncIterator[tuple[EchoServer, ...]]:
    async with echo_servers("Server-A", "Server-B") as both:
        for server in both:
            server.scripts.update({HANG: _hang, TALK: _talk, ENDLESS: _endless})
        yield both


@pytest.fixture
async def proxy(servers: tuple[EchoServer, ...], tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with proxy_process(tmp_path, toml(addresses(*servers))) as running:
        yield running


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(proxy.address) as opened:
        yield opened


async def _at_a_server(servers: tuple[EchoServer, ...]) -> ReceivedCall:
    """The newest call, once its server has read the first message."""
    return await eventually(
        lambda: next((call for server in servers for call in server.calls[-1:] if call.requests), None),
        "the call at its server",
    )


async def _over_everywhere(servers: tuple[EchoServer, ...], proxy: ProxyProcess) -> None:
    """No call runs at any server, and the proxy counts none: then the least loaded server is the first by id."""
    await eventually(lambda: not any(server.active for server in servers), "the end of every call at the servers")
    async with channel(proxy.address) as client:
        for _ in range(3):
            call = client.unary_unary("/any.Service/Unary")(b"")
            await call
            assert await server_of(call) == "Server-A"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancel_before_the_response_reaches_the_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], proxy: ProxyProcess, kind: str
) -> None:
    call = await _open(client, kind, HANG)
    received = await _at_a_server(servers)
    call.cancel()
    await eventually(received.finished.is_set, "the end at the server")
    assert received.cancelled
    assert await call.code() is grpc.StatusCode.CANCELLED
    await _over_everywhere(servers, proxy)


@pytest.mark.parametrize("kind", ["server_stream", "bidi"])
async def test_a_cancel_in_the_middle_of_a_stream_reaches_the_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], proxy: ProxyProcess, kind: str
) -> None:
    call = await _open(client, kind, TALK)
    assert await call.read() == b"request"
    received = await _at_a_server(servers)
    call.cancel()
    await eventually(received.finished.is_set, "the end at the server")
    assert received.cancelled
    await _over_everywhere(servers, proxy)


async def test_a_cancel_of_a_full_stream_reaches_the_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], proxy: ProxyProcess
) -> None:
    call = client.unary_stream(ENDLESS)(b"")
    await call.read()
    call.cancel()
    await eventually(lambda: all(each.cancelled for each in servers[0].calls), "the cancellation at the server")
    await _over_everywhere(servers, proxy)


@pytest.mark.parametrize("kind", ["server_stream", "bidi"])
async def test_an_abort_by_the_server_in_the_middle_of_a_stream_reaches_the_client(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], kind: str
) -> None:
    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.write(b"one")
        await context.abort(grpc.StatusCode.ABORTED, "enough")

    servers[0].scripts[TALK] = script
    call = await _open(client, kind, TALK)
    assert await call.read() == b"one"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.ABORTED, "enough")


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (0, grpc.StatusCode.INTERNAL),
        (2, grpc.StatusCode.INTERNAL),
        (7, grpc.StatusCode.UNAVAILABLE),
        (8, grpc.StatusCode.CANCELLED),
        (11, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
@pytest.mark.parametrize("started", [False, True])
async def test_a_reset_by_the_server_reaches_the_client_with_its_meaning(
    tmp_path: Path, code: int, status: grpc.StatusCode, *, started: bool
) -> None:
    def reset(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "StreamEnded":
            stream = getattr(event, "stream_id", 0)
            if started:
                connection.h2.send_headers(stream, RESPONSE)
                connection.h2.send_data(stream, framed(b"one"))
            connection.h2.reset_stream(stream, code)

    async with (
        raw_server("Server-A", reset) as backend,
        proxy_process(tmp_path, toml({"Server-A": backend.address})) as proxy,
        channel(proxy.address) as client,
    ):
        received = []
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            received += [body async for body in client.unary_stream("/any.Service/Any")(b"")]
        assert raised.value.code() is status
        assert "Server-A" in str(raised.value.details())


async def test_a_channel_that_is_closed_cancels_its_calls_at_the_servers(
    servers: tuple[EchoServer, ...], proxy: ProxyProcess
) -> None:
    async with channel(proxy.address) as client:
        calls = [
            await _open(client, kind, method)
            for kind in KINDS
            for method in (HANG, TALK)
            if (kind, method) != ("unary", TALK)
        ]
        await eventually(lambda: sum(server.active for server in servers) == len(calls), "all calls at the servers")
    await _over_everywhere(servers, proxy)
    assert all(call.cancelled for server in servers for call in server.calls if call.method in (HANG, TALK))


async def test_a_client_whose_socket_dies_leaves_no_call_behind(
    servers: tuple[EchoServer, ...], proxy: ProxyProcess
) -> None:
    async with raw_client(proxy.port) as client:
        for method in (HANG, TALK, ENDLESS):
            for number in range(10):
                stream = client.request(method, (b"x-chat-id", b"chat-%d" % number))
                client.send(stream, framed(b"request"))
        keyless = client.request(HANG)  # and some whose first message is not complete
        client.send(keyless, b"\x00\x00")
        await eventually(lambda: sum(server.active for server in servers) >= 30, "all calls at the servers")
        client.transport.abort()
        await _over_everywhere(servers, proxy)
    assert all(call.cancelled for server in servers for call in server.calls if call.method in (HANG, TALK, ENDLESS))


async def test_many_cancelled_calls_leave_nothing_behind(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], proxy: ProxyProcess
) -> None:
    methods = (HANG, TALK, ENDLESS, "/any.Service/Bidi")
    for _ in range(5):
        calls = []
        for number in range(100):
            call = client.stream_stream(methods[number % 4])(metadata=(("x-chat-id", f"chat-{number}"),))
            await call.write(b"request")
            calls.append(call)
        await asyncio.gather(*(call.read() for number, call in enumerate(calls) if number % 4))
        for call in calls:
            call.cancel()
        await asyncio.gather(*(call.code() for call in calls))
    await _over_everywhere(servers, proxy)


async def test_a_call_that_waits_for_a_stream_can_be_cancelled_and_never_reaches_the_server(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A", max_concurrent_streams=1) as (server,),
        proxy_process(tmp_path, toml(addresses(server), upstream={"max_connections": 1})) as proxy,
        channel(proxy.address) as client,
        raw_client(proxy.port) as raw,
    ):
        server.scripts[TALK] = _talk
        running = await _open(client, "bidi", TALK)
        assert await running.read() == b"request"
        parked = [raw.request("/any.Service/Unary") for _ in range(3)]
        for stream in parked:
            raw.send(stream, framed(b"parked"), end=True)
        for stream in parked[:2]:
            raw.reset(stream, 8)
        await raw.pinged()
        running.cancel()
        assert (await raw.over(parked[2])).status == b"0"
        assert [call.method for call in server.calls] == [TALK, "/any.Service/Unary"]


# Deadlines.


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deadline_ends_the_call_at_client_and_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], proxy: ProxyProcess, kind: str
) -> None:
    call = await _open(client, kind, HANG, seconds=0.5)
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    received = await _at_a_server(servers)
    await eventually(received.finished.is_set, "the end at the server")
    assert received.cancelled
    await _over_everywhere(servers, proxy)


async def test_the_synchronous_client_sees_its_deadline(servers: tuple[EchoServer, ...], proxy: ProxyProcess) -> None:
    def call() -> object:
        with grpc.insecure_channel(proxy.address) as opened:
            try:
                opened.unary_unary(HANG)(b"request", timeout=0.5)
            except grpc.RpcError as error:
                return error.code() if isinstance(error, grpc.Call) else error
        return None

    assert await asyncio.to_thread(call) is grpc.StatusCode.DEADLINE_EXCEEDED
    await _over_everywhere(servers, proxy)


@pytest.mark.parametrize("method", [HANG, TALK, ENDLESS])
async def test_the_proxy_itself_ends_a_call_at_its_deadline(
    servers: tuple[EchoServer, ...], proxy: ProxyProcess, method: str
) -> None:
    async with raw_client(proxy.port) as client:  # it says its deadline, and does nothing about it
        stream = client.request(method, (b"grpc-timeout", b"300m"))
        client.send(stream, framed(b"request"))
        state = await client.over(stream)
        assert state.status == b"4"
        await eventually(lambda: all(call.cancelled for server in servers for call in server.calls), "the cancel")
    await _over_everywhere(servers, proxy)


async def test_a_deadline_that_passes_before_the_first_message_reaches_no_server(tmp_path: Path) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(tmp_path, toml(addresses(server), routes=['method = "*"\nkey = { field = "1" }'])) as proxy,
        raw_client(proxy.port) as client,
    ):
        stream = client.request("/any.Service/Unary", (b"grpc-timeout", b"100m"))
        client.send(stream, framed(keyed("chat"))[:-1])
        assert (await client.over(stream)).status == b"4"
        assert not server.calls


async def test_a_deadline_that_has_passed_already_reaches_no_server(
    servers: tuple[EchoServer, ...], proxy: ProxyProcess
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request("/any.Service/Unary", (b"grpc-timeout", b"0m"))
        assert (await client.over(stream)).status == b"4"
    assert not any(server.calls for server in servers)


async def test_the_server_gets_what_is_left_of_the_deadline(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...]
) -> None:
    await client.unary_unary("/any.Service/Unary")(b"", timeout=30)
    await client.unary_unary("/any.Service/Unary")(b"")
    (limited, unlimited) = servers[0].calls
    assert limited.time_remaining is not None
    assert 0 < limited.time_remaining <= 31  # grpcio rounds it up on its way onto the wire
    assert unlimited.time_remaining is None


async def test_time_spent_in_the_proxy_is_taken_off_the_deadline(tmp_path: Path) -> None:
    received: list[bytes] = []

    def note(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "StreamEnded":
            stream = getattr(event, "stream_id", 0)
            received.append(connection.streams[stream].headers[b"grpc-timeout"])
            connection.answer(stream, framed(b""))

    async with (
        raw_server("Server-A", note) as backend,
        proxy_process(
            tmp_path, toml({"Server-A": backend.address}, routes=['method = "*"\nkey = { field = "1" }'])
        ) as proxy,
        raw_client(proxy.port) as client,
    ):
        loop = asyncio.get_running_loop()
        started = loop.time()
        stream = client.request("/any.Service/Unary", (b"grpc-timeout", b"20S"))
        await client.pinged()
        headers_arrived = loop.time()
        await eventually(lambda: loop.time() >= headers_arrived + 0.2, "some time")
        client.send(stream, framed(keyed("chat")), end=True)
        assert (await client.over(stream)).status == b"0"
        (timeout,) = received
        left = int(timeout[:-1]) / {ord("m"): 1e3, ord("u"): 1e6, ord("n"): 1e9}[timeout[-1]]
        assert 20 - (loop.time() - started) <= left <= 19.9


async def test_a_routes_own_timeout_is_passed_on_and_enforced_and_a_longer_one_of_the_client_does_not_win(
    tmp_path: Path,
) -> None:
    async with (
        echo_servers("Server-A") as (server,),
        proxy_process(
            tmp_path, toml(addresses(server), routes=['method = "*"\nkey = { metadata = "k" }\ntimeout = 0.5'])
        ) as proxy,
        channel(proxy.address) as client,
    ):
        server.scripts[HANG] = _hang
        for seconds in (None, 60):
            call = client.unary_unary(HANG)(b"request", timeout=seconds)
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for received in server.calls:
            assert received.time_remaining is not None
            assert received.time_remaining <= 0.5
            await eventually(received.finished.is_set, "the end at the server")


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"123456789S", b"-1S", b"+1S", b" 1S", b"1 S", b"1x", b"1.5S"])
async def test_a_malformed_timeout_is_refused_and_reaches_no_server(
    servers: tuple[EchoServer, ...], proxy: ProxyProcess, value: bytes
) -> None:
    async with raw_client(proxy.port) as client:
        stream = client.request("/any.Service/Unary", (b"grpc-timeout", value))
        client.send(stream, framed(b"request"), end=True)
        state = await client.over(stream)
        if value.strip() == value:
            assert state.status == b"3"
            assert "grpc-timeout" in state.message
        else:  # RFC 9113, 8.2.1: a value with a space at its end makes the request malformed already
            assert state.status == b"3" or state.reset
    assert not any(server.calls for server in servers)
