"""A proxy whose file descriptors run out: calls go on, its servers stay within reach, who comes is sent away or waits,
and it neither spins nor fills its log.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import grpc.aio
import pytest

from tests.support.admin import admin_of, metric
from tests.support.grpc_server import CLIENT_OPTIONS, EchoServer, echo_servers
from tests.support.polling import eventually, eventually_answers
from tests.support.processes import cpu_seconds, descriptors
from tests.support.proxy_process import ProxyProcess, addresses, proxy_process, toml
from tests.support.tls import Authority, Certificate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux: prlimit")

UNARY = "/any.Service/Unary"
MANY = 30
FEW = 200
"""Descriptors of a process that has few: a quarter of them, but 64 at most, are not for clients."""


@dataclass
class Door:
    """A proxy, and how clients come to it."""

    proxy: ProxyProcess
    server: EchoServer
    admin: aiohttp.ClientSession
    certificate: Certificate | None

    def channel(self) -> grpc.aio.Channel:
        if self.certificate is None:
            return grpc.aio.insecure_channel(self.proxy.address, CLIENT_OPTIONS)
        return grpc.aio.secure_channel(self.proxy.address, self.certificate.client_credentials(), CLIENT_OPTIONS)

    async def connect(self, stack: AsyncExitStack) -> socket.socket:
        """A client that says nothing, or fails to connect."""
        unix = self.proxy.address.startswith("unix:")
        client = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        client.setblocking(False)
        stack.enter_context(client)
        address = self.proxy.address.removeprefix("unix:") if unix else ("127.0.0.1", self.proxy.port)
        await asyncio.get_running_loop().sock_connect(client, address)
        return client

    def limit(self, stack: AsyncExitStack, descriptors: int) -> None:
        """The proxy may have so many, until the stack is closed."""
        soft, hard = resource.prlimit(self.proxy.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.proxy.pid, resource.RLIMIT_NOFILE, (descriptors, hard))
        stack.callback(resource.prlimit, self.proxy.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def lines(self) -> int:
        return self.proxy.log().count("limit file_descriptors: ")

    async def counted(self) -> float:
        return await metric(self.admin, "districhat_limits_exceeded_total", limit="file_descriptors")


@asynccontextmanager
async def opened(kind: str, tmp_path: Path) -> AsyncIterator[Door]:
    certificate = Authority(tmp_path).issue("127.0.0.1", "localhost", "proxy.test") if kind == "tls" else None
    tables: dict[str, dict[str, str | float]] = {"admin": {"address": "127.0.0.1:0"}}
    if kind == "unix":
        tables["listener"] = {"address": f"unix:{tmp_path}/proxy.sock"}
    elif certificate is not None:
        tables["listener.tls"] = {**certificate.table, "handshake_timeout": 60.0}
    async with echo_servers("A") as servers:
        config = toml(addresses(*servers), **tables)  # type: ignore[arg-type]  # invariant values
        async with (
            proxy_process(tmp_path, config) as proxy,
            admin_of(proxy) as admin,
        ):
            proxy.expects("file_descriptors")
            yield Door(proxy, servers[0], admin, certificate)


@pytest.fixture(params=["plain", "tls", "unix"])
async def door(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(request.param, tmp_path) as door:
        yield door


async def is_left(client: socket.socket) -> None:
    """Returns when the proxy has ended the connection."""
    try:
        while await asyncio.get_running_loop().sock_recv(client, 4096):
            pass
    except ConnectionResetError:
        pass


async def ended(tasks: list[asyncio.Future[None]]) -> None:
    for each in tasks:
        each.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def answers(call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]) -> bool:
    try:
        return await call(b"again") == b"again"
    except grpc.aio.AioRpcError:
        return False


Call = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


@pytest.fixture
async def call(door: Door) -> AsyncIterator[Call]:
    """Makes calls on a connection that stands already."""
    async with door.channel() as client:
        call = client.unary_unary(UNARY)
        assert await call(b"before") == b"before"
        yield call


async def test_the_last_descriptors_are_for_servers_and_clients_are_sent_away_at_once(door: Door, call: Call) -> None:
    async with AsyncExitStack() as crowd:
        door.limit(crowd, FEW)
        clients = [await door.connect(crowd) for _ in range(FEW)]
        gone = [asyncio.ensure_future(is_left(each)) for each in clients]
        crowd.push_async_callback(ended, gone)
        await eventually(lambda: sum(each.done() for each in gone) >= MANY)
        assert await call(b"meanwhile") == b"meanwhile"
        # There is a descriptor for a server that has to be connected to anew, and for a question to the proxy.
        await door.server.stop()
        await door.server.start()
        await eventually_answers(lambda: answers(call))
        assert await door.counted() >= MANY
        assert door.lines() < MANY
    async with door.channel() as newcomer:
        assert await newcomer.unary_unary(UNARY)(b"after", wait_for_ready=True) == b"after"


async def test_with_none_left_clients_wait_and_the_proxy_rests_between_two_tries(door: Door, call: Call) -> None:
    async with door.channel() as newcomer:
        async with AsyncExitStack() as crowd:
            door.limit(crowd, max(descriptors(door.proxy.pid)) + 1)
            # Those who come first take what numbers are free in between.
            for _ in range(MANY):
                await door.connect(crowd)
            answer = newcomer.unary_unary(UNARY)(b"after", wait_for_ready=True)
            waiting = "limit file_descriptors: clients have to wait: too many open files"
            await eventually(lambda: waiting in door.proxy.log())
            before, so_far = cpu_seconds(door.proxy.pid), door.lines()
            await eventually(lambda: door.lines() >= so_far + 2)  # a second between two
            assert cpu_seconds(door.proxy.pid) - before < 0.5
            assert await call(b"meanwhile") == b"meanwhile"
            assert not answer.done()
        # With descriptors again, those who waited are served.
        assert await answer == b"after"
        assert await door.counted() >= 2
