"""The reference server over real gRPC: in this process, and as the command."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2
from districhat.chat_pb2 import ChatRequest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from backend.errors import ConfigError, EngineError
from backend.session import Message
from tests.support.backend_server import GatedEngine, TestEngine, backend_process, chat_stub, serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from backend.session import Session

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def health_stub(channel: grpc.aio.Channel) -> Any:
    """The library's types know the blocking kind only."""
    return health_pb2_grpc.HealthStub(channel)


async def read(call: Any) -> Any:
    """The next message of a stream, or EOF, which the library types as any object."""
    return await call.read()


async def requests(*chats: str) -> AsyncIterator[ChatRequest]:
    for chat in chats:
        yield ChatRequest(chat_id=chat, message=f"to {chat}")


async def test_post_message_answers_with_all_fields() -> None:
    async with serving(id="Server-X") as server, chat_stub(server.address) as stub:
        request = ChatRequest(chat_id="chat", message="hi", sender_id="ann", timestamp=1700000000)
        assert await stub.PostMessage(request) == chat_pb2.ChatResponse(
            success=True,
            server_id="Server-X",
            cache_location=chat_pb2.CACHE_MISS,
            message_count=1,
            reply="This is message 1, the first of our chat.",
        )
        second = await stub.PostMessage(request)
        assert (second.cache_location, second.message_count) == (chat_pb2.CACHE_L1, 2)


async def test_locations_and_statistics_follow_the_levels() -> None:
    async with serving(cache={"l1_capacity": 1, "l2_capacity": 2}) as server, chat_stub(server.address) as stub:
        locations = [
            chat_pb2.CacheLocation.Name((await stub.PostMessage(ChatRequest(chat_id=chat))).cache_location)
            for chat in "abcdbba"
        ]
        assert locations == [*["CACHE_MISS"] * 4, "CACHE_L2", "CACHE_L1", "CACHE_DISK"]
        statistics = await stub.GetCacheStats(chat_pb2.StatsRequest())
        assert 2 * statistics.l1_bytes == statistics.l2_bytes > 0
        assert statistics == chat_pb2.StatsResponse(
            server_id="Server-A",
            l1_bytes=statistics.l1_bytes,
            l2_bytes=statistics.l2_bytes,
            l1_misses=6,
            l2_misses=5,
            l1_size=1,
            l1_capacity=1,
            l2_size=2,
            l2_capacity=2,
            total_requests=7,
            cache_hits=3,
            cache_misses=4,
            l1_chats=["a"],
            l2_chats=["b", "d"],
            l1_hits=1,
            l2_hits=1,
            disk_hits=1,
            demotions=5,
            promotions=1,
            evictions=2,
        )


async def test_stream_reply_sends_tokens_then_the_response() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        chunks = [chunk async for chunk in stub.StreamReply(ChatRequest(chat_id="chat", message="hi"))]
        assert not any(chunk.HasField("response") for chunk in chunks[:-1])
        assert chunks[-1].token == ""
        response = chunks[-1].response
        assert (response.success, response.message_count) == (True, 1)
        assert "".join(chunk.token for chunk in chunks) == response.reply


async def test_chat_answers_each_message_in_order() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        responses = [response async for response in stub.Chat(requests("a", "b", "a"))]
        assert [response.message_count for response in responses] == [1, 1, 2]
        assert 'Before it came: "to a"' in responses[2].reply


async def test_a_repeated_call_with_the_same_request_id_is_applied_once() -> None:
    """What a proxy relies on when it sends a call again that may have run."""
    async with serving() as server, chat_stub(server.address) as stub:
        post = ChatRequest(chat_id="chat", message="one")
        first = await stub.PostMessage(post, metadata=(("x-request-id", "1"),))
        again = await stub.PostMessage(post, metadata=(("x-request-id", "1"),))
        chunks = [chunk async for chunk in stub.StreamReply(post, metadata=(("x-request-id", "1"),))]
        other = await stub.PostMessage(post, metadata=(("x-request-id", "2"),))
        assert [first.message_count, again.message_count, chunks[-1].response.message_count] == [1, 1, 1]
        assert again.reply == first.reply
        assert other.message_count == 2


async def test_a_conversation_is_one_call_with_many_messages_so_its_request_id_identifies_none() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        call = stub.Chat(requests("chat", "chat"), metadata=(("x-request-id", "1"),))
        assert [response.message_count async for response in call] == [1, 2]


async def test_a_message_id_is_stronger_than_the_calls_request_id() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        for message_id, expected in (("a", 1), ("b", 2), ("a", 1)):
            request = ChatRequest(chat_id="chat", message="one", message_id=message_id)
            answer = await stub.PostMessage(request, metadata=(("x-request-id", "same"),))
            assert answer.message_count == expected


