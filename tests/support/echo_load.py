"""Calls that go on while proxies change: none may fail."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Self

from tests.support.grpc_server import channel, server_of
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc.aio

UNARY = "/any.Service/Unary"


class EchoLoad:
    """Calls for many chats, one after another by each of some clients, until `stop` or the end of the context."""

    def __init__(
        self, address: str, clients: int = 4, *, per_connection: int | None = None, wait_for_ready: bool = False
    ) -> None:
        """`per_connection`: so many calls on a connection, then a new one, by clients that retry as stock ones do: a
        call that a GOAWAY meets before it is written has never left the client's library. `wait_for_ready`: a client
        that cannot connect tries again.
        """
        self.servers: list[str] = []
        """Who answered, in order."""
        self._address = address
        self._per_connection = per_connection
        self._wait_for_ready = wait_for_ready
        self._turns = [0] * clients
        self._going = True
        self._tasks: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.ensure_future(self._run(index)) for index in range(len(self._turns))]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            await self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, index: int) -> None:
        options = (("grpc.enable_retries", 1),) if self._per_connection else ()
        while self._going:
            async with channel(self._address, *options) as client:
                for _ in count() if self._per_connection is None else range(self._per_connection):
                    if not self._going:
                        return
                    await self._call(client, index, self._turns[index] + 1)
                    self._turns[index] += 1

    async def _call(self, client: grpc.aio.Channel, index: int, turn: int) -> None:
        metadata = (("x-chat-id", f"chat-{index}-{turn % 50}"),)
        call = client.unary_unary(UNARY)(b"body", metadata=metadata, wait_for_ready=self._wait_for_ready)
        assert await call == b"body"
        self.servers.append(await server_of(call))

    async def more(self, calls: int = 200) -> list[str]:
        """Who answered the next calls, those under way left out."""
        turns = list(self._turns)
        await self._until(
            lambda: all(now >= before + 2 for now, before in zip(self._turns, turns, strict=True)),
            "the end of the calls under way",
        )
        before = len(self.servers)
        await self._until(lambda: len(self.servers) >= before + calls, "more calls")
        return self.servers[before:]

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        await eventually(lambda: condition() or any(task.done() for task in self._tasks), what)
        if not condition():
            await self.stop()
            raise AssertionError(f"the load ended before {what}")

    async def stop(self) -> None:
        """Raises what a call failed with, if one did."""
        self._going = False
        await asyncio.gather(*self._tasks)
