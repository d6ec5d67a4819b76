"""Who does not read holds up only himself, and costs bounded memory."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import EchoServer, channel, echo_servers, messages
from tests.support.messages import framed
from tests.support.polling import eventually, settled
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.raw_http2 import RESPONSE, RawConnection, RawServer, raw_client, raw_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import h2.events

    from tests.support.grpc_server import Context, ReceivedCall

ENDLESS = "/any.Service/Endless"
SINK = "/any.Service/Sink"
UNARY = "/any.Service/Unary"

MIB = 1 << 20
BOUND = 64 * MIB
"""What the proxy may grow by, at most. Without back-pressure an endless stream passes it at once."""
PIECE = 64 * 1024

MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4


class Counted:
    """A server that sends without end, and one that never reads; both count."""

    def __init__(self, server: EchoServer) -> None:
        self.server = server
        self.sent = 0
        self.read = 0
        self.reads = asyncio.Event()
        """The sink begins to read when this is set."""
        server.scripts.update({ENDLESS: self._endless, SINK: self._sink})

    async def _endless(self, _call: ReceivedCall, context: Context) -> None:
        while True:
            await context.write(bytes(PIECE))
            self.sent += PIECE

    async def _sink(self, _call: ReceivedCall, context: Context) -> None:
        await self.reads.wait()
        async for message in messages(context):
            self.read += len(message)
        await context.write(b"%d" % self.read)


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    async with echo_servers("Server-A") as (server,):
        yield Counted(server)


@pytest.fixture
async def proxy(counted: Counted, tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with proxy_process(tmp_path, toml(addresses(counted.server))) as running:
        yield running


async def _all_is_well_for_others(proxy: ProxyProcess, *clients: grpc.aio.Channel) -> None:
    """Calls of every size pass, on the given channels and on a new one, all through the same upstream connection."""
    async with channel(proxy.address) as fresh:
        for client in (*clients, fresh):
            for size in (1, PIECE, 3 * MIB):
                assert len(await client.unary_unary(UNARY)(bytes(size))) == size


async def test_a_client_that_stops_reading_stops_the_server_and_nobody_else(
    proxy: ProxyProcess, counted: Counted
) -> None:
    before = proxy.memory()
    async with channel(proxy.address) as client:
        call = client.unary_stream(ENDLESS)(b"")
        await call.read()
        stopped_at = await settled(lambda: counted.sent, "the endless stream")
        assert proxy.memory() - before < BOUND
        await _all_is_well_for_others(proxy, client)
        for _ in range(200):  # and it goes on where it stopped
            assert len(await call.read()) == PIECE
        await eventually(lambda: counted.sent > stopped_at, "more of the endless stream")
        call.cancel()


async def test_many_streams_of_a_client_that_stops_reading_cost_bounded_memory(
    proxy: ProxyProcess, counted: Counted
) -> None:
    before = proxy.memory()
    async with raw_client(proxy.port, acknowledges=False) as stalled:
        for _ in range(100):
            stalled.request(ENDLESS, end=True)
        await stalled.until(lambda: sum(len(stream.data) for stream in stalled.streams.values()) >= 65_535, "a window")
        await settled(lambda: counted.sent, "the endless streams")
        assert proxy.memory() - before < BOUND
        await _all_is_well_for_others(proxy)
    await eventually(lambda: counted.server.active == 0, "the end at the server")


async def test_a_client_whose_socket_is_full_costs_bounded_memory(proxy: ProxyProcess, counted: Counted) -> None:
    before = proxy.memory()
    big = {INITIAL_WINDOW_SIZE: 2**31 - 1}
    async with raw_client(proxy.port, settings=big) as stalled:
        stalled.h2.increment_flow_control_window(2**31 - 1 - 65_535)
        for _ in range(10):
            stalled.request(ENDLESS, end=True)
        await stalled.until(lambda: len(stalled.streams) == 10, "the responses")
        stalled.transport.pause_reading()
        await settled(lambda: counted.sent, "the endless streams")
        assert proxy.memory() - before < BOUND
        await _all_is_well_for_others(proxy)
    await eventually(lambda: counted.server.active == 0, "the end at the server")


async def test_a_server_that_stops_reading_stops_the_client_and_nobody_else(
    proxy: ProxyProcess, counted: Counted
) -> None:
    before = proxy.memory()
    async with channel(proxy.address) as client:
        call = client.stream_unary(SINK)()
        sent = 0
        total = 1500 * PIECE  # more than all that may be under way

        async def write() -> None:
            nonlocal sent
            while sent < total:
                await call.write(bytes(PIECE))
                sent += PIECE
            await call.done_writing()

        writing = asyncio.get_running_loop().create_task(write())
        await settled(lambda: sent, "the client's writing")
        assert sent < total
        assert proxy.memory() - before < BOUND
        await _all_is_well_for_others(proxy, client)
        counted.reads.set()  # and it goes on where it stopped
        await writing
        assert await call == b"%d" % total


async def test_streams_to_a_server_whose_socket_is_full_cost_bounded_memory(tmp_path: Path) -> None:
    def stop_reading(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "DataReceived":
            connection.transport.pause_reading()

    async with (
        raw_server("Server-B", stop_reading, settings={INITIAL_WINDOW_SIZE: 2**31 - 1}) as full,
        echo_servers("Server-A") as (good,),
        proxy_process(tmp_path, toml({**addresses(good), "Server-B": full.address})) as proxy,
        channel(proxy.address) as client,
    ):
        before = proxy.memory()
        sent = 0

        async def write(call: grpc.aio.StreamUnaryCall[bytes, bytes]) -> None:
            nonlocal sent
            while True:
                await call.write(bytes(PIECE))
                sent += PIECE

        metadata = (("x-chat-id", proxy.key_of("Server-B")),)
        writing = [
            asyncio.get_running_loop().create_task(write(client.stream_unary(SINK)(metadata=metadata)))
            for _ in range(20)
        ]
        await settled(lambda: sent, "the client's writing")
        assert proxy.memory() - before < BOUND
        for size in (1, MIB):
            to_good = (("x-chat-id", proxy.key_of("Server-A")),)
            assert len(await client.unary_unary(UNARY)(bytes(size), metadata=to_good)) == size
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


@pytest.mark.parametrize("window", [1, 7, 1000, 65_535])
async def test_a_message_passes_through_any_window_of_a_client(proxy: ProxyProcess, window: int) -> None:
    body = bytes(range(256)) * 8
    async with raw_client(proxy.port, settings={INITIAL_WINDOW_SIZE: window}) as client:
        await client.pinged()
        stream = client.request(UNARY)
        client.send(stream, framed(body), end=True)
        state = await client.over(stream)
        assert (state.status, bytes(state.data)) == (b"0", framed(body))


@pytest.mark.parametrize("windows", [(1, 65_535), (65_535, 1), (100, 70)])
async def test_a_message_passes_through_any_window_of_the_proxy(
    counted: Counted, tmp_path: Path, windows: tuple[int, int]
) -> None:
    config = toml(
        addresses(counted.server),
        listener={"stream_window": windows[0]},
        upstream={"stream_window": windows[1]},
    )
    async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
        for size in (1, 3000):
            assert len(await client.unary_unary(UNARY)(bytes(size))) == size


async def test_a_stalled_response_goes_on_after_a_window_update(proxy: ProxyProcess, counted: Counted) -> None:
    body = bytes(300_000)
    async with raw_client(proxy.port, settings={INITIAL_WINDOW_SIZE: 0}) as client:
        stream = client.request(UNARY)
        state = client.streams[stream]
        client.send(stream, framed(body[:60_000]), end=True)
        await client.until(lambda: state.headers, "the response headers")
        assert not state.data
        assert not state.ended
        client.h2.increment_flow_control_window(100_000, stream)
        client.flush()
        await client.over(stream)
        assert bytes(state.data) == framed(body[:60_000])
        assert state.status == b"0"


async def test_a_hundred_streams_both_ways_at_once_all_come_through(proxy: ProxyProcess) -> None:
    async def one(client: grpc.aio.Channel, number: int) -> None:
        bodies = [bytes((number,)) * (1 + 997 * number % 50_000) for _ in range(20)]

        async def send() -> AsyncIterator[bytes]:
            for body in bodies:
                yield body

        received = [body async for body in client.stream_stream("/any.Service/Bidi")(send())]
        assert received == bodies

    async with channel(proxy.address) as client:
        await asyncio.gather(*(one(client, number) for number in range(100)))


async def test_requests_cancelled_with_data_under_way_do_not_use_up_the_connections_window(
    counted: Counted, tmp_path: Path
) -> None:
    # The connection's window is that of one stream: 64 KiB.
    config = toml(addresses(counted.server), listener={"stream_window": 65_536, "max_concurrent_streams": 1})
    async with proxy_process(tmp_path, config) as proxy, raw_client(proxy.port) as client:
        await client.pinged()
        for _ in range(100):
            await client.until(lambda: client.h2.outbound_flow_control_window > 40_000, "the connection's credit")
            stream = client.request(SINK)
            client.send(stream, framed(bytes(40_000)))
            client.reset(stream, 8)
        await eventually(lambda: counted.server.active == 0, "the end at the server")


@asynccontextmanager
async def filling(window: int, directory: Path) -> AsyncIterator[tuple[RawServer, ProxyProcess]]:
    """A server that answers each call with as much as the window of its stream takes, and never ends; and a proxy."""

    def answer(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "StreamEnded":
            stream: int = getattr(event, "stream_id", 0)
            connection.h2.send_headers(stream, RESPONSE)
            connection.h2.send_data(stream, bytes(window))

    async with (
        raw_server("Server-A", answer, settings={MAX_CONCURRENT_STREAMS: 10_000}) as server,
        proxy_process(directory, toml({"Server-A": server.address}, upstream={"stream_window": window})) as proxy,
    ):
        yield server, proxy


async def test_responses_cancelled_with_data_under_way_do_not_use_up_the_upstream_window(tmp_path: Path) -> None:
    window = 100
    rounds, at_once = 100, 100  # their bytes are more than the upstream connection's window, 8,192 times a stream's

    async with filling(window, tmp_path) as (server, proxy):
        for _ in range(rounds // 10):
            # Zero windows: what comes for these clients stays in the proxy. New ones, as resets are rationed.
            async with raw_client(proxy.port, settings={INITIAL_WINDOW_SIZE: 0}) as client:
                await client.pinged()
                for _ in range(10):
                    streams = [client.request(UNARY, end=True) for _ in range(at_once)]
                    states = [client.streams[stream] for stream in streams]
                    await client.until(lambda states=states: all(state.headers for state in states), "the responses")
                    for stream in streams:
                        client.reset(stream, 8)
        connection = server.connections[0].h2
        await eventually(lambda: connection.outbound_flow_control_window > 8192 * window // 2, "the credit")


async def test_responses_for_clients_that_vanish_do_not_use_up_the_upstream_window(tmp_path: Path) -> None:
    window = 1000

    async with filling(window, tmp_path) as (server, proxy):
        for _ in range(10):
            async with raw_client(proxy.port, settings={INITIAL_WINDOW_SIZE: 0}) as client:
                streams = [client.request(UNARY, end=True) for _ in range(900)]
                states = [client.streams[stream] for stream in streams]
                await client.until(lambda states=states: all(state.headers for state in states), "the responses")
        connection = server.connections[0].h2
        await eventually(lambda: connection.outbound_flow_control_window > 8192 * window // 2, "the credit")