async def test_a_repeated_message_id_gives_the_first_answer() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        await stub.PostMessage(ChatRequest(chat_id="chat", message="zero"))
        first = await stub.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        await stub.PostMessage(ChatRequest(chat_id="chat", message="two", message_id="2"))
        again = await stub.PostMessage(ChatRequest(chat_id="chat", message="one", message_id="1"))
        assert (again.message_count, again.reply) == (first.message_count, first.reply)
        assert (await stub.PostMessage(ChatRequest(chat_id="chat"))).message_count == 4


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ChatRequest(message="hi"), "chat_id must not be empty"),
        (ChatRequest(chat_id="é" * 2049), "chat_id must not be longer than 4096 bytes"),
        (ChatRequest(chat_id="a", message_id="x" * 4097), "message_id must not be longer than 4096 bytes"),
    ],
)
async def test_a_bad_id_is_an_invalid_argument_in_every_call(request_: ChatRequest, text: str) -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        for call in (stub.PostMessage(request_), stub.StreamReply(request_), stub.Chat(iter([request_]))):
            assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert await call.details() == text
        assert (await stub.GetCacheStats(chat_pb2.StatsRequest())).total_requests == 0


async def test_a_chat_id_of_4_kib_is_served() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        for count in (1, 2):
            assert (await stub.PostMessage(ChatRequest(chat_id="🦀" * 1024))).message_count == count


async def test_an_engine_without_a_reply_is_internal_and_the_message_stays() -> None:
    class SilentEngine(TestEngine):
        async def reply(self, session: Session, message: Message) -> AsyncIterator[str]:
            if session.length:
                raise EngineError("no words")
            yield ""

    async with serving(engine=SilentEngine()) as server, chat_stub(server.address) as stub:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError, match="no words") as caught:
                await stub.PostMessage(ChatRequest(chat_id="chat"))
            assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert list((await stub.GetCacheStats(chat_pb2.StatsRequest())).l1_chats) == ["chat"]


@pytest.mark.parametrize("method", ["PostMessage", "StreamReply", "Chat"])
async def test_a_client_that_cancels_stops_the_engine(method: str) -> None:
    engine = GatedEngine()
    async with serving(engine=engine) as server, chat_stub(server.address) as stub:
        request = ChatRequest(chat_id="chat", message="hi")
        call: Any = stub.Chat() if method == "Chat" else getattr(stub, method)(request)
        if method == "Chat":
            await call.write(request)
        await engine.started.acquire()
        call.cancel()
        await engine.stopped.acquire()
        assert (await server._cache.get_or_create("chat"))[0].length == 1


async def test_a_client_that_dies_stops_the_engine() -> None:
    engine = GatedEngine()
    async with serving(engine=engine) as server:
        async with chat_stub(server.address) as stub:
            stream = stub.StreamReply(ChatRequest(chat_id="chat"))
            assert (await read(stream)).token == "one"
        await engine.stopped.acquire()


async def test_a_slow_engine_on_one_chat_blocks_neither_it_nor_another() -> None:
    """Messages are applied in the order they arrive, whether or not the replies before them are complete."""
    engine = GatedEngine()
    async with serving(engine=engine) as server, chat_stub(server.address) as stub:
        first = asyncio.ensure_future(stub.PostMessage(ChatRequest(chat_id="slow", message="1")))
        await engine.started.acquire()
        later = [stub.StreamReply(ChatRequest(chat_id=chat, message="2")) for chat in ("slow", "other")]
        for stream in later:
            assert (await read(stream)).token == "one"
        engine.gate.set()
        assert (await first).message_count == 1
        for stream, count in zip(later, (2, 1), strict=True):
            assert (await read(stream)).token == " two"
            assert (await read(stream)).response.message_count == count


async def test_a_session_of_100_000_messages_is_served_like_any_other(tmp_path: Path) -> None:
    store = {"url": f"sqlite:///{tmp_path}/a.db"}
    async with serving(store=store) as server, chat_stub(server.address) as stub:
        for start in range(0, 100_000, 10_000):
            await server._store.extend(
                "chat", [Message(f"{start + n}", message_id=f"{start + n}") for n in range(10_000)]
            )
        answer = await stub.PostMessage(ChatRequest(chat_id="chat", message="next"))
        assert (answer.message_count, answer.cache_location) == (100_001, chat_pb2.CACHE_DISK)
        assert 'Before it came: "99999"' in answer.reply
        statistics = await stub.GetCacheStats(chat_pb2.StatsRequest())
        assert statistics.l1_bytes < 100_000
        ended = await stub.EndChat(chat_pb2.EndChatRequest(chat_id="chat"))
        assert ended.message_count == 100_001


