"""Cache statistics of reference servers, as the admin server tells them."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc
import grpc.aio
from districhat import chat_pb2

from tests.support.admin import admin_of, get
from tests.support.backend_server import chat_stub, serving
from tests.support.grpc_server import EchoServer, echo_servers
from tests.support.polling import PATIENCE
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.grpc_server import Context, ReceivedCall

METHOD = "/chat.ChatService/GetCacheStats"


class Looking:
    """Somebody who looks at the servers again and again."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def until(self, seen: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The servers' cache statistics, by id, as soon as they are as wanted."""
        async with asyncio.timeout(PATIENCE):
            while True:
                endpoints = (await get(self._session, "/api/endpoints"))["endpoints"]
                found = {each["id"]: each["cache"] for each in endpoints}
                if seen(found):
                    return found
                await asyncio.sleep(0.1)


@asynccontextmanager
async def looking(proxy: ProxyProcess) -> AsyncIterator[Looking]:
    async with admin_of(proxy) as session:
        yield Looking(session)


async def test_a_reference_server_tells_of_its_cache(tmp_path: Path) -> None:
    async with serving(id="Server-A") as server:
        config = toml({"Server-A": server.address}, admin={"address": "127.0.0.1:0"})
        async with proxy_process(tmp_path, config) as proxy, looking(proxy) as look, chat_stub(proxy.address) as stub:
            for chat in ("a", "b", "a"):
                await stub.PostMessage(chat_pb2.ChatRequest(chat_id=chat, message="x", sender_id="test"))
            found = await look.until(lambda found: found["Server-A"] is not None and found["Server-A"]["l1_size"] == 2)
            told = found["Server-A"]
            assert (told["requests"], told["hits"], told["misses"]) == (3, 1, 2)
            assert told["l1_capacity"] > 0


async def test_a_server_that_does_not_know_the_method_is_asked_once_and_has_none(tmp_path: Path) -> None:
    async def unknown(_call: ReceivedCall, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")

    async with echo_servers("Server-A") as (server,), serving(id="Server-B") as other:
        server.scripts[METHOD] = unknown
        config = toml({**addresses(server), "Server-B": other.address}, admin={"address": "127.0.0.1:0"})
        async with proxy_process(tmp_path, config) as proxy, looking(proxy) as look:
            assert (await look.until(lambda found: found["Server-B"] is not None))["Server-A"] is None
            assert asked(server) == 1


async def test_nobody_is_asked_if_it_is_switched_off(tmp_path: Path) -> None:
    async with echo_servers("Server-A") as (server,), serving(id="Server-B") as other:
        config = toml(
            {**addresses(server), "Server-B": other.address}, admin={"address": "127.0.0.1:0", "cache_stats": False}
        )
        async with proxy_process(tmp_path, config) as proxy, looking(proxy) as look:
            for _ in range(3):
                assert set((await look.until(lambda _found: True)).values()) == {None}
            assert asked(server) == 0


def asked(server: EchoServer) -> int:
    """How often it was."""
    return [call.method for call in server.calls].count(METHOD)
