"""Stock clients of the reference server's standard services, through the proxy, as if it were not there."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from districhat import chat_pb2, chat_pb2_grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.support.backend_server import backend_process
from tests.support.grpc_server import CLIENT_OPTIONS, channel
from tests.support.proxy_process import ProxyProcess, proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def proxy(tmp_path: Path) -> AsyncIterator[ProxyProcess]:
    async with (
        backend_process("--id", "Server-A") as (_, address),
        proxy_process(tmp_path, toml({"Server-A": address})) as running,
    ):
        yield running


@pytest.fixture
async def client(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with channel(proxy.address) as opened:
        yield opened


@pytest.mark.parametrize("service", ["", "chat.ChatService"])
async def test_the_stock_health_client_sees_the_server_serving(client: grpc.aio.Channel, service: str) -> None:
    answer = await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_stock_health_client_is_told_of_an_unknown_service(client: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await health_pb2_grpc.HealthStub(client).Check(health_pb2.HealthCheckRequest(service="no.Such"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_the_stock_health_client_can_watch(client: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest())
    answer = await watch.read()
    assert isinstance(answer, health_pb2.HealthCheckResponse)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


async def test_a_client_that_learns_the_service_by_reflection_can_call_it(proxy: ProxyProcess) -> None:
    def learn_and_call() -> tuple[list[str], object]:
        with grpc.insecure_channel(proxy.address, options=CLIENT_OPTIONS) as opened:
            database = ProtoReflectionDescriptorDatabase(opened)
            services = sorted(database.get_services())
            pool = DescriptorPool(database)
            method = pool.FindServiceByName("chat.ChatService").FindMethodByName("PostMessage")
            request = GetMessageClass(method.input_type)(chat_id="chat-1", message="hello")
            response_class = GetMessageClass(method.output_type)
            call = opened.unary_unary(
                "/chat.ChatService/PostMessage",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=response_class.FromString,
            )
            return services, call(request)

    services, answer = await asyncio.to_thread(learn_and_call)
    assert "chat.ChatService" in services
    assert getattr(answer, "server_id", None) == "Server-A"
    assert getattr(answer, "message_count", None) == 1


async def test_the_generated_client_makes_every_call_of_the_chat_service(client: grpc.aio.Channel) -> None:
    stub = chat_pb2_grpc.ChatServiceStub(client)
    request = chat_pb2.ChatRequest(chat_id="chat-1", message="h\u011bllo \U0001f680", sender_id="me", timestamp=1)
    answer = await stub.PostMessage(request)
    assert (answer.success, answer.server_id, answer.message_count) == (True, "Server-A", 1)
    chunks = [chunk async for chunk in stub.StreamReply(request)]
    assert chunks[-1].response.message_count == 2
    assert chunks[-1].response.reply == "".join(chunk.token for chunk in chunks)
    conversation = stub.Chat()
    for count in (3, 4, 5):
        await conversation.write(request)
        answered = await conversation.read()
        assert isinstance(answered, chat_pb2.ChatResponse)
        assert answered.message_count == count
    await conversation.done_writing()
    assert await conversation.read() is grpc.aio.EOF
    assert (await stub.GetCacheStats(chat_pb2.StatsRequest(server_id="Server-A"))).total_requests == 5
    assert (await stub.HealthCheck(chat_pb2.HealthRequest())).healthy


async def test_the_servers_own_refusals_arrive(client: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await chat_pb2_grpc.ChatServiceStub(client).PostMessage(chat_pb2.ChatRequest(message="no chat"))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "chat_id must not be empty"


async def test_a_method_that_no_server_has_is_unimplemented(client: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.unary_unary("/no.such.Service/Method")(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