async def test_a_session_larger_than_the_levels_is_served_from_the_store_and_counted(tmp_path: Path) -> None:
    cache = {"l1_bytes": 5_000, "l2_bytes": 50_000}
    store = {"url": f"sqlite:///{tmp_path}/a.db"}
    async with serving(store=store, cache=cache) as server, chat_stub(server.address) as stub:
        locations = []
        for size in (1_000, 10_000, 60_000, 10):
            answer = await stub.PostMessage(ChatRequest(chat_id="chat", message="x" * size))
            locations.append(chat_pb2.CacheLocation.Name(answer.cache_location))
        assert locations == ["CACHE_MISS", "CACHE_L1", "CACHE_L2", "CACHE_DISK"]
        statistics = await stub.GetCacheStats(chat_pb2.StatsRequest())
        assert (statistics.l1_max_bytes, statistics.l2_max_bytes) == (5_000, 50_000)
        assert (statistics.l1_too_large, statistics.l2_too_large) == (3, 2)
        assert (statistics.l1_bytes, statistics.l2_bytes) == (0, 0)


async def test_end_chat_wants_an_id_and_a_server_that_stays() -> None:
    async with serving() as server, chat_stub(server.address) as stub:
        call = stub.EndChat(chat_pb2.EndChatRequest())
        assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT
        call = stub.EndChat(chat_pb2.EndChatRequest(chat_id="chat"), metadata=(("x-districhat-peer", "Server-X"),))
        assert await call.code() == grpc.StatusCode.PERMISSION_DENIED


