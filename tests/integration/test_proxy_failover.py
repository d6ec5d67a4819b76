"""When the owner cannot take a call, the next server on the ring does; when it is back, it has its chats again."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2, chat_pb2_grpc

from tests.support.backend_server import backend_process
from tests.support.grpc_server import EchoServer, channel, echo_servers, server_of
from tests.support.messages import framed
from tests.support.polling import PATIENCE, eventually
from tests.support.ports import closed_port
from tests.support.proxy_process import addresses, proxy_process, toml
from tests.support.raw_http2 import RawConnection, raw_client, raw_server

if TYPE_CHECKING:
    from pathlib import Path

    import h2.events

    from tests.support.grpc_server import Context, ReceivedCall
    from tests.support.proxy_process import Table

IDS = ("Server-A", "Server-B", "Server-C")
UNARY = "/any.Service/Unary"
NEVER_AGAIN: Table = {"connect_backoff": 3600, "max_connect_backoff": 3600}
"""A server that could not be connected to is not tried again while the test runs."""
SOON: Table = {"connect_backoff": 0.05, "max_connect_backoff": 0.2}

REFUSED_STREAM = 7

POISONS = (
    b"\x00\x00\x04\x08" + bytes(9),  # WINDOW_UPDATE of the connection by 0
    b"\xff" * 100,  # a frame of 16 MiB
    b"\x00\x00\x05\x06" + bytes(10),  # PING of 5 bytes
    b"\x00\x00\x05\x01\x05\x00\x00\x01\x01\xff\xff\xff\xff\xff",  # HEADERS that HPACK cannot decode
)


async def _served_by(client: grpc.aio.Channel, key: str, body: bytes = b"body") -> str:
    call = client.unary_unary(UNARY)(body, metadata=(("x-chat-id", key),))
    assert await call == body
    return await server_of(call)


async def _wait_for(client: grpc.aio.Channel, key: str, server_id: str) -> None:
    """Until calls with the key are served by that server. Those before must succeed too, wherever they go."""
    async with asyncio.timeout(PATIENCE):
        while await _served_by(client, key) != server_id:
            pass


def _stream(event: h2.events.Event) -> int:
    stream: int = getattr(event, "stream_id", 0)
    return stream


async def test_calls_of_a_server_that_is_not_there_go_to_the_next_on_the_ring(tmp_path: Path) -> None:
    with closed_port() as port:
        async with echo_servers("Server-A", "Server-C") as servers:
            config = toml({**addresses(*servers), "Server-B": f"127.0.0.1:{port}"}, upstream=NEVER_AGAIN)
            async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
                for number in range(100):
                    key = f"chat-{number}"
                    expected = next(id_ for id_ in proxy.walk(key) if id_ != "Server-B")
                    assert await _served_by(client, key) == expected
                assert proxy.log().count("Server-B") == 1, "said once, not for every call"


async def test_the_first_calls_while_the_owner_is_still_being_connected_to_move_on_whole(tmp_path: Path) -> None:
    async with raw_server("Server-B", speaks=False) as silent, echo_servers("Server-A", "Server-C") as servers:
        config = toml(
            {**addresses(*servers), "Server-B": silent.address}, upstream={"connect_timeout": 0.5, **NEVER_AGAIN}
        )
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            key = proxy.key_of("Server-B")
            bodies = [bytes((number,)) * size for number, size in enumerate((0, 1, 1000, 60_000, 200_000, 1 << 20))]
            served_by = await asyncio.gather(*(_served_by(client, key, body) for body in bodies))
            assert set(served_by) == {proxy.walk(key)[1]}
            for _ in range(50):
                assert await _served_by(client, key) == proxy.walk(key)[1]
            assert len(silent.connections) == 1, "later calls do not pay for a connect again"


async def test_calls_of_a_server_that_hangs_up_at_once_go_to_the_next(tmp_path: Path) -> None:
    async with raw_server("Server-B", speaks=False) as rude, echo_servers("Server-A") as servers:
        config = toml({**addresses(*servers), "Server-B": rude.address}, upstream=NEVER_AGAIN)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            await eventually(lambda: rude.connections, "the proxy's connection")
            rude.connections[0].transport.abort()
            key = proxy.key_of("Server-B")
            for _ in range(20):
                assert await _served_by(client, key) == "Server-A"
            assert len(rude.connections) == 1


async def test_a_server_that_does_not_speak_http2_is_passed_over(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listener, echo_servers("Server-A") as servers:
        port = listener.sockets[0].getsockname()[1]
        config = toml({**addresses(*servers), "Server-B": f"127.0.0.1:{port}"}, upstream=NEVER_AGAIN)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            for _ in range(20):
                assert await _served_by(client, proxy.key_of("Server-B")) == "Server-A"


async def test_when_no_server_can_be_reached_the_status_names_each_and_why(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        endpoints = {id_: f"127.0.0.1:{stack.enter_context(closed_port())}" for id_ in IDS}
        proxy = await stack.enter_async_context(proxy_process(tmp_path, toml(endpoints)))
        client = await stack.enter_async_context(channel(proxy.address))
        for key in ("chat-1", "chat-2", ""):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await _served_by(client, key)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
            details = str(raised.value.details())
            for id_ in IDS:
                assert details.count(id_) == 1
            assert details.count("connection refused") == 3


async def test_a_call_is_not_offered_to_more_servers_than_allowed(tmp_path: Path) -> None:
    def refuse(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "RequestReceived":
            connection.h2.reset_stream(_stream(event), REFUSED_STREAM)

    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(raw_server(f"Server-{name}", refuse)) for name in "ABCDE"]
        config = toml({server.id: server.address for server in servers})
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        client = await stack.enter_async_context(channel(proxy.address))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _served_by(client, "chat-1")
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        tried = proxy.walk("chat-1")[:3]
        assert {server.id for server in servers if server.requests} == set(tried)
        details = str(raised.value.details())
        assert sorted(tried, key=details.index) == tried, "named in the order in which they were tried"
        assert details.count("REFUSED_STREAM") == 3


async def test_calls_refused_by_the_owner_go_to_the_next_whole(tmp_path: Path) -> None:
    def refuse(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "RequestReceived":
            connection.h2.reset_stream(_stream(event), REFUSED_STREAM)

    async with (
        raw_server("Server-B", refuse) as refusing,
        echo_servers("Server-A", "Server-C") as servers,
        proxy_process(tmp_path, toml({**addresses(*servers), "Server-B": refusing.address})) as proxy,
        channel(proxy.address) as client,
    ):
        key = proxy.key_of("Server-B")
        for size in (0, 1, 50_000):
            assert await _served_by(client, key, b"x" * size) == proxy.walk(key)[1]
        assert refusing.requests >= 3


async def test_a_stream_of_messages_refused_by_the_owner_is_replayed_in_order(tmp_path: Path) -> None:
    held: list[tuple[RawConnection, int]] = []

    def refuse_late(connection: RawConnection, event: h2.events.Event) -> None:
        stream = _stream(event)
        if type(event).__name__ == "DataReceived" and len(connection.streams[stream].data) >= 18:
            held.append((connection, stream))

    async with (
        raw_server("Server-B", refuse_late) as refusing,
        echo_servers("Server-A") as servers,
        proxy_process(tmp_path, toml({**addresses(*servers), "Server-B": refusing.address})) as proxy,
        channel(proxy.address) as client,
    ):
        metadata = (("x-chat-id", proxy.key_of("Server-B")),)
        call = client.stream_stream("/any.Service/Bidi")(metadata=metadata)
        for body in (b"1", b"2", b"3"):
            await call.write(body)
        await eventually(lambda: held, "three messages at the owner")
        connection, stream = held[0]
        connection.reset(stream, REFUSED_STREAM)
        assert [await call.read() for _ in range(3)] == [b"1", b"2", b"3"]
        await call.write(b"4")
        assert await call.read() == b"4"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK
        assert servers[0].calls[0].requests == [b"1", b"2", b"3", b"4"]


async def test_calls_not_processed_before_a_goaway_are_submitted_again_to_the_same_server(tmp_path: Path) -> None:
    def go_away_once(connection: RawConnection, event: h2.events.Event) -> None:
        first = connection is server.connections[0]
        if first and type(event).__name__ == "RequestReceived" and not connection.transport.is_closing():
            connection.h2.close_connection(last_stream_id=0)
            connection.flush()
            connection.transport.close()
        elif not first and type(event).__name__ == "StreamEnded":
            stream = _stream(event)
            connection.answer(stream, bytes(connection.streams[stream].data))

    async with (
        raw_server("Server-B", go_away_once) as server,
        echo_servers("Server-A") as others,
        proxy_process(tmp_path, toml({**addresses(*others), "Server-B": server.address})) as proxy,
        channel(proxy.address) as client,
    ):
        metadata = (("x-chat-id", proxy.key_of("Server-B")),)
        unary = client.unary_unary(UNARY)
        bodies = [b"%d" % number for number in range(20)]
        assert await asyncio.gather(*(unary(body, metadata=metadata) for body in bodies)) == bodies
        assert len(server.connections) == 2
        assert not others[0].calls, "the chat stays with its server"


async def test_a_call_in_progress_survives_a_goaway_and_new_ones_take_a_new_connection(tmp_path: Path) -> None:
    def serve(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "StreamEnded":
            stream = _stream(event)
            if connection is server.connections[0]:
                connection.goaway(stream)
            else:
                connection.answer(stream, bytes(connection.streams[stream].data))

    async with (
        raw_server("Server-A", serve) as server,
        proxy_process(tmp_path, toml({"Server-A": server.address})) as proxy,
        channel(proxy.address) as client,
    ):
        old = client.unary_unary(UNARY)(b"old")
        await eventually(lambda: server.requests, "the call at the server")
        assert await client.unary_unary(UNARY)(b"new") == b"new"
        assert len(server.connections) == 2
        server.connections[0].answer(1, framed(b"old"))
        assert await old == b"old"


@pytest.mark.parametrize("notice", [False, True])
async def test_a_server_that_says_goaway_every_few_requests_fails_no_call(tmp_path: Path, *, notice: bool) -> None:
    limit = 10  # nginx does the same after 1,000; without `notice` in one step, as nginx, else in two, as gRPC
    last = 2 * limit - 1
    answered: Counter[RawConnection] = Counter()

    def serve(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ != "StreamEnded":
            return
        stream = _stream(event)
        if stream > last:
            return  # beyond the last stream id: ignored, as promised
        connection.answer(stream, bytes(connection.streams[stream].data))
        answered[connection] += 1
        if notice and answered[connection] == limit // 2:
            connection.goaway(2**31 - 1)
        if answered[connection] == limit:
            connection.goaway(last)
            connection.transport.close()

    async with (
        raw_server("Server-B", serve) as server,
        echo_servers("Server-A") as others,
        proxy_process(tmp_path, toml({**addresses(*others), "Server-B": server.address})) as proxy,
        channel(proxy.address) as client,
    ):
        metadata = (("x-chat-id", proxy.key_of("Server-B")),)
        unary = client.unary_unary(UNARY)
        bodies = [b"%d" % number for number in range(5)]
        for _ in range(40):
            assert await asyncio.gather(*(unary(body, metadata=metadata) for body in bodies)) == bodies
        assert not others[0].calls, "the chat stays with its server"
        assert len(server.connections) > 200 / limit / 2


async def test_a_call_that_may_have_run_is_not_run_again(tmp_path: Path) -> None:
    def die(connection: RawConnection, event: h2.events.Event) -> None:
        if type(event).__name__ == "StreamEnded":
            connection.transport.abort()

    async with (
        raw_server("Server-B", die) as dying,
        echo_servers("Server-A") as servers,
        proxy_process(tmp_path, toml({**addresses(*servers), "Server-B": dying.address})) as proxy,
        channel(proxy.address) as client,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await _served_by(client, proxy.key_of("Server-B"))
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Server-B" in str(raised.value.details())
        assert "may have run" in str(raised.value.details())
        assert not servers[0].calls


async def test_a_server_that_dies_in_the_middle_of_a_stream_ends_it_with_unavailable(tmp_path: Path) -> None:
    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.write(b"one")
        await asyncio.Event().wait()

    async with (
        backend_process("--id", "Server-A") as (process, address),
        proxy_process(tmp_path, toml({"Server-A": address})) as proxy,
        channel(proxy.address) as client,
    ):
        call = chat_pb2_grpc.ChatServiceStub(client).Chat()
        await call.write(chat_pb2.ChatRequest(chat_id="chat", message="hello"))
        await call.read()
        process.kill()
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "Server-A" in str(raised.value.details())


async def test_chats_of_a_killed_server_move_to_the_next_and_the_others_stay(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        backends = {
            id_: await stack.enter_async_context(backend_process("--id", id_, store=tmp_path / "sessions.db"))
            for id_ in IDS
        }
        config = toml({id_: address for id_, (_, address) in backends.items()}, upstream=NEVER_AGAIN)
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        stub = chat_pb2_grpc.ChatServiceStub(await stack.enter_async_context(channel(proxy.address)))
        chats = [f"chat-{number:03d}" for number in range(30)]

        async def post(message: str) -> list[chat_pb2.ChatResponse]:
            return [await stub.PostMessage(chat_pb2.ChatRequest(chat_id=chat, message=message)) for chat in chats]

        before = await post("first")
        assert [answer.server_id for answer in before] == [proxy.owner(chat) for chat in chats]
        backends["Server-B"][0].kill()
        await backends["Server-B"][0].wait()
        await eventually(lambda: "Server-B" in proxy.log(), "the proxy's noticing")
        after = await post("second")
        expected = [next(id_ for id_ in proxy.walk(chat) if id_ != "Server-B") for chat in chats]
        assert [answer.server_id for answer in after] == expected
        counts = [(first.message_count, second.message_count) for first, second in zip(before, after, strict=True)]
        assert all(second == first + 1 for first, second in counts), "no session is lost"


async def test_a_server_that_returns_gets_its_chats_back(tmp_path: Path) -> None:
    async with echo_servers(*IDS) as servers:
        config = toml(addresses(*servers), upstream=SOON)
        async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
            keys = [f"chat-{number}" for number in range(40)]
            for _ in range(2):
                await servers[1].stop()
                await eventually(lambda: proxy.log().count("is down") > proxy.log().count("again"), "its being noticed")
                for key in keys:
                    assert await _served_by(client, key) == next(id_ for id_ in proxy.walk(key) if id_ != "Server-B")
                await servers[1].start()
                await _wait_for(client, proxy.key_of("Server-B"), "Server-B")
                for key in keys:
                    assert await _served_by(client, key) == proxy.owner(key)


async def test_a_server_that_starts_after_the_proxy_gets_its_chats(tmp_path: Path) -> None:
    late = EchoServer("Server-B")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        late.port = holder.getsockname()[1]
        async with echo_servers("Server-A") as servers:
            config = toml(addresses(*servers, late), upstream=SOON)
            async with proxy_process(tmp_path, config) as proxy, channel(proxy.address) as client:
                key = proxy.key_of("Server-B")
                assert await _served_by(client, key) == "Server-A"
                holder.close()
                try:
                    await late.start()
                    await _wait_for(client, key, "Server-B")
                finally:
                    await late.stop()


async def test_a_graceful_restart_of_every_server_in_turn_fails_no_call(tmp_path: Path) -> None:
    async with (
        echo_servers(*IDS) as servers,
        proxy_process(tmp_path, toml(addresses(*servers), upstream=SOON)) as proxy,
        channel(proxy.address) as client,
    ):
        going = True
        done = 0

        async def load(worker: int) -> None:
            nonlocal done
            turn = 0
            while going:
                turn += 1
                try:
                    assert await _served_by(client, f"chat-{worker}-{turn % 20}") in IDS
                except grpc.aio.AioRpcError as error:
                    # A call that grpc.aio's server has accepted but not begun when it stops ends like this, without
                    # a proxy too; nothing says that it has not run.
                    if (error.code(), error.details()) != (grpc.StatusCode.CANCELLED, "CANCELLED"):
                        raise
                done += 1

        async def restart() -> None:
            nonlocal going
            try:
                for server in servers:
                    before = done
                    await eventually(lambda before=before: done > before + 50, "calls before the restart")
                    await server.stop(5)
                    await server.start()
                    await _wait_for(client, proxy.key_of(server.id), server.id)
            finally:
                going = False

        await asyncio.gather(restart(), *(load(worker) for worker in range(8)))


async def test_a_client_that_breaks_the_protocol_takes_no_other_clients_call_with_it(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def endless(_call: ReceivedCall, context: Context) -> None:
        while True:
            await context.write(bytes(1000))

    async def script(_call: ReceivedCall, context: Context) -> None:
        await context.write(b"one")
        await gate.wait()
        await context.write(b"two")

    async with echo_servers("Server-A") as (server,):
        server.scripts.update({"/any.Service/Endless": endless, "/any.Service/Slow": script})
        async with proxy_process(tmp_path, toml(addresses(server))) as proxy, channel(proxy.address) as good:
            call = good.stream_stream("/any.Service/Slow")()
            assert await call.read() == b"one"
            for poison in POISONS:
                async with raw_client(proxy.port) as bad:
                    streams = [bad.request("/any.Service/Endless", end=True) for _ in range(5)]
                    await bad.until(lambda streams=streams: all(bad.streams[each].data for each in streams), "data")
                    bad.transport.write(poison)
                    await bad.closed.wait()
            gate.set()
            assert await call.read() == b"two"
            assert await call.read() is grpc.aio.EOF
            await eventually(lambda: server.active == 0, "the end of the bad clients' calls")
