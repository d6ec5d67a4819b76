"""SIGKILL at every point of an append, under load, through the proxy with its repeats: at the end every acknowledged
message is in its session exactly once and in order, whichever the store.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import pytest
from districhat.chat_pb2 import ChatRequest

from backend.store.base import StoreOptions
from backend.store.url import open_store
from tests.support.backend_server import backend_process, chat_stub
from tests.support.crashing_server import POINTS
from tests.support.fault import GENEROUS, SOON
from tests.support.polling import eventually
from tests.support.ports import free_ports
from tests.support.proxy_process import proxy_process, toml
from tests.support.redis_server import redis_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from districhat.chat_pb2_grpc import ChatServiceAsyncStub

IDS = ("Server-A", "Server-B", "Server-C")
VICTIM = "Server-B"
KILLS = 2
PASSED_BEFORE = 60
"""Passes of the point before a server dies: some seconds of its chats' messages, and never at its start."""


class Writer:
    """Posts to one chat, one message after another, until told to stop."""

    def __init__(self, stub: ChatServiceAsyncStub, chat: str, *, own_ids: bool) -> None:
        self._stub = stub
        self._own_ids = own_ids
        self.chat = chat
        self.acknowledged: list[str] = []
        self.duplicates = 0
        """Answers that said that the message had been applied before."""
        self.unknown: set[str] = set()
        """Those without an id of their own that failed: once in the session, or not."""

    async def run(self, stop: asyncio.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            text = f"{self.chat} {number}"
            request = ChatRequest(chat_id=self.chat, message=text, message_id=text if self._own_ids else "")
            if await self._post(request):
                self.acknowledged.append(text)
            else:
                self.unknown.add(text)

    async def _post(self, request: ChatRequest) -> bool:
        while True:
            try:
                answer = await self._stub.PostMessage(request, timeout=60)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    raise
                if not self._own_ids:
                    return False
            else:
                self.duplicates += answer.duplicate
                return True


@asynccontextmanager
async def store_of(kind: str, directory: Path) -> AsyncIterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{directory}/sessions.db"
        return
    async with redis_server(directory) as server:
        yield server.url


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_a_server_killed_in_the_middle_of_an_append_loses_and_doubles_nothing(
    tmp_path: Path, kind: str, point: str
) -> None:
    addresses = {id_: f"127.0.0.1:{port}" for id_, port in zip(IDS, free_ports(3), strict=True)}
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(store_of(kind, tmp_path))

        def flags(id_: str) -> tuple[str, ...]:
            return ("--id", id_, "--address", addresses[id_], "--store", url)

        for id_ in IDS:
            if id_ != VICTIM:
                await stack.enter_async_context(backend_process(*flags(id_)))
        config = toml(
            addresses, upstream=SOON, retry=GENEROUS, outlier={"consecutive_failures": 0, "quarantine_time": 0}
        )
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        stub = await stack.enter_async_context(chat_stub(proxy.address))
        writers = [Writer(stub, f"chat-{number}", own_ids=number % 2 == 0) for number in range(24)]
        victims = [writer for writer in writers if proxy.owner(writer.chat) == VICTIM]
        assert victims
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            for writer in writers:
                tasks.create_task(writer.run(stop))
            for _ in range(KILLS):
                crash = ("-m", "tests.support.crashing_server", point, str(PASSED_BEFORE))
                async with backend_process(*flags(VICTIM), module=crash) as (process, _):
                    async with asyncio.timeout(60):
                        assert await process.wait() == -signal.SIGKILL
                here = [len(writer.acknowledged) for writer in writers]
                await eventually(
                    lambda: all(len(writer.acknowledged) > n for writer, n in zip(writers, here, strict=True)),  # noqa: B023
                    "every chat going on",
                )
            stop.set()
        await check(url, writers)
        if point in ("after", "answer"):
            assert sum(writer.duplicates for writer in writers), "no message came again that the store had"


async def check(url: str, writers: list[Writer]) -> None:
    store = await open_store(url, StoreOptions())
    for writer in writers:
        session = await store.load(writer.chat, recent=1_000_000)
        assert session is not None
        texts = [message.text for message in session.recent]
        assert session.length == len(texts) == len(set(texts)), f"{writer.chat} has a message twice"
        assert [text for text in texts if text not in writer.unknown] == writer.acknowledged
        assert set(texts) <= {*writer.acknowledged, *writer.unknown}
    await store.close()
