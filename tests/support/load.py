"""Calls that go on while the proxy changes: none may fail."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.support.grpc_server import channel, server_of
from tests.support.polling import eventually

if TYPE_CHECKING:
    from tests.support.proxy_process import ProxyProcess

UNARY = "/any.Service/Unary"


class Load:
    """Calls for many chats, one after another on each of some connections, until `stop`."""

    def __init__(self, proxy: ProxyProcess, clients: int = 4) -> None:
        self.servers: list[str] = []
        """Who answered, in order."""
        self._turns = [0] * clients
        self._going = True
        self._tasks = [asyncio.ensure_future(self._run(proxy, index)) for index in range(clients)]

    async def _run(self, proxy: ProxyProcess, index: int) -> None:
        async with channel(proxy.address) as client:
            turn = 0
            while self._going:
                turn += 1
                call = client.unary_unary(UNARY)(b"body", metadata=(("x-chat-id", f"chat-{index}-{turn % 50}"),))
                assert await call == b"body"
                self.servers.append(await server_of(call))
                self._turns[index] = turn

    async def more(self, calls: int = 200) -> list[str]:
        """Who answered the next calls, those under way left out."""
        turns = list(self._turns)
        await eventually(
            lambda: (
                all(now >= before + 2 for now, before in zip(self._turns, turns, strict=True))
                or any(task.done() for task in self._tasks)
            ),
            "the end of the calls under way",
        )
        before = len(self.servers)
        await eventually(
            lambda: len(self.servers) >= before + calls or any(task.done() for task in self._tasks), "more calls"
        )
        assert not any(task.done() for task in self._tasks)
        return self.servers[before:]

    async def stop(self) -> None:
        """Raises what a call failed with, if one did."""
        self._going = False
        await asyncio.gather(*self._tasks)
