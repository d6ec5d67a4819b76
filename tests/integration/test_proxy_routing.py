"""Calls go to the server that owns their key, wherever the key is."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from collections import defaultdict
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2, chat_pb2_grpc

from tests.support.backend_server import serving
from tests.support.grpc_server import EchoServer, channel, server_of
from tests.support.messages import field, framed, keyed
from tests.support.polling import eventually
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.raw_http2 import raw_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.grpc_server import Context, ReceivedCall

IDS = ("Server-A", "Server-B", "Server-C")

ROUTES = (
    'method = "/keyed.Service/*"\nkey = { field = "1" }',
    'method = "/nested.Service/*"\nkey = { field = "3.1" }',
    'method = "/strict.Service/*"\nkey = { field = "1" }\nmissing_key = "reject"',
    'method = "/strict.Metadata/*"\nkey = { metadata = "x-chat-id" }\nmissing_key = "reject"',
    'method = "/session.Service/*"\nkey = { metadata = "x-session" }',
    'method = "/named.Service/*"\nendpoint = { field = "2" }',
    'method = "/named.Metadata/*"\nendpoint = { metadata = "x-server-id" }',
)


@pytest.fixture
async def proxy(servers: tuple[EchoServer, ...], tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    weights = {"Server-A": 1.0, "Server-B": 1.5, "Server-C": 1.0}
    async with proxy_process(tmp_path, toml(addresses(*servers), weights=weights, routes=ROUTES)) as running:
        yield running


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(proxy.address) as opened:
        yield opened


async def _served_by(
    client: grpc.aio.Channel,
    method: str,
    body: bytes,
    metadata: tuple[tuple[str, str], ...] = (),
    compression: grpc.Compression | None = None,
) -> str:
    call = client.unary_unary(method)(body, metadata=metadata, compression=compression)
    assert await call == body
    return await server_of(call)


@pytest.mark.parametrize("layout", ["murmur3", "crc32"])
async def test_posted_messages_of_many_chats_go_to_their_owners_and_find_their_sessions(
    tmp_path: Path, layout: str
) -> None:
    chats = [f"chat-{number:03d}" for number in range(150)]
    async with AsyncExitStack() as stack:
        backends = {
            id_: (await stack.enter_async_context(serving(id=id_, cache={"l1_capacity": 200}))).address for id_ in IDS
        }
        config = toml(backends, weights={"Server-B": 1.5}, ring={"hash": layout})
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        stub = chat_pb2_grpc.ChatServiceStub(await stack.enter_async_context(channel(proxy.address)))
        for turn in (1, 2):
            answers = await asyncio.gather(
                *(stub.PostMessage(chat_pb2.ChatRequest(chat_id=chat, message=f"turn {turn}")) for chat in chats)
            )
            assert {chat: answer.server_id for chat, answer in zip(chats, answers, strict=True)} == {
                chat: proxy.owner(chat) for chat in chats
            }
            counts = {answer.message_count for answer in answers}
            assert len(counts) == 1, "every session has counted the same turns"
        assert {answer.cache_location for answer in answers} == {chat_pb2.CACHE_L1}


async def test_streams_of_the_chat_service_go_to_the_owner_of_their_first_chat(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        backends = {id_: (await stack.enter_async_context(serving(id=id_))).address for id_ in IDS}
        proxy = await stack.enter_async_context(proxy_process(tmp_path, toml(backends)))
        stub = chat_pb2_grpc.ChatServiceStub(await stack.enter_async_context(channel(proxy.address)))
        for owner in IDS:
            request = chat_pb2.ChatRequest(chat_id=proxy.key_of(owner), message="hello")
            chunks = [chunk async for chunk in stub.StreamReply(request)]
            assert chunks[-1].response.server_id == owner
            conversation = stub.Chat()
            for turn in (2, 3):
                await conversation.write(request)
                answer = await conversation.read()
                assert isinstance(answer, chat_pb2.ChatResponse)
                assert (answer.server_id, answer.message_count) == (owner, chunks[-1].response.message_count + turn - 1)
            await conversation.done_writing()


async def test_cache_statistics_come_from_the_server_that_the_message_names(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        backends = {id_: (await stack.enter_async_context(serving(id=id_))).address for id_ in IDS}
        proxy = await stack.enter_async_context(proxy_process(tmp_path, toml(backends)))
        stub = chat_pb2_grpc.ChatServiceStub(await stack.enter_async_context(channel(proxy.address)))
        for id_ in IDS:
            statistics = await stub.GetCacheStats(chat_pb2.StatsRequest(server_id=id_))
            assert statistics.server_id == id_
        for nobody in ("", "Server-X"):
            statistics = await stub.GetCacheStats(chat_pb2.StatsRequest(server_id=nobody))
            assert statistics.server_id in IDS


async def test_a_key_in_a_field_decides_the_server(client: grpc.aio.Channel, proxy: ProxyProcess) -> None:
    for number in range(60):
        key = f"room-{number}"
        assert await _served_by(client, "/keyed.Service/PutUnary", keyed(key, b"payload")) == proxy.owner(key)


async def test_a_key_that_is_no_utf8_decides_the_server(client: grpc.aio.Channel, proxy: ProxyProcess) -> None:
    for number in range(60):
        key = b"\xff\x00" + bytes((number,))
        assert await _served_by(client, "/keyed.Service/PutUnary", keyed(key)) == proxy.owner(key)


async def test_a_key_of_4_kib_decides_the_server(client: grpc.aio.Channel, proxy: ProxyProcess) -> None:
    for number in range(10):
        key = b"%d" % number + b"k" * 4095
        assert await _served_by(client, "/keyed.Service/PutUnary", keyed(key)) == proxy.owner(key)


async def test_a_key_in_a_nested_message_decides_the_server(client: grpc.aio.Channel, proxy: ProxyProcess) -> None:
    for number in range(60):
        key = f"deep-{number}"
        body = field(1, "not this") + field(2, 7) + field(3, field(5, b"first") + field(1, key)) + field(1, "nor this")
        assert await _served_by(client, "/nested.Service/PutUnary", body) == proxy.owner(key)


@pytest.mark.parametrize("kind", ["Unary", "ServerStream", "ClientStream", "Bidi"])
async def test_a_key_in_metadata_decides_the_server_for_every_kind_of_call(
    client: grpc.aio.Channel, proxy: ProxyProcess, kind: str
) -> None:
    for number in range(20):
        key = f"meta-{number}"
        call = client.stream_stream("/any.Service/" + kind)(metadata=(("x-chat-id", key),))
        await call.write(b"hello")
        await call.done_writing()
        assert await call.read() == b"hello"
        assert await server_of(call) == proxy.owner(key)
        assert await call.read() is grpc.aio.EOF


async def test_the_configured_metadata_name_decides_not_the_built_in_one(
    client: grpc.aio.Channel, proxy: ProxyProcess
) -> None:
    for owner in IDS:
        metadata = (("x-chat-id", "something-else"), ("x-session", proxy.key_of(owner)))
        assert await _served_by(client, "/session.Service/PutUnary", b"", metadata) == owner


async def test_a_metadata_key_routes_a_bidi_stream_before_its_first_message(
    client: grpc.aio.Channel, proxy: ProxyProcess
) -> None:
    for owner in IDS:
        call = client.stream_stream("/any.Service/Bidi")(metadata=(("x-chat-id", proxy.key_of(owner)),))
        assert await server_of(call) == owner
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


@pytest.mark.parametrize("where", ["message", "metadata"])
async def test_a_call_goes_to_the_server_that_it_names(client: grpc.aio.Channel, where: str) -> None:
    for id_ in IDS:
        if where == "message":
            body = field(1, "something") + field(2, id_)
            assert await _served_by(client, "/named.Service/AskUnary", body) == id_
        else:
            assert await _served_by(client, "/named.Metadata/AskUnary", b"", (("x-server-id", id_),)) == id_


@pytest.mark.parametrize("body", [b"", keyed(""), field(2, "another field"), keyed(b"", b"payload")])
async def test_a_call_without_its_demanded_key_is_refused_and_reaches_no_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...], body: bytes
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.unary_unary("/strict.Service/PutUnary")(body)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "/strict.Service/*" in str(raised.value.details())
    assert not any(server.calls for server in servers)


async def test_a_call_without_its_demanded_metadata_is_refused_and_reaches_no_server(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...]
) -> None:
    for call in (
        client.unary_unary("/strict.Metadata/PutUnary")(b"body"),
        client.unary_unary("/strict.Metadata/PutUnary")(b"body", metadata=(("x-chat-id", ""),)),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert not any(server.calls for server in servers)


async def test_calls_without_a_key_go_where_the_fewest_calls_run(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...]
) -> None:
    gate = asyncio.Event()

    async def script(_call: ReceivedCall, _context: Context) -> None:
        await gate.wait()

    for server in servers:
        server.scripts["/any.Service/Wait"] = script
    calls = []
    for running in range(1, 8):
        call = client.stream_stream("/any.Service/Wait")()
        await call.initial_metadata()
        calls.append(call)
        assert sum(server.active for server in servers) == running
    # Seven calls over weights 1, 1.5 and 1: no server has more than its share, rounded up.
    assert sorted((server.id, server.active) for server in servers) == [
        ("Server-A", 2),
        ("Server-B", 3),
        ("Server-C", 2),
    ]
    gate.set()
    for call in calls:
        assert await call.code() is grpc.StatusCode.OK
    # With nothing running anywhere the first by id is as good as any: this shows that all were counted down again.
    assert await _served_by(client, "/any.Service/Unary", b"") == "Server-A"


async def test_the_key_may_be_the_last_field_of_a_large_message(client: grpc.aio.Channel, proxy: ProxyProcess) -> None:
    for number in range(6):
        key = f"late-{number}"
        body = field(2, os.urandom(1 << 20)) + field(3, 1) + field(1, key)
        assert await _served_by(client, "/keyed.Service/PutUnary", body) == proxy.owner(key)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_compressed_message_is_routed_by_its_key_and_passes_untouched(
    client: grpc.aio.Channel, proxy: ProxyProcess, compression: grpc.Compression
) -> None:
    for number in range(20):
        key = f"packed-{number}"
        for body in (keyed(key, b"a" * 1000), field(2, os.urandom(5000) * 4) + field(1, key)):
            served_by = await _served_by(client, "/keyed.Service/PutUnary", body, compression=compression)
            assert served_by == proxy.owner(key)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_a_large_compressed_message_with_its_key_last_is_routed_by_it(
    client: grpc.aio.Channel, proxy: ProxyProcess, compression: grpc.Compression
) -> None:
    for owner in IDS:
        body = field(2, os.urandom(1 << 20)) + field(1, proxy.key_of(owner))
        assert await _served_by(client, "/keyed.Service/PutUnary", body, compression=compression) == owner


async def test_compressed_bytes_are_forwarded_as_they_came(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...]
) -> None:
    message = keyed(proxy.key_of("Server-C"), b"a" * 10_000)
    async with raw_client(proxy.port) as client:
        for encoding, packed in ((b"gzip", gzip.compress(message)), (b"deflate", zlib.compress(message))):
            stream = client.request("/keyed.Service/PutUnary", (b"grpc-encoding", encoding))
            client.send(stream, framed(packed, flag=1), end=True)
            state = await client.over(stream)
            assert state.status == b"0"
            assert bytes(state.data) == framed(message), "the server has inflated it, the proxy did not"
    assert [call.requests for call in servers[2].calls] == [[message], [message]]


async def test_a_first_message_in_single_bytes_is_routed_by_its_key(proxy: ProxyProcess) -> None:
    async with raw_client(proxy.port) as client:
        for owner in IDS:
            data = framed(keyed(proxy.key_of(owner), b"payload"))
            stream = client.request("/keyed.Service/PutUnary")
            for index in range(len(data)):
                client.send(stream, data[index : index + 1], end=index + 1 == len(data))
                await client.pinged()
            state = await client.over(stream)
            assert (state.status, bytes(state.data)) == (b"0", data)
            assert state.headers[b"x-server"] == owner.encode()


async def test_a_stream_stays_with_the_server_of_its_first_message(
    client: grpc.aio.Channel, proxy: ProxyProcess, servers: tuple[EchoServer, ...]
) -> None:
    bodies = [keyed(proxy.key_of(owner)) for owner in ("Server-B", "Server-A", "Server-C")]
    call = client.stream_stream("/keyed.Service/Bidi")()
    for body in bodies:
        await call.write(body)
        assert await call.read() == body
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert [len(server.calls) for server in servers] == [0, 1, 0]


async def test_nothing_is_sent_upstream_before_the_key_is_known(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...]
) -> None:
    async with raw_client(proxy.port) as client:
        data = framed(field(2, b"x" * 1000) + field(1, proxy.key_of("Server-B")))
        stream = client.request("/keyed.Service/PutUnary")
        client.send(stream, data[:-1])
        await client.pinged()
        async with channel(proxy.address) as other:  # overtakes it through the same connection to the server
            await _served_by(other, "/keyed.Service/PutUnary", keyed(proxy.key_of("Server-B")))
        assert [len(server.calls) for server in servers] == [0, 1, 0]
        client.send(stream, data[-1:], end=True)
        assert (await client.over(stream)).status == b"0"
    assert [len(server.calls) for server in servers] == [0, 2, 0]


async def test_a_call_cancelled_before_its_first_message_reaches_no_server(
    proxy: ProxyProcess, servers: tuple[EchoServer, ...]
) -> None:
    async with raw_client(proxy.port) as client:
        for _ in range(50):
            stream = client.request("/keyed.Service/PutUnary")
            client.send(stream, b"\x00\x00\x00")
            client.reset(stream, 8)
        await client.pinged()
        stream = client.request("/keyed.Service/PutUnary")
        client.send(stream, framed(keyed("next")), end=True)
        assert (await client.over(stream)).status == b"0"
    assert sum(len(server.calls) for server in servers) == 1


async def test_two_proxies_with_the_same_servers_in_another_order_agree_on_every_owner(
    servers: tuple[EchoServer, ...], tmp_path: Path
) -> None:
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for order in (servers, servers[::-1]):
        async with proxy_process(tmp_path, toml(addresses(*order))) as proxy, channel(proxy.address) as client:
            for number in range(50):
                key = f"agreed-{number}"
                owners[key].add(await _served_by(client, "/any.Service/Unary", b"", (("x-chat-id", key),)))
    assert all(len(found) == 1 for found in owners.values())
    assert len(set.union(*owners.values())) == 3


async def test_metadata_that_only_the_proxy_may_write_is_taken_from_clients(
    client: grpc.aio.Channel, servers: tuple[EchoServer, ...]
) -> None:
    await client.unary_unary("/any.Service/Unary")(b"", metadata=(("x-districhat-owner", "forged"), ("kept", "1")))
    call = await eventually(lambda: next((call for server in servers for call in server.calls), None), "the call")
    assert not call.values("x-districhat-owner")
    assert call.values("kept") == ["1"]
