"""Many calls at once: everybody gets the right answer from the right server."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest

from tests.support.grpc_server import GATED, Gate, channel, echo_servers, server_of
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml

if TYPE_CHECKING:
    from pathlib import Path

IDS = ("Server-A", "Server-B", "Server-C")


async def _call(client: grpc.aio.Channel, proxy: ProxyProcess, number: int) -> None:
    key = f"chat-{number}"
    body = f"{key} says hello ".encode() * (1 + number % 40)
    call = client.unary_unary(GATED)(body, metadata=(("x-chat-id", key),))
    assert await call == body
    assert await server_of(call) == proxy.owner(key)


@pytest.mark.parametrize("channels", [1, 20])
async def test_a_thousand_calls_at_once_all_get_their_own_answer_from_their_owner(
    tmp_path: Path, channels: int
) -> None:
    async with AsyncExitStack() as stack:
        servers = await stack.enter_async_context(echo_servers(*IDS))
        gate = Gate(servers)
        proxy = await stack.enter_async_context(proxy_process(tmp_path, toml(addresses(*servers))))
        clients = [await stack.enter_async_context(channel(proxy.address)) for _ in range(channels)]
        calls = [_call(clients[number % channels], proxy, number) for number in range(1000)]
        await asyncio.gather(*calls, gate.open_at(1000))
        assert sum(len(server.calls) for server in servers) == 1000


async def test_calls_beyond_the_clients_own_stream_limit_wait_at_the_client(tmp_path: Path) -> None:
    async with (
        echo_servers(*IDS) as servers,
        proxy_process(tmp_path, toml(addresses(*servers), listener={"max_concurrent_streams": 7})) as proxy,
        channel(proxy.address) as client,
    ):
        gate = Gate(servers)
        await asyncio.gather(*(_call(client, proxy, number) for number in range(50)), gate.open_at(7))
        assert sum(len(server.calls) for server in servers) == 50


async def test_calls_beyond_the_servers_stream_limit_wait_and_stay_with_their_owner(tmp_path: Path) -> None:
    async with (
        echo_servers(*IDS, max_concurrent_streams=10) as servers,
        proxy_process(tmp_path, toml(addresses(*servers), upstream={"max_connections": 2})) as proxy,
        channel(proxy.address) as client,
    ):
        gate = Gate(servers)
        owned = {id_: sum(proxy.owner(f"chat-{number}") == id_ for number in range(200)) for id_ in IDS}
        room = sum(min(20, count) for count in owned.values())  # two connections of ten streams each
        await asyncio.gather(*(_call(client, proxy, number) for number in range(200)), gate.open_at(room))
        assert {server.id: len(server.calls) for server in servers} == owned
        assert all(server.most_active <= 20 for server in servers)


async def test_calls_beyond_what_may_wait_fail_and_do_not_move_to_another_server(tmp_path: Path) -> None:
    async with (
        echo_servers(*IDS, max_concurrent_streams=2) as servers,
        proxy_process(tmp_path, toml(addresses(*servers), upstream={"max_connections": 1, "max_waiting": 3})) as proxy,
        channel(proxy.address) as client,
    ):
        gate = Gate(servers)
        key = proxy.key_of("Server-B")
        # In turn, so that it is known which are over the limit.
        calls = [client.unary_unary(GATED)(b"%d" % number, metadata=(("x-chat-id", key),)) for number in range(12)]
        over = await asyncio.gather(*calls, gate.open_at(2), return_exceptions=True)
        failed = [result for result in over if isinstance(result, grpc.aio.AioRpcError)]
        assert len(failed) == 12 - 2 - 3
        for error in failed:
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "Server-B" in str(error.details())
        assert [len(server.calls) for server in servers] == [0, 5, 0]
