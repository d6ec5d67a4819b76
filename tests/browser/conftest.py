"""Real servers, a real proxy and a real browser that looks at its dashboard."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from districhat import chat_pb2

from tests.support.backend_server import backend_process, chat_stub
from tests.support.browser import Browser, browser
from tests.support.proxy_process import ProxyProcess, Table, proxy_process, toml

IDS = ("Server-A", "Server-B", "Server-C")
CHATS = tuple(f"chat-{number:03d}" for number in range(24))
CHECKS: Table = {"interval": 0.2, "unhealthy_interval": 0.2, "timeout": 5.0}


class Cluster:
    """Three reference servers, each a process, and a proxy before them."""

    def __init__(self, proxy: ProxyProcess, url: str, servers: dict[str, asyncio.subprocess.Process]) -> None:
        self.proxy = proxy
        self.url = url
        """Of the dashboard."""
        self.servers = servers

    async def served_by(self, *chats: str) -> dict[str, str]:
        """Which server answers a call of each chat, told by a stock client."""
        async with chat_stub(self.proxy.address) as stub:
            served = {}
            for chat in chats:
                request = chat_pb2.ChatRequest(chat_id=chat, message="hello", sender_id="test")
                served[chat] = (await stub.PostMessage(request, wait_for_ready=True)).server_id
            return served


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        started = await asyncio.gather(*(stack.enter_async_context(backend_process("--id", id_)) for id_ in IDS))
        servers = {id_: process for id_, (process, _) in zip(IDS, started, strict=True)}
        addresses = {id_: address for id_, (_, address) in zip(IDS, started, strict=True)}
        config = toml(addresses, admin={"address": "127.0.0.1:0"}, health=CHECKS, decisions={"sample": 1})
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        yield Cluster(proxy, await proxy.admin_url(), servers)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser) -> Iterator[Browser]:
    """An empty page. Each proxy has a port, so an origin, of its own: nothing is left of an earlier test."""
    chromium.resize(1280, 900)
    chromium.prefer("light")
    yield chromium
    chromium.open("about:blank")
    chromium.console()
