"""The proxy and servers without a store in common: a session goes where its chat goes, and comes home with it."""

from __future__ import annotations

import json
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from districhat.chat_pb2 import CACHE_DISK, CACHE_MISS, ChatRequest, ChatResponse

from tests.support.backend_server import backend_process, chat_stub
from tests.support.polling import eventually_answers
from tests.support.ports import free_ports
from tests.support.proxy_process import proxy_process, toml

if TYPE_CHECKING:
    import asyncio
    from pathlib import Path

    from districhat.chat_pb2_grpc import ChatServiceAsyncStub

IDS = ("Server-A", "Server-B", "Server-C")
# The notice ends when the second SIGTERM comes.
CONFIG = "[drain]\nnotice = 3600.0\ngrace = 60.0\n[moves]\ntimeout = 30.0\n[moves.peers]\n"


class Servers:
    """Three servers, each with an SQLite file of its own."""

    def __init__(self, directory: Path, stack: AsyncExitStack) -> None:
        self._directory = directory
        self._stack = stack
        self._stacks: dict[str, AsyncExitStack] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self.addresses = {id_: f"127.0.0.1:{port}" for id_, port in zip(IDS, free_ports(3), strict=True)}
        peers = (f"{json.dumps(id_)} = {json.dumps(address)}\n" for id_, address in self.addresses.items())
        (directory / "backend.toml").write_text(CONFIG + "".join(peers))

    async def start(self, id_: str) -> None:
        stack = self._stacks[id_] = await self._stack.enter_async_context(AsyncExitStack())
        flags = ("--id", id_, "--address", self.addresses[id_], "--config", f"{self._directory}/backend.toml")
        server = backend_process(*flags, store=self._directory / f"{id_}.db")
        self._processes[id_], _ = await stack.enter_async_context(server)

    def say_goodbye(self, id_: str) -> None:
        self._processes[id_].send_signal(signal.SIGTERM)

    async def ended(self, id_: str) -> None:
        self._processes[id_].send_signal(signal.SIGTERM)
        assert await self._processes[id_].wait() == 0
        await self._stacks[id_].aclose()


class Chats:
    """Posts to chats, and checks of every answer that no message is missing or counted twice."""

    def __init__(self, stub: ChatServiceAsyncStub, count: int) -> None:
        self._stub = stub
        self.counts = {f"chat-{number}": 0 for number in range(count)}
        self.last: dict[str, str] = {}

    async def post(self, chat: str) -> str:
        """Returns who answered."""
        before, server = self.counts[chat], self.last.get(chat)
        answer = await self._stub.PostMessage(ChatRequest(chat_id=chat, message=f"{chat} {before + 1}"))
        assert isinstance(answer, ChatResponse)
        assert answer.message_count == before + 1, f"{chat} at {answer.server_id}, before at {server}"
        if before:
            assert answer.cache_location != CACHE_MISS
            assert f'Before it came: "{chat} {before}"' in answer.reply
        if server not in (None, answer.server_id):
            assert answer.cache_location == CACHE_DISK
        self.counts[chat] += 1
        self.last[chat] = answer.server_id
        return answer.server_id

    async def post_to_all(self) -> None:
        for chat in self.counts:
            await self.post(chat)

    async def leave(self, chat: str, server_id: str) -> None:
        async def elsewhere() -> bool:
            return await self.post(chat) != server_id

        await eventually_answers(elsewhere, f"{chat} leaving {server_id}")

    async def come_home(self, chat: str, server_id: str) -> None:
        async def home() -> bool:
            return await self.post(chat) == server_id

        await eventually_answers(home, f"{chat} coming home to {server_id}")


async def test_a_rolling_restart_loses_no_session_though_every_server_has_a_file_of_its_own(tmp_path: Path) -> None:
    """Each server in turn says that it leaves, hands its sessions to those that the proxy sends its chats to, and gets
    them back with what was added.
    """
    async with AsyncExitStack() as stack:
        servers = Servers(tmp_path, stack)
        for id_ in IDS:
            await servers.start(id_)
        config = toml(
            servers.addresses,
            health={"kind": "grpc", "interval": 0.1, "unhealthy_interval": 0.1, "timeout": 5.0},
            upstream={"connect_backoff": 0.05, "max_connect_backoff": 0.2},
        )
        proxy = await stack.enter_async_context(proxy_process(tmp_path, config))
        chats = Chats(await stack.enter_async_context(chat_stub(proxy.address)), 12)
        await chats.post_to_all()
        await chats.post_to_all()
        for id_ in IDS:
            mine = [chat for chat, server in chats.last.items() if server == id_]
            assert mine
            servers.say_goodbye(id_)
            for chat in mine:
                await chats.leave(chat, id_)
            await chats.post_to_all()
            await servers.ended(id_)
            await servers.start(id_)
            for chat in mine:
                await chats.come_home(chat, id_)