async def test_a_store_that_fails_is_unavailable_and_never_a_success(tmp_path: Path) -> None:
    async with serving(store={"url": f"sqlite:///{tmp_path}/a.db"}) as server, chat_stub(server.address) as stub:
        await stub.PostMessage(ChatRequest(chat_id="chat"))
        await server._store.close()
        with pytest.raises(grpc.aio.AioRpcError, match="the store is closed") as caught:
            await stub.PostMessage(ChatRequest(chat_id="chat"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_chat_that_comes_back_is_read_again(tmp_path: Path) -> None:
    store = {"url": f"sqlite:///{tmp_path}/a.db"}
    async with AsyncExitStack() as stack:
        stubs = []
        for name in ("Server-A", "Server-B"):
            server = await stack.enter_async_context(serving(id=name, store=store))
            stubs.append(await stack.enter_async_context(chat_stub(server.address)))
        answers = [
            await stubs[number].PostMessage(ChatRequest(chat_id="chat", message=str(count)))
            for count, number in enumerate((0, 0, 1, 1, 0))
        ]
        assert [answer.message_count for answer in answers] == [1, 2, 3, 4, 5]
        assert [answer.server_id[-1] for answer in answers] == ["A", "A", "B", "B", "A"]
        assert answers[4].cache_location == chat_pb2.CACHE_DISK
        assert 'Before it came: "3"' in answers[4].reply


async def test_health_names_the_server_and_the_service() -> None:
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        health = health_stub(channel)
        for service in ("", "chat.ChatService"):
            response = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert response.status == SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest(service="chat.Other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="chat.Other"))
        assert (await read(watch)).status == SERVICE_UNKNOWN
        watch.cancel()


async def test_health_check_of_the_chat_service_says_who_answers() -> None:
    async with serving(id="Server-B") as server, chat_stub(server.address) as stub:
        response = await stub.HealthCheck(chat_pb2.HealthRequest())
        assert (response.healthy, response.server_id) == (True, "Server-B")


async def test_reflection_lists_the_services() -> None:
    async with serving() as server, grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        (response,) = [response async for response in call]
        assert {service.name for service in response.list_services_response.service} == {
            "chat.ChatService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


async def test_two_servers_cannot_share_a_port() -> None:
    async with serving() as server:
        with pytest.raises(ConfigError, match=f"address: {server.address}: Address already in use"):
            async with serving(address=server.address):
                pass


async def test_drain_tells_watchers_finishes_running_calls_and_takes_no_new_ones() -> None:
    engine = GatedEngine()
    async with (
        serving(engine=engine, drain={"grace": 60.0, "notice": 0.0}) as server,
        chat_stub(server.address) as stub,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest(service="chat.ChatService"))
        assert (await read(watch)).status == SERVING
        post = asyncio.ensure_future(stub.PostMessage(ChatRequest(chat_id="post")))
        stream = stub.StreamReply(ChatRequest(chat_id="stream"))
        assert (await read(stream)).token == "one"
        for _ in range(2):
            await engine.started.acquire()
        drain = asyncio.get_running_loop().create_task(server.drain())
        assert (await read(watch)).status == NOT_SERVING
        assert await read(watch) is grpc.aio.EOF
        async with chat_stub(server.address) as late:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await late.PostMessage(ChatRequest(chat_id="late"))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert not drain.done()
        engine.gate.set()
        assert (await post).reply == "one two"
        assert (await read(stream)).token == " two"
        assert (await read(stream)).response.reply == "one two"
        await drain


async def test_while_the_news_of_its_leaving_travels_a_server_takes_calls() -> None:
    async with (
        serving(drain={"notice": 60.0}) as server,
        chat_stub(server.address) as stub,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await read(watch)).status == SERVING
        drain = asyncio.get_running_loop().create_task(server.drain())
        assert (await read(watch)).status == NOT_SERVING
        assert not (await stub.HealthCheck(chat_pb2.HealthRequest())).healthy
        assert (await stub.PostMessage(ChatRequest(chat_id="late"))).success
        await server.drain()  # and a second word cuts it short
        await drain


async def test_drain_ends_a_conversation_between_two_messages() -> None:
    async with serving(drain={"grace": 60.0}) as server, chat_stub(server.address) as stub:
        call = stub.Chat()
        await call.write(ChatRequest(chat_id="chat"))
        assert (await read(call)).message_count == 1
        await server.drain()
        assert await call.code() == grpc.StatusCode.UNAVAILABLE
        assert await call.details() == "server is shutting down"
        reads = [task for task in asyncio.all_tasks() if "coroutine object _read at" in repr(task.get_coro())]
        await asyncio.gather(*reads, return_exceptions=True)  # the server's read ends with its call


async def test_drain_lets_a_conversation_have_the_answer_it_waits_for() -> None:
    engine = GatedEngine()
    async with serving(engine=engine, drain={"grace": 60.0}) as server, chat_stub(server.address) as stub:
        call = stub.Chat()
        await call.write(ChatRequest(chat_id="chat"))
        await engine.started.acquire()
        drain = asyncio.get_running_loop().create_task(server.drain())
        engine.gate.set()
        assert (await read(call)).reply == "one two"
        await drain
        assert await call.code() == grpc.StatusCode.UNAVAILABLE


async def test_drain_cuts_calls_off_when_the_grace_is_over() -> None:
    engine = GatedEngine()
    async with serving(engine=engine, drain={"grace": 0.0}) as server, chat_stub(server.address) as stub:
        stream = stub.StreamReply(ChatRequest(chat_id="chat"))
        assert (await read(stream)).token == "one"
        await server.drain()
        assert await stream.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_command_while_a_reply_streams(number: signal.Signals, tmp_path: Path) -> None:
    config = tmp_path / "backend.toml"
    config.write_text("[engine]\ntoken_delay = 0.1\n[drain]\ngrace = 60.0\n")
    async with (
        backend_process("--config", str(config), "--id", "Server-X") as (process, address),
        chat_stub(address) as stub,
        grpc.aio.insecure_channel(address) as channel,
    ):
        watch = health_stub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await read(watch)).status == SERVING
        stream = stub.StreamReply(ChatRequest(chat_id="chat"))
        chunks = [await read(stream)]
        process.send_signal(number)
        assert (await read(watch)).status == NOT_SERVING
        while (chunk := await read(stream)) is not grpc.aio.EOF:
            chunks.append(chunk)
        tokens = "".join(chunk.token for chunk in chunks)
        assert tokens == chunks[-1].response.reply == "This is message 1, the first of our chat."
        assert await process.wait() == 0


async def test_another_server_goes_on_where_a_killed_one_was(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        running = [
            await stack.enter_async_context(backend_process("--id", name, store=tmp_path / "sessions.db"))
            for name in ("Server-A", "Server-B")
        ]
        stubs = [await stack.enter_async_context(chat_stub(address)) for _, address in running]
        for number in range(3):
            await stubs[0].PostMessage(ChatRequest(chat_id="chat", message=f"number {number}"))
        running[0][0].kill()
        assert await running[0][0].wait() == -signal.SIGKILL
        answer = await stubs[1].PostMessage(ChatRequest(chat_id="chat"))
        assert (answer.server_id, answer.message_count) == ("Server-B", 4)
        assert answer.cache_location == chat_pb2.CACHE_DISK
        assert 'Before it came: "number 2"' in answer.reply


async def test_sessions_are_there_after_a_restart(tmp_path: Path) -> None:
    for count in (1, 2):
        async with backend_process(store=tmp_path / "sessions.db") as (process, address):
            async with chat_stub(address) as stub:
                assert (await stub.PostMessage(ChatRequest(chat_id="chat"))).message_count == count
            process.terminate()
            assert await process.wait() == 0
